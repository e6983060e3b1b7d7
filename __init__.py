"""girsanov: is supervised regression enough, or do you need reinforcement learning?

Diffusion denoising chains and control-affine robotics tasks as Gymnasium environments; a regression
agent (PDE, Mou 2025) and a policy-iteration agent (PI-FT, Han, Razaviyayn and Xu 2025), scored
against stable-baselines3's PPO and SAC, the fine-tuning methods for diffusion models (DPOK, DDPO,
GRPO, DRaFT, adjoint matching, log-variance) and what guides samples without learning (best of n,
Feynman-Kac, posterior guidance). ``import girsanov`` registers the environments. The names in
``__all__`` are the supported interface; each is imported when it is first asked for.
"""

from typing import TYPE_CHECKING

from ._lazy import keep_old_paths, lazily
from .envs import make_problem, register_all

if TYPE_CHECKING:
    from .agents.pde.agent import PDE
    from .agents.pi_ft.agent import PIFT
    from .baselines.sb3 import make_ppo, make_sac
    from .baselines.vec_env import ProblemVecEnv
    from .envs.certificates import Certificate, certificate
    from .envs.env import ProblemEnv, ProblemVectorEnv
    from .envs.problem import Estimate, Objective, Policy, Problem, Trajectories, objective, rollout
    from .envs.recording import Recording
    from .scoreboard.compare import Comparison, compare
    from .scoreboard.report import report
    from .scoreboard.sharing import zoo
    from .scoreboard.sharing.hub import from_hub, push_to_hub
    from .scoreboard.spec import Budget, EvaluationPlan, RunSpec

__version__ = "0.1.0"

__all__ = [
    "PDE",
    "PIFT",
    "Budget",
    "Certificate",
    "Comparison",
    "Estimate",
    "EvaluationPlan",
    "Objective",
    "Policy",
    "Problem",
    "ProblemEnv",
    "ProblemVecEnv",
    "ProblemVectorEnv",
    "Recording",
    "RunSpec",
    "Trajectories",
    "__version__",
    "certificate",
    "compare",
    "from_hub",
    "make_ppo",
    "make_problem",
    "make_sac",
    "objective",
    "push_to_hub",
    "report",
    "rollout",
    "zoo",
]

_PLACES = {
    ".agents.pde.agent": ("PDE",),
    ".agents.pi_ft.agent": ("PIFT",),
    ".baselines.sb3": ("make_ppo", "make_sac"),
    ".baselines.vec_env": ("ProblemVecEnv",),
    ".envs.certificates": ("Certificate", "certificate"),
    ".envs.env": ("ProblemEnv", "ProblemVectorEnv"),
    ".envs.problem": (
        "Estimate",
        "Objective",
        "Policy",
        "Problem",
        "Trajectories",
        "objective",
        "rollout",
    ),
    ".envs.recording": ("Recording",),
    ".scoreboard.compare": ("Comparison", "compare"),
    ".scoreboard.report": ("report",),
    ".scoreboard.sharing": ("zoo",),
    ".scoreboard.sharing.hub": ("from_hub", "push_to_hub"),
    ".scoreboard.spec": ("Budget", "EvaluationPlan", "RunSpec"),
}
__getattr__, __dir__ = lazily(
    __name__, {name: module for module, names in _PLACES.items() for name in names}
)

keep_old_paths()
register_all()
