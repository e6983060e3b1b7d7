"""What our agents are scored against: SB3's PPO and SAC on the batched environments; DPOK, DDPO,
GRPO, the log-variance loss, DRaFT and adjoint matching; guided sampling, which trains nothing.
"""
