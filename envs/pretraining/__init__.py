"""What trains and judges the shipped checkpoints."""
