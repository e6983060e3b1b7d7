"""What our agents are scored against: stable-baselines3's PPO and SAC on the batched environments."""
