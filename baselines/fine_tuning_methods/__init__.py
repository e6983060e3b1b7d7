"""Methods on ``baselines.fine_tuning``: GRPO and DRaFT."""
