"""One tuner for every agent."""
