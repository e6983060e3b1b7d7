"""PI-FT: policy iteration for KL-regularised fine-tuning (Han, Razaviyayn and Xu 2025).

Algorithm 1, in noise units: ``V_T = y``, and for k = T - 1, ..., 0, from ``a_k^(0) = 0``,

    (35)  a_k^(m+1)(x) = (1 / beta_k) E_W[ J_z^T grad V_{k+1}(F_k(x, a_k^(m)(x) + W)) ],  m < m_k,
    (36)  V_k(x) = r_k(x) + E_W[ V_{k+1}(F_k(x, a_k(x) + W)) ] - beta_k |a_k(x)|^2 / 2.

(35) is one step of a fixed-point iteration that contracts where ``lambda_k < 1`` (Theorem 3.1).
``PIFT.iterate`` makes one policy iteration. What the policy is, and where V and the expectations
come from, is its form (an ``IterationPolicy``, the agent's ``policy`` argument):

``ExactPolicy``
    both in closed form: ``iterate_quadratics`` or ``iterate_grid``
``FunctionalPolicy``
    (36) by ``backup``, fitted step by step backwards; (35) by ``_improved``
``MlpPolicy``
    (36) by returns along paths and ``value_gradients``; (35) by regression of the update
``ValuePolicy``
    (36) by regression of returns and their gradients; (35) in ``control``
``FittedPolicy``, ``LoraValuePolicy``
    (36) by kernel regression of returns; (35) by gradient steps towards it
``PathwisePolicy``, ``LoraPolicy``
    (36) by ``adjoint_sweep``; a step up the gradient of the objective, their eq. (77)
``ScorePolicy``, ``LoraScorePolicy``
    (36) by returns along paths; the same step, by Stein's identity
``LinearPolicy``
    their section 4.1, ``u_k = K_k phi_k(x)``, with the gradient (77)
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...envs.checks import check_positive
from ...envs.diffusion.gaussian_mixture import GaussianMixture
from ...envs.env import as_env, problem_of
from ...envs.known_optimum.linear_quadratic import LinearQuadratic
from ...envs.problem import Problem, slopes_of
from ..base import ProblemAgent, descend
from ..checks import check_range, check_whole
from ..control import ControlPolicy
from .exact import ExactPolicy
from .fitted import MlpPolicy, ValuePolicy
from .form import IterationPolicy
from .functional import FunctionalPolicy
from .gradient import FittedPolicy, PathwisePolicy, ScorePolicy
from .linear import LinearPolicy
from .lipschitz import linear_quadratic_chain, mixture_chain
from .lora import LoraPolicy, LoraScorePolicy, LoraValuePolicy
from .regularity import check_temperature, iterate_regularity
from .value_gradients import Slope, reward_slopes


class PIFT(ProblemAgent):
    """Policy iteration by value gradients along the policy's own paths.

    Args:
        policy: ``"MlpPolicy"`` fits the control to the update, ``"ValuePolicy"`` the value
            function; ``"PathwisePolicy"``, ``"FittedPolicy"`` and ``"ScorePolicy"`` take gradient
            steps of the objective, the last two for black-box rewards; ``"LinearPolicy"`` is linear
            in features, ``"FunctionalPolicy"`` fits value functions backwards in time,
            ``"ExactPolicy"`` needs no fit; ``"LoraPolicy"``, ``"LoraValuePolicy"`` and
            ``"LoraScorePolicy"`` take the same gradient steps with adapters of a diffusers
            pipeline's own network; or an ``IterationPolicy`` class. Absent: what the rewards allow,
            each judged apart (``usual_form``).
        env: an environment, a vector environment, a registered id, or a bare Problem.
        n_trajectories: paths of the current policy in each iteration; the form's default if absent.
        memory: iterations whose paths are kept for the regression.
        damping: share of the way from the present control to the fixed-point update that one
            iteration goes. The full step contracts only above a temperature of sigma^2 Lip(grad V);
            below it the damped one still does.
        max_gradient: longest sampled update at one step, in noise units.
        gradient_steps: of the regression, in each iteration.
        batch_size: observations in a gradient step.
        averaging: decay of the averaged network, which is the policy.
        weight_decay: of AdamW.
        learning_rate: of AdamW; a number or an SB3 schedule; the form's default if absent.

    The other arguments are stable-baselines3's.
    """

    policy_aliases: ClassVar[dict[str, Any]] = {
        form.__name__: form
        for form in (
            *(MlpPolicy, ValuePolicy, PathwisePolicy, ScorePolicy, FittedPolicy),
            *(LinearPolicy, FunctionalPolicy, ExactPolicy),
            *(LoraPolicy, LoraScorePolicy, LoraValuePolicy),
        )
    }
    policy: IterationPolicy
    hyperparameters: ClassVar[tuple[str, ...]] = (
        *ProblemAgent.hyperparameters,
        *("memory", "damping", "max_gradient", "gradient_steps", "batch_size"),
        *("averaging", "weight_decay"),
    )

    def __init__(
        self,
        policy: str | type[ControlPolicy] | None = None,
        env: Any = None,
        learning_rate: Any = None,
        n_trajectories: int | None = None,
        memory: int = 2,
        damping: float = 0.2,
        max_gradient: float = 10.0,
        gradient_steps: int = 20,
        batch_size: int = 512,
        averaging: float = 0.97,
        weight_decay: float = 1e-2,
        **kwargs: Any,
    ) -> None:
        check_whole("memory", memory, 1)
        check_range("damping", damping, 0, 1)
        check_whole("gradient_steps", gradient_steps, 1)
        check_whole("batch_size", batch_size, 1)
        check_range("averaging", averaging, 0, 1)
        check_range("weight_decay", weight_decay, 0)
        check_positive("max_gradient", max_gradient)
        self.memory = memory
        self.gradient_steps = gradient_steps
        self.batch_size = batch_size
        self.averaging = averaging
        self.weight_decay = weight_decay
        self.max_gradient = max_gradient
        self.damping = damping
        if policy is None:
            env = None if env is None else as_env(env)
            policy = "MlpPolicy" if env is None else usual_form(problem_of(env))
        form = self.policy_aliases.get(policy, policy) if isinstance(policy, str) else policy
        learning_rate = (
            getattr(form, "learning_rate", None) if learning_rate is None else learning_rate
        )
        n_trajectories = (
            getattr(form, "n_trajectories", 2) if n_trajectories is None else n_trajectories
        )
        kwargs.setdefault("anneal", getattr(form, "anneal", True))
        super().__init__(policy, env, learning_rate, n_trajectories, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        # a problem, and what the theory promises there
        self._contraction: tuple[Any, float | None] = (None, None)
        network = self.policy.network
        if network is not None:
            self.learner: nn.Module = copy.deepcopy(network) if self.policy.averaged else network
            self.optimizer = torch.optim.AdamW(
                self.learner.parameters(), weight_decay=self.weight_decay
            )

    def networks(self) -> dict[str, Any]:
        """See ProblemAgent."""
        if self.policy.network is None:
            return super().networks()
        learner = {"learner": self.learner} if self.policy.averaged else {}
        return {**super().networks(), **learner, "optimizer": self.optimizer}

    def forget(self) -> None:
        """See ProblemAgent."""
        self.policy.forget()

    @property
    def n_updates(self) -> int:
        """Gradient steps taken so far; iterations, for a form without."""
        return self._n_updates

    def iterate(self) -> None:
        """One policy iteration: the present policy is evaluated and improved by its form's rule."""
        # Theorem 3.1: does (35) contract at this temperature? Said once for a problem.
        if self._contraction[0] is not self.problem:
            self._contraction = self.problem, self._guarantee()
        if self._contraction[1] is not None:
            self.logger.record("train/lambda_max", self._contraction[1])

        # Sample (``collect``), evaluate V (36), and move the control towards its update (35).
        before = self._n_updates
        self._losses: list[Tensor] = []
        if self.policy.network is not None:
            self.set_learning_rate(self.optimizer)
        self.policy.improve(self)

        if self._losses:
            self.logger.record("train/loss", float(torch.stack(self._losses).mean()))
        self._n_updates += self._n_updates == before
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _guarantee(self) -> float | None:
        """The largest lambda_k, with a RegularityWarning unless below 1.

        None where nothing certified and finite is known.
        """
        problem, temperatures = self.problem, self.policy.temperatures
        exact = isinstance(problem, LinearQuadratic) and temperatures is None
        chain = None
        try:
            if isinstance(problem, GaussianMixture):
                chain = mixture_chain(problem)
            elif isinstance(problem, LinearQuadratic) and not exact:
                chain = linear_quadratic_chain(problem)
        except ValueError:
            return None  # a mixture or a reward without constants
        if not exact and (
            chain is None or iterate_regularity(chain, self.policy.betas).rate == math.inf
        ):
            return None
        return check_temperature(problem, temperatures=temperatures, chain=chain)

    def descend(self, loss: Tensor) -> None:
        """One step of the learner down a loss; the policy's network follows as the average."""
        descend(loss, self.learner, self.optimizer, self.policy.network, self.averaging)
        self._losses.append(loss.detach())
        self._n_updates += 1

    def ascend(self, gradient: Sequence[Tensor]) -> None:
        """One step of the policy's network up a gradient of the objective by its parameters."""
        parameters = list(self.learner.parameters())
        for parameter, part in zip(parameters, gradient, strict=True):
            parameter.grad = -part
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizer.step()
        self.logger.record("train/gradient_norm", float(norm))
        self._n_updates += 1


def usual_form(problem: Problem) -> str:
    """The form of PI-FT that the problem allows.

    ``MlpPolicy`` where every reward that is paid has a gradient; ``FittedPolicy``, whose gradients
    are those of fitted values, where one of them is a black box or its gradient is zero;
    ``ScorePolicy`` where autograd can't follow the transition.

    Warns:
        UserWarning: a reward has a gradient, but it is zero at every state tried.
    """
    if not slopes_of(problem).transition:
        return "ScorePolicy"
    found = reward_slopes(problem)
    flat = [
        f"{type(problem).__name__}.{name}_reward"
        for name, slope in found._asdict().items()
        if slope is Slope.FLAT
    ]
    if flat:
        text = (
            f"the gradient of {' and of '.join(flat)} is zero at every state tried: PIFT learns it"
            " as a black box by FittedPolicy (policy='MlpPolicy' takes the gradient as it is)"
        )
        warnings.warn(text, UserWarning, stacklevel=3)
    return "FittedPolicy" if {Slope.FLAT, Slope.BLACK_BOX} & set(found) else "MlpPolicy"
