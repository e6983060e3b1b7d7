"""PDE: fine-tuning as supervised regression (Mou 2025).

Cole-Hopf, ``f = exp(V / temperature)``, turns the Hamilton-Jacobi-Bellman equation into a linear one. It is solved as a
variational inequality on paths whose rewards are a black box: recorded ones (``fit``), uncontrolled ones, or paths of the
current policy, which stay unbiased for the same equation through their one-step Girsanov weights. The policy is the gradient
of ``log f``, or a regression of the noise where the transition can't be differentiated.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ..envs.env import problem_of
from ..envs.problem import Policy
from ..envs.recording import Recording
from .backward import STEPWISE_RIDGES, fit_backward, rescue
from .base import ControlPolicy, ProblemAgent, check_range, descend
from .function_classes import NetworkValue, NeuralValue, Value, encode
from .image_policies import CnnPolicy, StateCnnPolicy
from .learned_transition import ModelPolicy
from .linear_classes import ExponentialValue, LinearValue
from .lookahead import FreshNoise, Generator, Lookahead, Observed
from .replay import Data, Parts, Replay, Spans, sample_spans, spans
from .selection import Fit, Split, clearly_less, fit_linear
from .value_policies import (
    FourierPolicy,
    KernelPolicy,
    MlpPolicy,
    NoisePolicy,
    PolynomialPolicy,
    RadialPolicy,
    ValuePolicy,
)
from .variational import capped_exp, densities, energy_error, every_density, log_targets, relative_residual_loss

SelfPDE = TypeVar("SelfPDE", bound="PDE")

_LOOKAHEADS: dict[str, Callable[[PDE], Lookahead]] = {
    "observed": lambda agent: Observed(),
    "fresh": lambda agent: FreshNoise(agent.policy.problem, agent.draws or 4, agent.generator),
    "generator": lambda agent: Generator(agent.policy.problem, agent.draws, agent.generator),
}


class PDE(ProblemAgent):
    """Regression instead of reinforcement learning.

    Args:
        policy: the function class of ``log f``: ``"MlpPolicy"`` (networks), ``"CnnPolicy"`` and ``"StateCnnPolicy"``
            (convolutional, for images and latents; see ``image_policies``), ``"PolynomialPolicy"``, ``"FourierPolicy"``,
            ``"KernelPolicy"`` (Nystrom) or ``"RadialPolicy"`` (positive radial bases), whose gradient through the transition
            is the control; where it can't be differentiated ``"ModelPolicy"`` (networks, one of them a learned transition) or
            ``"NoisePolicy"`` (a regression of the noise); or a ``ValuePolicy`` class.
        env: an environment, a vector environment, a registered id, or a bare Problem. The reward is a black box.
        n_uncontrolled: paths gathered without control in the first round.
        n_trajectories: paths gathered in each later round.
        adaptive: gather later rounds under the current policy; False never applies a control (off-policy).
        exploration: standard deviation of a control, constant along a path and drawn for each, that every other path gets on
            top of the policy's (of none in the first round). It leads where neither noise nor the present policy does;
            classes with ``times=None``, which need no path weights, learn from it.
        gradient_steps: of the network, in each round.
        batch_size: observations in a gradient step.
        mean_span: mean distance in visits between an observation and its observed target: 1 is one-step regression, ``horizon``
            and more tends to Monte-Carlo regression. Absent: 5 for networks, 1 for linear classes (which round it).
        lookahead: what stands for the later value: ``"observed"`` (the recorded state), ``"fresh"`` (the mean over ``draws``
            antithetic pairs of fresh noise; networks draw them once a visit and use one of them at a time) or
            ``"generator"`` (automatic differentiation; exact trace if ``draws`` is 0, else that many Hutchinson probes). The
            latter two know the transition and always look one step ahead. Absent: the policy's own where the data hold every
            step (``"fresh"`` for most that differentiate the transition, and so know it), else ``"observed"``.
        draws: see ``lookahead``; 0 takes four pairs of fresh noise.
        max_weight: largest density ratio of one observation, at least 1.
        averaging: decay of the averaged network, which gives targets and policy.
        weight_decay: of AdamW.
        gradient_penalty: of networks, on the mean square of the control (the energy norm of log f).
        ridge: of linear classes, a share of the matrix's mean diagonal; absent: chosen by held-out variational residual.
        select: choose the linear classes' length scale or width, and the ridge, on paths held out.
        learning_rate: of AdamW; a number or an SB3 schedule. Absent: the policy's own (``MlpPolicy``: 6e-3, but
            2e-3 on denoisers; others: 2e-3).

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
    policy: ValuePolicy
    draws: int
    hyperparameters: ClassVar[tuple[str, ...]] = (
        *ProblemAgent.hyperparameters,
        *(
            "n_uncontrolled",
            "adaptive",
            "exploration",
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
        check_range("n_uncontrolled", n_uncontrolled, 2)
        check_range("exploration", exploration, 0)
        if exploration and not adaptive:
            raise ValueError(f"exploration must be 0 where adaptive is False (no control is applied); got {exploration!r}")
        check_range("gradient_steps", gradient_steps, 1)
        check_range("batch_size", batch_size, 1)
        if mean_span is not None:
            check_range("mean_span", mean_span, 1)
        check_range("draws", draws, 0)
        check_range("max_weight", max_weight, 1)
        check_range("averaging", averaging, 0, 1)
        check_range("gradient_penalty", gradient_penalty, 0)
        if ridge is not None:
            check_range("ridge", ridge, 0)
        if lookahead is not None and lookahead not in _LOOKAHEADS:
            raise ValueError(f"lookahead must be one of {sorted(_LOOKAHEADS)}, or None; got {lookahead!r}")
        self.n_uncontrolled = n_uncontrolled
        self.adaptive = adaptive
        self.exploration = exploration
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
        self.rounds: list[Replay] = []
        self._given = dict(kwargs.get("policy_kwargs") or {})  # what model selection must not change
        super().__init__(policy, env, learning_rate, n_trajectories, **kwargs)

    def _setup_model(self) -> None:
        if self.learning_rate is None:
            policy: Any = self.policy_class
            self.learning_rate = policy.usual_learning_rate(problem_of(self.env))
        super()._setup_model()
        self._start_learner()

    def _start_learner(self) -> None:
        self.learner = copy.deepcopy(self._trained())  # what gradients move; the policy holds its average
        parameters = list(self.learner.parameters())
        self.optimizer = torch.optim.AdamW(parameters, weight_decay=self.weight_decay) if parameters else None

    def _trained(self) -> nn.ModuleDict:
        parts = {"value": self.policy.value}
        return nn.ModuleDict({**parts, "noise": self.policy.network} if isinstance(self.policy, NoisePolicy) else parts)

    def networks(self) -> dict[str, Any]:
        """See ProblemAgent."""
        optimizer = {} if self.optimizer is None else {"optimizer": self.optimizer}
        return {**super().networks(), "learner": self.learner, **optimizer}

    def forget(self) -> None:
        """See ProblemAgent."""
        self.rounds = []

    # --- learning from the environment ------------------------------------------------------------------------------

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
                rounds = rounds[::-1]  # the first lends paths to judge by, and near the optimum these judge sharply
            self._solve(rounds, cold=self._n_updates == 0)
        else:
            every = Replay.joined(self.rounds)
            self._prepare(every, anew=self._n_updates == 0)
            self._regress(every, self.gradient_steps)
        self._record_error(fresh)

    def _explored(self, control: Policy | None, n: int) -> Policy | None:
        """``control`` plus a constant push of every other of ``n`` paths."""
        if not self.exploration:
            return control
        bound, shape = self.policy.action_bound, self.problem.noise_shape
        push = self.exploration * torch.randn(n, *shape, generator=self.generator, device=self.device)
        push[::2] = 0

        def explored(k: int, x: Tensor) -> Tensor:
            a = push.to(x.dtype)
            return (a if control is None else control(k, x) + a).clamp(-bound, bound)

        return explored

    # --- learning from recorded paths -------------------------------------------------------------------------------

    def fit(self: SelfPDE, data: Data, gradient_steps: int = 2000, progress_bar: bool = False) -> SelfPDE:
        """Learn from recorded paths alone: no step is taken in the environment.

        Args:
            data: whole trajectories, a ``Recording`` (of paths seen at random times, say), the name of a file that
                ``Recording.save`` wrote, or anything that yields these in parts whenever it is iterated over
                (``RecordedPaths``, ``SimulatedPaths``, a list): linear classes never hold more than one part.
            gradient_steps: of networks, annealed over this call.
            progress_bar: show one.

        Raises:
            ValueError: wrong shapes, NaN or infinite numbers, a corrupt file, or no path that was seen at its end.
        """
        parts = Parts(data, self.policy.problem, self.device, lambda: self.policy.value.bounds)
        first = next(iter(parts), None)
        if first is None or not bool(first.seen.any()):
            raise ValueError(
                "the first part of data must hold a path that was seen at its end: without a terminal reward nothing is learnt"
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
            self._logger = utils.configure_logger(self.verbose, self.tensorboard_log, type(self).__name__, True)

    # --- regression -------------------------------------------------------------------------------------------------

    def _begin(self, data: Replay, anew: bool) -> None:
        """Units from the first data (inputs standardised, f in units of its mean), and the bounds of f."""
        log_returns = data.log_returns.double()
        ess = torch.exp(2 * log_returns.logsumexp(0) - (2 * log_returns).logsumexp(0))
        self.logger.record("train/effective_sample_share", float(ess) / max(len(log_returns), 1))
        value = self.policy.value
        low, high = data.bounds
        old = (math.inf, -math.inf) if anew else value.bounds.tolist()
        bounds = torch.tensor([min(low, old[0]), max(high, old[1])])
        twin: Any = self.learner["value"]
        for one in (value, twin):
            if anew:
                self._place(one, data)
            one.bounds.copy_(bounds)

    def _record_error(self, data: Replay) -> None:
        """The Sobolev error on the newest data, where the problem knows its optimum and a log is kept."""
        problem: Any = self.policy.problem
        optimum = getattr(problem, "optimal_control", None) or getattr(problem, "reference_control", None)
        if optimum is not None and self.logger.output_formats:
            error = energy_error(data, problem.horizon, self.policy.control, optimum)
            self.logger.record("pde/sobolev_error", error)

    def _lookahead(self, data: Iterable[Replay]) -> Lookahead:
        name = self.lookahead or self.policy.lookahead
        if self.lookahead is None and name != "observed":
            whole = all(bool((part.steps.diff(dim=1) == 1).all()) for part in data)
            name = name if whole else "observed"
        return _LOOKAHEADS[name](self)

    def _branched(self, data: Replay) -> Replay:
        """With the fresh noise that networks use, drawn once: a denoiser costs more than they do."""
        lookahead = self._lookahead([data])
        if isinstance(lookahead, FreshNoise) and isinstance(self.policy.value, NetworkValue):
            return data.branched(lookahead.branches)
        return data

    def _place(self, value: Value, data: Replay) -> None:
        log_returns = data.log_returns.double()
        value.standardise.fit(data.inputs.flatten(0, 1), apart=self.policy.warm)
        value.wind(data.steps, data.inputs)
        value.offset.copy_(log_returns.logsumexp(0) - math.log(len(log_returns)))
        if isinstance(value, NeuralValue) and self.policy.warm and len(log_returns) > 1:
            value.unit.copy_(log_returns.std().clamp(min=1.0))
        if isinstance(value, LinearValue):
            value.weights.zero_()
            value.place(data.steps.flatten(), data.inputs.flatten(0, 1), self.generator)

    def _prepare(self, data: Replay, anew: bool) -> None:
        """What networks learn before log f follows its equation."""
        if self.policy.needs_noise and (data.noises is None or data.controls is None):
            name = type(self.policy).__name__
            raise ValueError(f"data must hold noises and controls of every step for {name}; got a recording without")
        if self.policy.resamples:
            density = every_density(self.policy.value, data, self.max_weight)
            for name, number in self.policy.prepare(data, density, anew, self.generator).items():
                self.logger.record(name, number)
        if anew and self.policy.warm:
            self._warm_up(data)

    def _warm_up(self, data: Replay, steps: int = 150) -> None:
        """Start log f from the expected reward to go, as linear classes do.

        Single steps take very many gradient steps to carry a reward from the horizon to the start, where it is paid on the way.
        """
        learner = self.learner["value"]
        assert self.optimizer is not None and isinstance(learner, NetworkValue)
        self.set_learning_rate(self.optimizer)
        to_go = (data.log_reward[:, -1] + data.log_terminal)[:, None] - data.log_reward
        seen = data.seen.nonzero()[:, 0]
        for _ in range(steps):
            size, device = (self.batch_size,), seen.device
            row = seen[torch.randint(len(seen), size, generator=self.generator, device=device)]
            visit = torch.randint(data.steps.shape[1], size, generator=self.generator, device=device)
            guess = learner.members(data.steps[row, visit], data.inputs[row, visit])
            loss = 0.5 * (to_go[row, visit] - guess).square().mean()
            descend(loss, self.learner, self.optimizer, self._trained(), self.averaging)

    def _regress(self, data: Replay, gradient_steps: int) -> None:
        average, learner = self.policy.value, self.learner["value"]
        assert self.optimizer is not None and isinstance(learner, NetworkValue)
        self.set_learning_rate(self.optimizer)
        lookahead = self._lookahead([data])
        mean_span = 1.0 if lookahead.fresh else self.mean_span or self.policy.mean_span
        held = average.bounds
        total, bound_hit = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        chances = None
        for i in range(gradient_steps):
            if self.policy.resamples and i % _REDRAWN == 0:
                chances = every_density(average, data, self.max_weight)
            batch = sample_spans(data, self.batch_size, mean_span, self.problem.horizon, self.generator, chances)
            log_target = log_targets(average, batch, data, lookahead)
            weight = densities(average, batch, self.max_weight) if chances is None else torch.ones_like(log_target)
            loss = relative_residual_loss(learner, batch, log_target, weight)
            total += loss.detach()
            if self.gradient_penalty:
                loss = loss + self.gradient_penalty * self._energy(learner, batch, data, weight)
            if isinstance(self.policy, NoisePolicy):
                loss = loss + self._noise_loss(data)
            descend(loss, self.learner, self.optimizer, self._trained(), self.averaging)
            bound_hit += ((log_target <= held[0]) | (log_target >= held[1])).float().mean()
        self._n_updates += gradient_steps
        self.logger.record("train/variational_residual", float(total) / gradient_steps)
        self.logger.record("train/bound_hit_share", float(bound_hit) / gradient_steps)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _energy(self, learner: NetworkValue, batch: Spans, data: Replay, weight: Tensor, most: int = 64) -> Tensor:
        """Weighted mean square of ``J_z^T grad log f`` at a part of the batch: each costs two derivatives of a transition."""
        rows = (batch.later_k == batch.k + 1).nonzero()[:most, 0]
        k, x = batch.k[rows], data.states[batch.row[rows], batch.visit[rows]]
        problem = self.policy.problem
        z = x.new_zeros(len(x), *problem.noise_shape).requires_grad_()
        later = encode(problem, k + 1, problem.transition(k, x, z)).float()
        (slope,) = torch.autograd.grad(learner(k + 1, later).sum(), z, create_graph=True)
        return (weight[rows] * slope.flatten(1).square().sum(1)).mean()

    def _weigh_rounds(self) -> None:
        """Weigh each round by one over the noise of its targets: small where its control was near the optimum."""
        value = self.policy.value
        noise = []
        for data in self.rounds:
            batch = sample_spans(data, 4096, 1.0, self.problem.horizon, self.generator)
            gap = log_targets(value, batch, data, self._lookahead([data])) - value.bounded(batch.k, batch.x)
            noise.append(capped_exp(gap)[batch.k < self.problem.horizon].square().mean())
        precision = 1 / torch.stack(noise).clamp(min=1e-12)
        for i, share in enumerate(precision / precision.max()):
            self.rounds[i] = self.rounds[i]._replace(precision=torch.full_like(self.rounds[i].precision, float(share)))

    def _noise_loss(self, data: Replay) -> Tensor:
        """Weighted square distance of the control to its sampled optimum (see NoisePolicy)."""
        assert data.noises is not None and data.controls is not None
        n, visits = data.steps.shape
        row = torch.randint(n, (self.batch_size,), generator=self.generator, device=self.device)
        visit = torch.randint(visits - 1, (self.batch_size,), generator=self.generator, device=self.device)
        batch = spans(data, row, visit, visit + 1, self.problem.horizon)
        value, policy = self.policy.value, self.policy
        assert isinstance(policy, NoisePolicy)
        with torch.no_grad():
            gap = log_targets(value, batch, data, Observed()) - value.bounded(batch.k, batch.x)
            weight = densities(value, batch, self.max_weight)
            noise, control = data.noises[row, visit].flatten(1), data.controls[row, visit].flatten(1)
            target = (control + capped_exp(gap)[:, None] * noise).float()
        network: Any = self.learner["noise"]
        return (weight[:, None] * (policy.output(network, batch.k, batch.x) - target).square()).mean()

    def _solve(self, parts: Iterable[Replay], cold: bool) -> None:
        policy, first = self.policy, next(iter(parts))
        incumbent = copy.deepcopy(policy.value)
        lookahead = self._lookahead(parts)
        grid = STEPWISE_RIDGES if policy.value.stepwise else _RIDGES
        ridges = [self.ridge] if self.ridge is not None else grid if self.select else [1e-4]

        def fitted(value: Any, split: Split, form: Lookahead, passes: int, cold: bool) -> Fit:
            if value.stepwise:
                return fit_backward(value, split, form, incumbent, ridges, self.max_weight)
            span = round(self.mean_span or 1)
            return fit_linear(value, split, form, incumbent, ridges, self.max_weight, span, passes, cold, thin=thin)

        given = {key: v for key, v in self._given.items() if key not in ("draws", "iterations")}
        settings = [c for c in policy.candidates if not set(c) & set(given)]
        few = Split.few(first)
        passes, best, thin = 5 if cold else 3, None, cold
        if cold and self.select and len(settings) > 1 and few.held is not None:
            for setting in settings:
                value = policy.make_value(**{**setting, **given}).to(self.device)
                self._place(value, first)
                value.bounds.copy_(incumbent.bounds)
                fit = fitted(value, few, lookahead.rough(), 5 if value.linear_in_weights else _COMPARING, True)
                if best is None or clearly_less(fit.held_out, best.held_out):  # leave the default, the first, for a reason
                    best, chosen = fit, setting
            assert best is not None
            self.policy_kwargs = {**self.policy_kwargs, **chosen}
            policy.value, passes, cold = best.value, 5 if best.value.linear_in_weights else 3, False  # proximal steps are short
        fit = fitted(policy.value, Split.of(parts), lookahead, passes, cold)
        alike = isinstance(policy.value, ExponentialValue) and not policy.value.stepwise
        if alike and self.ridge is None and isinstance(lookahead, FreshNoise):
            rescue(policy.value, first, lookahead, self.max_weight)
        self._n_updates += 1
        self._start_learner()
        self.logger.record("train/ridge", fit.ridge)
        self.logger.record("train/held_out_residual", float(fit.held_out.mean()))
        self.logger.record("train/variational_residual", float(fit.system.divergence / fit.system.total.clamp(min=1)))


#: Gradient steps after which the chances of being drawn are found anew.
_REDRAWN = 25
#: Passes over the data before settings are compared: the reward to go, and two of Newton's steps from there.
_COMPARING = 3
#: For weights that serve all steps, and for those of single steps (see ``backward``).
_RIDGES = (1e-8, 1e-7, 1e-6, 1e-5, 1e-3, 1.0)


def _bar(total: int, shown: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, disable=not shown, desc="fit")
