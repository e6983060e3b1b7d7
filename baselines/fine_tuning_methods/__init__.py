"""Methods on ``baselines.fine_tuning``."""
