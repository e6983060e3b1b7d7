"""Problems whose optimum is known exactly."""
