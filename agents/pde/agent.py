"""PDE: fine-tuning as supervised regression (Mou 2025).

Cole-Hopf, ``f = exp(V / temperature)``, turns the Hamilton-Jacobi-Bellman equation into a linear
one. It is solved as a variational inequality on paths whose rewards are a black box: recorded ones
(``fit``), uncontrolled ones, or paths of the current policy, which stay unbiased for the same
equation through their one-step Girsanov weights. The policy is the gradient of ``log f``, or a
regression of the noise where the transition can't be differentiated.
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ...envs.env import problem_of
from ...envs.problem import Policy
from ...envs.recording import Recording
from ..base import ControlPolicy, ProblemAgent
from ..checks import check_range, check_whole
from ..networks import NetworkValue
from .classes.linear import LinearValue
from .image_policies import CnnPolicy, StateCnnPolicy
from .learned_rewards import LearnedRewards, imagine
from .learned_transition import ModelPolicy
from .policies import (
    FourierPolicy,
    KernelPolicy,
    MlpPolicy,
    NoisePolicy,
    PolynomialPolicy,
    RadialPolicy,
    ValueGradientPolicy,
)
from .regression import LOOKAHEADS, Regression
from .replay import Data, Parts, Replay
from .variational import energy_error

SelfPDE = TypeVar("SelfPDE", bound="PDE")


class PDE(Regression):
    """Regression instead of reinforcement learning.

    Args:
        policy: the function class of ``log f``: ``"MlpPolicy"`` (networks), ``"CnnPolicy"`` and
            ``"StateCnnPolicy"`` (convolutional, for images and latents; see ``image_policies``),
            ``"PolynomialPolicy"``, ``"FourierPolicy"``, ``"KernelPolicy"`` (Nystrom) or
            ``"RadialPolicy"`` (positive radial bases), whose gradient through the transition is the
            control; where it can't be differentiated ``"ModelPolicy"`` (networks, one of them a
            learned transition) or ``"NoisePolicy"`` (a regression of the noise); or a
            ``ValuePolicy`` class.
        env: an environment, a vector environment, a registered id, or a bare Problem. The reward is
            a black box.
        n_uncontrolled: paths gathered without control in the first round.
        n_trajectories: paths gathered in each later round.
        adaptive: gather later rounds under the current policy; False never applies a control
            (off-policy).
        exploration: standard deviation of a control, constant along a path and drawn for each, that
            every other path gets on top of the policy's (of none in the first round). It leads
            where neither noise nor the present policy does; classes with ``times=None``, which need
            no path weights, learn from it.
        imagined: paths simulated in each round but the first under the current policy, by the known
            transition and by rewards that networks learn from those seen: no reward is asked for,
            but as many more transitions are evaluated, which are not counted. Regression then sees
            these and the newest round alone, whose targets have little noise near the optimum,
            however far ahead they look. For networks that know the transition, where it is cheap.
        gradient_steps: of the network, in each round.
        batch_size: observations in a gradient step.
        mean_span: mean distance in visits between an observation and its observed target: 1 is
            one-step regression, ``horizon`` and more tends to Monte-Carlo regression. Absent: 5 for
            networks (10 with ``imagined`` paths), 1 for linear classes (which round it).
        lookahead: what stands for the later value: ``"observed"`` (the recorded state), ``"fresh"``
            (the mean over ``draws`` antithetic pairs of fresh noise; networks draw them once a
            visit and use one of them at a time) or ``"generator"`` (automatic differentiation;
            exact trace if ``draws`` is 0, else that many Hutchinson probes). The latter two know
            the transition and always look one step ahead. Absent: the policy's own where the data
            hold every step (``"fresh"`` for most that differentiate the transition, and so know
            it), else ``"observed"``, as with ``imagined`` paths.
        draws: see ``lookahead``; 0 takes four pairs of fresh noise.
        max_weight: largest density ratio of one observation, at least 1.
        averaging: decay of the averaged network, which gives targets and policy.
        weight_decay: of AdamW.
        gradient_penalty: of networks, on the mean square of the control (the energy norm of log f).
        ridge: of linear classes, a share of the matrix's mean diagonal; absent: chosen by held-out
            variational residual.
        select: choose the linear classes' length scale or width, and the ridge, on paths held out.
        learning_rate: of AdamW; a number or an SB3 schedule. Absent: the policy's own
            (``MlpPolicy``: 6e-3, but 2e-3 on denoisers; others: 2e-3).

    The other arguments are stable-baselines3's.
    """

    policy_aliases: ClassVar[dict[str, Any]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "StateCnnPolicy": StateCnnPolicy,
        "PolynomialPolicy": PolynomialPolicy,
        "FourierPolicy": FourierPolicy,
        "KernelPolicy": KernelPolicy,
        "RadialPolicy": RadialPolicy,
        "NoisePolicy": NoisePolicy,
        "ModelPolicy": ModelPolicy,
    }
    hyperparameters: ClassVar[tuple[str, ...]] = (
        *ProblemAgent.hyperparameters,
        *(
            "n_uncontrolled",
            "adaptive",
            "exploration",
            "imagined",
            "gradient_steps",
            "batch_size",
            "mean_span",
            "lookahead",
            "draws",
            "max_weight",
        ),
        *("averaging", "weight_decay", "gradient_penalty", "ridge", "select"),
    )

    def __init__(
        self,
        policy: str | type[ControlPolicy] = "MlpPolicy",
        env: Any = None,
        learning_rate: Any = None,
        n_uncontrolled: int = 100,
        n_trajectories: int = 50,
        adaptive: bool = True,
        exploration: float = 0.0,
        imagined: int = 0,
        gradient_steps: int = 100,
        batch_size: int = 512,
        mean_span: float | None = None,
        lookahead: str | None = None,
        draws: int = 0,
        max_weight: float = 5.0,
        averaging: float = 0.9,
        weight_decay: float = 1e-2,
        gradient_penalty: float = 0.0,
        ridge: float | None = None,
        select: bool = True,
        **kwargs: Any,
    ) -> None:
        check_whole("n_uncontrolled", n_uncontrolled, 2)
        check_range("exploration", exploration, 0)
        if exploration and not adaptive:
            raise ValueError(
                "exploration must be 0 where adaptive is False (no control is applied); got"
                f" {exploration!r}"
            )
        check_whole("imagined", imagined, 0)
        check_whole("gradient_steps", gradient_steps, 1)
        check_whole("batch_size", batch_size, 1)
        if mean_span is not None:
            check_range("mean_span", mean_span, 1)
        check_whole("draws", draws, 0)
        check_range("max_weight", max_weight, 1)
        check_range("averaging", averaging, 0, 1)
        check_range("gradient_penalty", gradient_penalty, 0)
        check_range("weight_decay", weight_decay, 0)
        if ridge is not None:
            check_range("ridge", ridge, 0)
        if lookahead is not None and lookahead not in LOOKAHEADS:
            raise ValueError(
                f"lookahead must be one of {sorted(LOOKAHEADS)}, or None; got {lookahead!r}"
            )
        self.n_uncontrolled = n_uncontrolled
        self.adaptive = adaptive
        self.exploration = exploration
        self.imagined = imagined
        self.gradient_steps = gradient_steps
        self.batch_size = batch_size
        self.mean_span = mean_span
        self.lookahead = lookahead
        self.draws = draws
        self.max_weight = max_weight
        self.averaging = averaging
        self.weight_decay = weight_decay
        self.gradient_penalty = gradient_penalty
        self.ridge = ridge
        self.select = select
        self.rounds = []
        self._given = dict(kwargs.get("policy_kwargs") or {})
        super().__init__(policy, env, learning_rate, n_trajectories, **kwargs)

    def _setup_model(self) -> None:
        if self.learning_rate is None:
            policy: Any = self.policy_class
            self.learning_rate = policy.usual_learning_rate(problem_of(self.env))
        super()._setup_model()
        if self.imagined:
            known = isinstance(self.policy, ValueGradientPolicy) and not self.policy.needs_noise
            if not (known and isinstance(self.policy.value, NetworkValue)):
                name = type(self.policy).__name__
                raise ValueError(
                    f"imagined must be 0 for {name}: it is for networks that know the transition;"
                    f" got {self.imagined}"
                )
            self.rewards = LearnedRewards(self.policy.n_inputs, self.problem.horizon).to(
                self.device
            )
        self._start_learner()

    def networks(self) -> dict[str, Any]:
        """See ProblemAgent."""
        return {**super().networks(), **({"rewards": self.rewards} if self.imagined else {})}

    def forget(self) -> None:
        """See ProblemAgent."""
        self.rounds = []

    # --- learning from the environment

    def iterate(self) -> None:
        """One round: gather paths, extend the replay, regress."""
        first = self.reward_queries == 0
        control = None if first or not self.adaptive else self.policy.control
        n = self.n_uncontrolled if first else self.n_trajectories
        paths = self.collect(self._explored(control, n), n)
        fresh = self._branched(Replay.of(self.policy.problem, Recording.of(paths)))
        self.rounds.append(fresh)
        self._begin(fresh, anew=self._n_updates == 0)
        clipped = (paths.controls.abs() >= self.policy.action_bound).float().mean()
        self.logger.record("train/clipped_share", float(clipped))
        if isinstance(self.policy.value, LinearValue):
            rounds = self.rounds
            if self.policy.value.stepwise:  # fitted from scratch, hence free to follow the data
                self._place(self.policy.value, Replay.joined(rounds))
            else:
                self._weigh_rounds()
                rounds = rounds[
                    ::-1
                ]  # the first lends paths to judge by, and near the optimum these judge sharply
            self._solve(rounds, cold=self._n_updates == 0)
        else:
            every = Replay.joined(self.rounds)
            self._prepare(every, anew=self._n_updates == 0)
            if self.imagined:
                every = self._imagined(every, fresh, control)
            self._regress(every, self.gradient_steps)
        self._record_error(fresh)

    def _imagined(self, every: Replay, fresh: Replay, control: Policy | None) -> Replay:
        """The newest round, and paths of its control with rewards learned from all rounds (of the
        first, the round alone).
        """
        first = len(self.rounds) == 1
        running, terminal = self.rewards.regress(
            every, _REWARD_STEPS * (3 if first else 1), self.generator
        )
        self.logger.record("train/running_reward_loss", running)
        self.logger.record("train/terminal_reward_loss", terminal)
        if first:
            return fresh
        return Replay.joined(
            [fresh, imagine(self.problem, self.rewards, control, self.imagined, self.generator)]
        )

    def _explored(self, control: Policy | None, n: int) -> Policy | None:
        """``control`` plus a constant push of every other of ``n`` paths."""
        if not self.exploration:
            return control
        bound, shape = self.policy.action_bound, self.problem.noise_shape
        push = self.exploration * torch.randn(
            n, *shape, generator=self.generator, device=self.device
        )
        push[::2] = 0

        def explored(k: int, x: Tensor) -> Tensor:
            a = push.to(x.dtype)
            return (a if control is None else control(k, x) + a).clamp(-bound, bound)

        return explored

    # --- learning from recorded paths

    def fit(
        self: SelfPDE, data: Data, gradient_steps: int = 2000, progress_bar: bool = False
    ) -> SelfPDE:
        """Learn from recorded paths alone: no step is taken in the environment.

        Args:
            data: whole trajectories, a ``Recording`` (of paths seen at random times, say), the name
                of a file that ``Recording.save`` wrote, or anything that yields these in parts
                whenever it is iterated over (``RecordedPaths``, ``SimulatedPaths``, a list): linear
                classes never hold more than one part.
            gradient_steps: of networks, annealed over this call.
            progress_bar: show one.

        Raises:
            ValueError: wrong shapes, NaN or infinite numbers, a corrupt file, or no path that was
                seen at its end.
        """
        check_whole("gradient_steps", gradient_steps, 1)
        if self.imagined:
            raise ValueError(
                f"imagined must be 0 for fit, which simulates nothing; got {self.imagined}"
            )
        parts = Parts(data, self.policy.problem, self.device, lambda: self.policy.value.bounds)
        first = next(iter(parts), None)
        if first is None or not bool(first.seen.any()):
            raise ValueError(
                "the first part of data must hold a path that was seen at its end: without a"
                " terminal reward nothing is learnt"
            )
        self._set_up_logger()
        self.rounds = []
        self._begin(first, anew=isinstance(self.policy.value, LinearValue) or self._n_updates == 0)
        if isinstance(self.policy.value, LinearValue):
            self._solve(parts, cold=True)
        else:
            every = self._branched(Replay.joined(list(parts)))
            self.policy.value.bounds.copy_(torch.tensor(every.bounds))
            self.learner.load_state_dict(self._trained().state_dict())
            self._prepare(every, anew=self._n_updates == 0)
            chunk = max(1, gradient_steps // 100)
            bar = _bar(gradient_steps, progress_bar)
            for done in range(0, gradient_steps, chunk):
                self._current_progress_remaining = 1 - done / gradient_steps
                self._regress(every, min(chunk, gradient_steps - done))
                bar.update(chunk)
            bar.close()
        self._record_error(first)
        self.reward_queries += parts.terminal_rewards
        return self

    def _set_up_logger(self) -> None:
        from stable_baselines3.common import utils

        if not self._custom_logger and not hasattr(self, "_logger"):
            self._logger = utils.configure_logger(
                self.verbose, self.tensorboard_log, type(self).__name__, True
            )

    def _record_error(self, data: Replay) -> None:
        """The Sobolev error on the newest data, where the problem knows its optimum and a log is
        kept.
        """
        problem: Any = self.policy.problem
        optimum = getattr(problem, "optimal_control", None) or getattr(
            problem, "reference_control", None
        )
        if optimum is not None and self.logger.output_formats:
            error = energy_error(data, problem.horizon, self.policy.control, optimum)
            self.logger.record("pde/sobolev_error", error)


#: Gradient steps of the learned rewards in a round; three times as many in the first.
_REWARD_STEPS = 150


def _bar(total: int, shown: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, disable=not shown, desc="fit")
