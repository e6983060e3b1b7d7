"""What our agents are scored against: SB3's PPO and SAC on the batched environments; DPOK, DDPO and
adjoint matching.
"""
