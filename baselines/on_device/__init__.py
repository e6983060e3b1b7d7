"""What PPO and SAC learn from, kept as tensors on the problem's device."""
