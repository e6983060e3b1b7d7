"""Mou's estimator (2025) as he states it, and nothing else."""
