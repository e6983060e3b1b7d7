"""girsanov: is supervised regression enough, or do you need reinforcement learning?

Diffusion denoising chains and control-affine robotics tasks as Gymnasium environments; a regression agent (PDE, Mou 2025)
and a policy-iteration agent (PI-FT, Han, Razaviyayn and Xu 2025), scored against stable-baselines3's PPO and SAC.
``import girsanov`` registers the environments.
"""

from .envs import register_all

__version__ = "0.1.0"

register_all()
