"""How log f is learnt: networks by gradient steps, linear classes by solving.

``PDE`` gathers the data; everything here sees them as ``Replay``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..base import ProblemAgent, descend
from ..networks import NetworkValue, Value, encode
from ..trees import to
from .backward import STEPWISE_RIDGES, fit_backward, rescue
from .classes.linear import ExponentialValue, LinearValue
from .collecting.batches import Batches
from .learned_transition import ModelPolicy
from .lookahead import LOOKAHEADS, FreshNoise, Lookahead, Observed
from .policies import NoisePolicy, ValuePolicy
from .replay import Replay, Spans, sample_spans, spans, wider
from .selection import Fit, Split, clearly_less, fit_linear
from .settings import Collection, Fitting, Selection, Targets
from .variational import (
    capped_exp,
    check_neighbours,
    counted,
    densities,
    every_density,
    log_targets,
    relative_residual_loss,
)


class Regression(ProblemAgent):
    """An agent that learns log f; ``PDE`` says what its settings mean."""

    policy: ValuePolicy
    collection: Collection
    targets: Targets
    fitting: Fitting
    selection: Selection
    rounds: list[Replay]
    _given: dict[str, Any]  # what model selection must not change

    def _start_learner(self) -> None:
        # what gradients move; the policy holds its average
        self.learner = copy.deepcopy(self._trained())
        parameters, decay = list(self.learner.parameters()), self.fitting.weight_decay
        adam = torch.optim.AdamW
        self.optimizer = adam(parameters, weight_decay=decay, fused=True) if parameters else None

    def _trained(self) -> nn.ModuleDict:
        noise = {"noise": self.policy.network} if isinstance(self.policy, NoisePolicy) else {}
        return nn.ModuleDict({"value": self.policy.value, **noise})

    def networks(self) -> dict[str, Any]:
        """See ProblemAgent."""
        own: dict[str, Any] = {} if self.optimizer is None else {"optimizer": self.optimizer}
        if isinstance(self.policy, ModelPolicy):
            own["transition_optimizer"] = self.policy.model.optimizer
        return {**super().networks(), "learner": self.learner, **own}

    def training_state(self) -> dict[str, Any]:
        """See SavedAgent."""
        chosen = {"policy_kwargs": self.policy_kwargs, "rounds": self.rounds}
        return {**super().training_state(), **chosen}

    def set_training_state(self, state: dict[str, Any]) -> None:
        """See SavedAgent; a function class that was chosen is made anew."""
        if state["policy_kwargs"] != json.loads(json.dumps(self.policy_kwargs)):
            self.policy_kwargs = state["policy_kwargs"]
            made: Any = self.policy_class(
                self.observation_space, self.action_space, self.problem, **self.policy_kwargs
            )
            self.policy = made.to(self.device)
            self._start_learner()
        super().set_training_state(state)
        self.rounds = [Replay(*to(parts, self.device)) for parts in state["rounds"]]

    def _set_up_logger(self) -> None:
        from stable_baselines3.common import utils

        if not self._custom_logger and not hasattr(self, "_logger"):
            self._logger = utils.configure_logger(
                self.verbose, self.tensorboard_log, type(self).__name__, True
            )

    def _begin(self, data: Replay, anew: bool) -> None:
        """Units and bounds from the first data.

        Inputs are standardised, and f is in units of its mean.
        """
        self.logger.record("train/effective_sample_share", data.effective_share)
        twin: Any = self.learner["value"]
        for one in (self.policy.value, twin):
            if anew:
                self._place(one, data)
            seen = data.bounds(one.offset)
            one.bounds.copy_(seen if anew else wider(one.bounds, seen))

    def _lookahead(self, data: Iterable[Replay]) -> Lookahead:
        usual = "observed" if self.collection.imagined else self.policy.lookahead
        name = self.targets.lookahead or usual
        if self.targets.lookahead is None and name != "observed":
            whole = all(bool((part.steps.diff(dim=1) == 1).all()) for part in data)
            name = name if whole else "observed"
        draws = self.targets.draws or (1 if name == "fresh" and self.policy.dear else 0)
        return LOOKAHEADS[name](self.policy.problem, draws, self.generator)

    def _branched(self, data: Replay) -> Replay:
        """With the fresh noise that networks use, drawn once.

        A denoiser costs more than they do.
        """
        lookahead = self._lookahead([data])
        known = data.branches is not None or not isinstance(self.policy.value, NetworkValue)
        if isinstance(lookahead, FreshNoise) and not known:
            return data.branched(lookahead.branches)
        return data

    def _place(self, value: Value, data: Replay) -> None:
        scale = data.scale(self.problem.horizon)
        value.standardise.fit(data.inputs.flatten(0, 1), apart=self.policy.apart)
        value.wind(data.steps, data.inputs)
        value.offset.copy_(scale.level)
        if isinstance(value, NetworkValue) and self._warm(data):
            value.unit.copy_(scale.spread.clamp(min=1.0))
        if isinstance(value, LinearValue):
            value.weights.zero_()
            value.place(data.steps.flatten(), data.inputs.flatten(0, 1), self.generator)

    def _prepare(self, data: Replay, anew: bool) -> None:
        """What networks learn before log f follows its equation."""
        if self.policy.needs_noise and (data.noises is None or data.controls is None):
            name = type(self.policy).__name__
            raise ValueError(
                f"data must hold noises and controls of every step for {name}; got a recording"
                " without"
            )
        if self.policy.resamples and self.policy.needs_noise:
            density = every_density(self.policy.value, data, self.targets.max_weight)
            for name, number in self.policy.prepare(data, density, anew, self.generator).items():
                self.logger.record(name, number)
        if anew and self._warm(data):
            self._warm_up(data)

    def _warm(self, data: Replay) -> bool:
        # what few free paths earn at their ends alone is mostly chance, and not soon forgotten
        return self.policy.warm and data.paid_on_the_way

    def _warm_up(self, data: Replay, steps: int = 150) -> None:
        """Start log f from the expected reward to go, as linear classes do.

        Single steps take very many gradient steps to carry a reward from the horizon to the start,
        where it is paid on the way.
        """
        learner = self.learner["value"]
        assert self.optimizer is not None and isinstance(learner, NetworkValue)
        self.set_learning_rate(self.optimizer)
        to_go, seen = data.log_reward_to_go, data.seen.nonzero()[:, 0]
        for _ in range(steps):
            size, device = (self.fitting.batch_size,), seen.device
            one = torch.randint(len(seen), size, generator=self.generator, device=device)
            row, visits = seen[one], data.steps.shape[1]
            visit = torch.randint(visits, size, generator=self.generator, device=device)
            k = data.steps[row, visit]
            guess = learner.members(k, data.inputs[row, visit])
            loss = 0.5 * ((to_go[one, visit] - guess) / learner.unit[k]).square().mean()
            descend(loss, self.learner, self.optimizer, self._trained(), self.fitting.averaging)

    def _regress(self, data: Replay, gradient_steps: int) -> None:
        """Semi-gradient steps of a network towards the solution of the variational equation."""
        average, learner = self.policy.value, self.learner["value"]
        assert self.optimizer is not None and isinstance(learner, NetworkValue)
        self.set_learning_rate(self.optimizer)
        form, fitting, most = self._lookahead([data]), self.fitting, self.targets.max_weight
        check_neighbours(data, form)
        usual = _IMAGINED_SPAN if self.collection.imagined else self.policy.mean_span
        span = 1.0 if form.fresh else self.targets.mean_span or usual
        horizon = self.problem.horizon
        total, bound_hit = torch.zeros(2, device=self.device)
        resamples = self.policy.resamples
        batches = Batches(data, fitting.batch_size, span, horizon, most, resamples, self.generator)
        for _ in range(gradient_steps):
            batch, weight, drawn = batches.draw(average)
            log_target = log_targets(average, batch, drawn, form)
            loss = relative_residual_loss(learner, batch, log_target, weight, data.steps.numel())
            total += loss.detach()
            if fitting.gradient_penalty:
                energy = self._energy(learner, batch, drawn, weight)
                loss = loss + fitting.gradient_penalty * energy
            if isinstance(self.policy, NoisePolicy):
                loss = loss + self._noise_loss(data)
            descend(loss, self.learner, self.optimizer, self._trained(), fitting.averaging)
            bound_hit += (average.within(batch.k, log_target) != log_target).float().mean()
        self._n_updates += gradient_steps
        self.logger.record("train/variational_residual", float(total) / gradient_steps)
        self.logger.record("train/bound_hit_share", float(bound_hit) / gradient_steps)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _energy(
        self, learner: NetworkValue, batch: Spans, data: Replay, weight: Tensor, most: int = 64
    ) -> Tensor:
        """Weighted mean square of ``J_z^T grad log f`` at a part of the batch.

        Each costs two derivatives of a transition.
        """
        problem, neighbours = self.policy.problem, batch.later_k == batch.k + 1
        rows = counted(neighbours)[:most]
        k = batch.k[rows].clamp(max=problem.horizon - 1)
        x, counts = data.states[batch.row[rows], batch.visit[rows]], neighbours[rows]
        z = x.new_zeros(len(x), *problem.noise_shape).requires_grad_()
        later = encode(problem, k + 1, problem.transition(k, x, z)).float()
        (slope,) = torch.autograd.grad(learner(k + 1, later).sum(), z, create_graph=True)
        energy = weight[rows] * slope.flatten(1).square().sum(1)
        return (energy * counts).sum() / counts.sum()

    def _solve_rounds(self, cold: bool) -> None:
        """Solve a linear class's equation on all rounds."""
        rounds = self.rounds
        if self.policy.value.stepwise:  # fitted from scratch, hence free to follow the data
            every, value = Replay.joined(rounds), self.policy.value
            self._place(value, every)
            value.bounds.copy_(every.bounds(value.offset))
        else:
            self._weigh_rounds()
            # the first lends paths to judge by, and near the optimum these judge sharply
            rounds = self.rounds[::-1]
        self._solve(rounds, cold)

    def _weigh_rounds(self) -> None:
        """Weigh each round by one over the noise of its targets.

        It is small where its control was near the optimum.
        """
        value = self.policy.value
        noise = []
        for data in self.rounds:
            batch = sample_spans(data, 4096, 1.0, self.problem.horizon, self.generator)
            log_target = log_targets(value, batch, data, self._lookahead([data]))
            gap = log_target - value.bounded(batch.k, batch.x)
            excess = capped_exp(gap, len(gap))
            noise.append(excess[batch.k < self.problem.horizon].square().mean())
        precision = 1 / torch.stack(noise).clamp(min=1e-12)
        for i, share in enumerate(precision / precision.max()):
            one = torch.ones_like(self.rounds[i].precision)
            self.rounds[i] = self.rounds[i]._replace(precision=one * share.to(one))

    def _noise_loss(self, data: Replay) -> Tensor:
        """Weighted square distance of the control to its sampled optimum (see NoisePolicy)."""
        assert data.noises is not None and data.controls is not None
        (n, visits), size = data.steps.shape, (self.fitting.batch_size,)
        row = torch.randint(n, size, generator=self.generator, device=self.device)
        visit = torch.randint(visits - 1, size, generator=self.generator, device=self.device)
        batch = spans(data, row, visit, visit + 1, self.problem.horizon)
        value, policy = self.policy.value, self.policy
        assert isinstance(policy, NoisePolicy)
        with torch.no_grad():
            gap = log_targets(value, batch, data, Observed()) - value.bounded(batch.k, batch.x)
            weight = densities(value, batch, self.targets.max_weight)
            noise, control = (part[row, visit].flatten(1) for part in (data.noises, data.controls))
            excess = capped_exp(gap, data.steps.numel())
            target = (control + excess[:, None] * noise).float()
        network: Any = self.learner["noise"]
        return (
            weight[:, None] * (policy.output(network, batch.k, batch.x) - target).square()
        ).mean()

    def _solve(self, parts: Iterable[Replay], cold: bool) -> None:
        """Solve the variational inequality over a linear class, of a length scale that it chooses.

        Args:
            parts: the data.
            cold: start from the expected reward to go, and choose.
        """
        policy, first = self.policy, next(iter(parts))
        incumbent, form = copy.deepcopy(policy.value), self._lookahead(parts)
        passes, thin = 5 if cold else 3, cold
        if cold and self.selection.select:
            chosen = self._chosen(first, incumbent, form.rough())
            if chosen is not None:  # proximal steps are short
                policy.value = chosen
                passes, cold = 5 if chosen.linear_in_weights else 3, False
        fit = self._fitted(policy.value, Split.of(parts), form, incumbent, passes, cold, thin)
        alike = isinstance(policy.value, ExponentialValue) and not policy.value.stepwise
        if alike and self.selection.ridge is None and isinstance(form, FreshNoise):
            rescue(policy.value, first, form, self.targets.max_weight)
        self._n_updates += 1
        self._start_learner()
        residual = fit.system.divergence / fit.system.total.clamp(min=1)
        self.logger.record("train/ridge", fit.ridge)
        self.logger.record("train/held_out_residual", float(fit.held_out.mean()))
        self.logger.record("train/variational_residual", float(residual))

    def _chosen(self, first: Replay, incumbent: Value, form: Lookahead) -> LinearValue | None:
        """The candidate of the least held-out residual, fitted to some of the first data.

        None where there is nothing to choose from, or to choose by.
        """
        given = {key: v for key, v in self._given.items() if key not in ("draws", "iterations")}
        candidates = [c for c in self.policy.candidates if not set(c) & set(given)]
        few, best = Split.few(first), None
        if len(candidates) < 2 or few.held is None:
            return None
        for candidate in candidates:
            value: Any = self.policy.make_value(**{**candidate, **given}).to(self.device)
            self._place(value, first)
            value.bounds.copy_(incumbent.bounds)
            passes = 5 if value.linear_in_weights else _COMPARING
            fit = self._fitted(value, few, form, incumbent, passes, cold=True, thin=True)
            # leave the default, the first, for a reason
            if best is None or clearly_less(fit.held_out, best.held_out):
                best, chosen = fit, candidate
        assert best is not None
        self.policy_kwargs = {**self.policy_kwargs, **chosen}
        return best.value

    def _fitted(
        self,
        value: Any,
        split: Split,
        form: Lookahead,
        incumbent: Value,
        passes: int,
        cold: bool,
        thin: bool,
    ) -> Fit:
        selection, most = self.selection, self.targets.max_weight
        grid = STEPWISE_RIDGES if value.stepwise else _RIDGES
        ridges = grid if selection.select else (1e-4,)
        ridges = ridges if selection.ridge is None else (selection.ridge,)
        if value.stepwise:
            return fit_backward(value, split, form, incumbent, ridges, most)
        span = round(self.targets.mean_span or 1)
        return fit_linear(
            value, split, form, incumbent, ridges, most, span, passes, cold, thin=thin
        )


#: Mean distance to an observed target where all paths are of the current, hence calm policy.
_IMAGINED_SPAN = 10.0
#: Passes over the data before settings are compared: the reward to go, and two of Newton's steps.
_COMPARING = 3
#: For weights that serve all steps, and for those of single steps (see ``backward``).
_RIDGES = (1e-8, 1e-7, 1e-6, 1e-5, 1e-3, 1.0)
