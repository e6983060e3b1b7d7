"""PDE: fine-tuning as supervised regression (Mou 2025).

Cole-Hopf, ``f = exp(V / temperature)``, turns the Hamilton-Jacobi-Bellman equation into a linear one. It is solved as a
variational inequality on paths whose rewards are a black box: first uncontrolled ones, then paths of the current policy,
which stay unbiased for the same equation through their one-step Girsanov weights. The policy is the gradient of ``log f``.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from gymnasium import spaces
from torch import Tensor

from ..envs.env import device_of
from ..envs.problem import Problem, Trajectories
from .base import ControlPolicy, ProblemAgent, check_range, descend
from .function_classes import NeuralValue, RadialValue, encode
from .variational import Replay, assemble, relative_residual_loss, sample_spans, solve_positive


class ValueGradientPolicy(ControlPolicy):
    """``a_k(x) = grad_z log E_W f_{k+1}(F_k(x, z + W))`` at ``z = 0``, clipped to the action bound.

    Args:
        value: maps ``(k, encoded state)`` to ``log f``.
        draws: antithetic pairs of noise that smooth the gradient; 0 takes it at ``W = 0``.
    """

    value: NeuralValue | RadialValue
    noise: Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        problem: Problem,
        draws: int = 0,
        **value_kwargs: Any,
    ) -> None:
        super().__init__(observation_space, action_space, problem)
        with torch.no_grad():
            generator = torch.Generator(device_of(problem)).manual_seed(0)
            n_inputs = encode(problem, 0, problem.initial(2, generator)).shape[1]
        self.value = self.make_value(n_inputs, problem.horizon, **value_kwargs)
        self.draws = draws
        # fixed and the same for every state: the policy is a function, and costs no random numbers
        half = torch.randn(draws, *problem.noise_shape, generator=torch.Generator().manual_seed(1))
        self.register_buffer("noise", torch.cat([half, -half]))

    def make_value(self, n_inputs: int, horizon: int, **kwargs: Any) -> NeuralValue | RadialValue:
        """The function class of ``log f``."""
        raise NotImplementedError("abstract: use MlpPolicy or RadialPolicy")

    def control(self, k: int | Tensor, x: Tensor) -> Tensor:
        """See the class."""
        n = len(x)
        z = x.new_zeros(n, *self.problem.noise_shape)
        with torch.enable_grad():
            z.requires_grad_()
            if self.draws:
                noisy = (z + self.noise.to(x)[:, None]).flatten(0, 1)
                steps = k if isinstance(k, int) else k.repeat(2 * self.draws)
                later = self.problem.transition(steps, x.repeat(2 * self.draws, *[1] * (x.dim() - 1)), noisy)
                log_f = self.value(steps + 1, encode(self.problem, steps + 1, later).float())
                total = torch.logsumexp(log_f.view(-1, n), 0).sum()
            else:
                later = self.problem.transition(k, x, z)
                if not later.requires_grad:
                    raise ValueError(f"PDE needs a transition that autograd can follow; {type(self.problem).__name__}'s is not")
                total = self.value(k + 1, encode(self.problem, k + 1, later).float()).sum()
            (gradient,) = torch.autograd.grad(total, z)
        return gradient.clamp(-self.action_bound, self.action_bound)


class MlpPolicy(ValueGradientPolicy):
    """``log f`` is an ensemble of networks."""

    def make_value(self, n_inputs: int, horizon: int, **kwargs: Any) -> NeuralValue:
        """See NeuralValue."""
        return NeuralValue(n_inputs, horizon, **kwargs)


class RadialPolicy(ValueGradientPolicy):
    """``f`` is a non-negative combination of Gaussian bumps."""

    def make_value(self, n_inputs: int, horizon: int, **kwargs: Any) -> RadialValue:
        """See RadialValue."""
        return RadialValue(n_inputs, horizon, **kwargs)


class PDE(ProblemAgent):
    """Regression instead of reinforcement learning.

    Args:
        policy: ``"MlpPolicy"`` (networks) or ``"RadialPolicy"`` (positive radial bases), or a ``ValueGradientPolicy`` class.
        env: an environment, a vector environment, a registered id, or a bare Problem whose transition is differentiable in
            its noise. The reward is a black box.
        n_uncontrolled: paths gathered without control before the first adaptive round.
        n_trajectories: paths gathered by the current policy in each later round (adaptive sampling).
        gradient_steps: of the network, in each round.
        batch_size: observations in a gradient step.
        mean_span: mean distance in steps between an observation and its target: 1 is one-step regression, ``horizon`` and
            more tends to Monte-Carlo regression.
        max_weight: largest weight of one sample.
        averaging: decay of the averaged network, which gives targets and policy.
        weight_decay: of AdamW.
        ridge: added to the matrix of the linear class.
        learning_rate: of AdamW; a number or an SB3 schedule.

    The other arguments are stable-baselines3's.
    """

    policy_aliases: ClassVar[dict[str, Any]] = {"MlpPolicy": MlpPolicy, "RadialPolicy": RadialPolicy}
    policy: ValueGradientPolicy
    hyperparameters: ClassVar[tuple[str, ...]] = (
        *ProblemAgent.hyperparameters,
        *("n_uncontrolled", "gradient_steps", "batch_size", "mean_span", "max_weight", "averaging", "weight_decay", "ridge"),
    )

    def __init__(
        self,
        policy: str | type[ControlPolicy] = "MlpPolicy",
        env: Any = None,
        learning_rate: Any = 1e-3,
        n_uncontrolled: int = 100,
        n_trajectories: int = 50,
        gradient_steps: int = 40,
        batch_size: int = 512,
        mean_span: float = 5.0,
        max_weight: float = 5.0,
        averaging: float = 0.98,
        weight_decay: float = 1e-2,
        ridge: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        check_range("n_uncontrolled", n_uncontrolled, 2)
        check_range("gradient_steps", gradient_steps, 1)
        check_range("batch_size", batch_size, 1)
        check_range("mean_span", mean_span, 1)
        check_range("averaging", averaging, 0, 1)
        self.n_uncontrolled = n_uncontrolled
        self.gradient_steps = gradient_steps
        self.batch_size = batch_size
        self.mean_span = mean_span
        self.max_weight = max_weight
        self.averaging = averaging
        self.weight_decay = weight_decay
        self.ridge = ridge
        self.replay: Replay | None = None
        super().__init__(policy, env, learning_rate, n_trajectories, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        self.learner = copy.deepcopy(self.policy.value)  # what gradients move; the policy holds its average
        parameters = list(self.learner.parameters())
        self.optimizer = torch.optim.AdamW(parameters, weight_decay=self.weight_decay) if parameters else None

    def networks(self) -> dict[str, Any]:
        """See ProblemAgent."""
        optimizer = {} if self.optimizer is None else {"optimizer": self.optimizer}
        return {**super().networks(), "learner": self.learner, **optimizer}

    def forget(self) -> None:
        """See ProblemAgent."""
        self.replay = None

    def iterate(self) -> None:
        """One round: gather paths, extend the replay, regress."""
        first = self.reward_queries == 0
        paths = self.collect(None if first else self.policy.control, self.n_uncontrolled if first else None)
        fresh = self.encode_paths(paths)
        if self._n_updates == 0:
            self._start(fresh)
        self.replay = fresh if self.replay is None else self.replay.extended(fresh)
        log_returns = fresh.log_returns
        ess = torch.exp(2 * log_returns.logsumexp(0) - (2 * log_returns).logsumexp(0))
        clipped = (paths.controls.abs() >= self.policy.action_bound).float().mean()
        self.logger.record("train/effective_sample_share", float(ess) / len(log_returns))
        self.logger.record("train/clipped_share", float(clipped))
        if isinstance(self.learner, RadialValue):
            self._solve()
        else:
            self._regress()

    def encode_paths(self, paths: Trajectories) -> Replay:
        """Trajectories as regression data."""
        beta = self.problem.temperature
        with torch.no_grad():
            inputs = torch.stack([encode(self.problem, k, x).float() for k, x in enumerate(paths.states)], 1)
        reward = _summed(paths.running_rewards / beta)
        return Replay(inputs, reward + _summed(paths.log_ratios), reward, (paths.terminal_reward / beta).float())

    def _start(self, data: Replay) -> None:
        """Units from the first data: inputs standardised, f in units of its mean."""
        for value in (self.learner, self.policy.value):
            value.standardise.fit(data.inputs.flatten(0, 1))
            value.offset.copy_(data.log_returns.logsumexp(0) - torch.log(torch.tensor(float(len(data.log_returns)))))
        if isinstance(self.learner, RadialValue):
            n, steps, p = data.inputs.shape
            pick = torch.randint(n * steps, (len(self.learner.weights),), generator=self.generator, device=self.device)
            self.learner.place(pick % steps, data.inputs.reshape(-1, p)[pick])
            self.learner.weights.fill_(1.0)

    def _regress(self) -> None:
        average = self.policy.value
        assert self.replay is not None and self.optimizer is not None
        assert isinstance(self.learner, NeuralValue) and isinstance(average, NeuralValue)
        self.set_learning_rate(self.optimizer)
        bounds = self.replay.bounds
        total = torch.zeros((), device=self.device)
        for _ in range(self.gradient_steps):
            batch = sample_spans(self.replay, self.batch_size, self.mean_span, self.generator)
            loss = relative_residual_loss(self.learner, average, batch, bounds, self.max_weight)
            descend(loss, self.learner, self.optimizer, average, self.averaging)
            total += loss.detach()
        self._n_updates += self.gradient_steps
        self.logger.record("train/variational_residual", float(total) / self.gradient_steps)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _solve(self) -> None:
        assert self.replay is not None and isinstance(self.learner, RadialValue)
        for _ in range(3):  # the relative weights depend on f: a few passes settle them
            matrix, vector = assemble(self.learner, self.replay, self.ridge, self.max_weight)
            self.learner.weights.copy_(solve_positive(matrix, vector))
            self._n_updates += 1
        self.policy.value.load_state_dict(self.learner.state_dict())
        self.logger.record("train/active_bumps", int((self.learner.weights > 0).sum()))


def _summed(steps: Tensor) -> Tensor:
    """Sums of ``steps`` (T, n) over j < k for k = 0..T, path first: ``(n, T + 1)``, float32."""
    total = steps.cumsum(0).T.float()
    return torch.cat([torch.zeros_like(total[:, :1]), total], 1)
