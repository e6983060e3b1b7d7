"""What DPOK, DDPO and adjoint matching share: a network of the control, sampled on its own paths,
and gradient steps.

All three fine-tune the Gaussian steps of a diffusion model. In noise units (MATH.md section 1) a
step ``N(mean, sigma^2)`` is the law ``N(a, I)`` of ``z = a + W``, whatever the transition makes of
z, so they run on every Problem. In the papers' terms, the network moves the mean of step k by
``sigma_k a``, and

    log p(z | x) / p_old(z | x) = (a - a_old) . W - |a - a_old|^2 / 2    (z = a_old + W),    KL to
    the pre-trained = |a|^2 / 2,

both exact sums over dimensions; the papers' public codes average them, so their clip ranges are not
these.

Here and in ``step_policies`` alone ``baselines`` uses ``agents``: SB3's interface, checkpoints and
counters (``agents.base``), checks of arguments (``agents.checks``), the control's network and
inputs (``agents.function_classes``) and the adapters of a pipeline's network
(``agents.lora_control``) are the agents' own, so that a difference in score is a difference of
algorithm. No learner is imported.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ..agents.base import ProblemAgent
from ..agents.checks import check_range, check_whole
from ..envs.env import as_env, problem_of
from ..envs.problem import Trajectories, check_positive
from .hyperparameters import settings_for
from .step_policies import LoraPolicy, MlpPolicy, StepPolicy

SelfTuner = TypeVar("SelfTuner", bound="FineTuner")
Rows = TypeVar("Rows", bound=tuple[Tensor, ...])


def rows_of(steered: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
    """Columns ``(T, n, ...)`` as ``(N, ...)``: a row a step of a path, those without noise left
    out.
    """
    return tuple(column[steered].flatten(0, 1) for column in columns)


class Steps(NamedTuple):
    """Steps of sampled paths, one row each; those without noise left out."""

    k: Tensor  # (N,)
    inputs: Tensor  # (N, p): encoded states
    noise: Tensor  # (N, m): W
    control: Tensor  # (N, m): a of the policy that sampled
    advantage: Tensor  # (N,): what the algorithm weighs the step's likelihood by
    price: Tensor  # (N,): of one nat of this step's KL, in the advantage's units

    @classmethod
    def of(
        cls,
        policy: StepPolicy,
        paths: Trajectories,
        inputs: Tensor,
        advantage: Tensor,
        price: Tensor,
    ) -> Steps:
        """Rows of ``n`` paths of T steps; ``inputs`` ``(T, n, p)``, ``advantage`` ``(T, n)``,
        ``price`` a number.
        """
        horizon, n = advantage.shape
        steps = torch.arange(horizon, device=inputs.device)
        columns = (
            *(
                steps[:, None].expand(horizon, n),
                inputs,
                paths.noises.flatten(2),
                paths.controls.flatten(2),
            ),
            *(advantage, price.expand(horizon, n)),
        )
        rows = rows_of(policy.steered, *columns)
        return cls(*(row.to(inputs.dtype) if row.is_floating_point() else row for row in rows))


class Move(NamedTuple):
    """A policy against the one that sampled, on rows of ``Steps``."""

    ratio: Tensor  # (N,): p(z | x) / p_old(z | x)
    kl: Tensor  # (N,): to the pre-trained model, |a|^2 / 2


def move(policy: StepPolicy, steps: Steps) -> Move:
    """The likelihood ratio and the KL of the module's docstring, differentiable in the policy's
    parameters.
    """
    a = policy.output(steps.k, steps.inputs)
    change = a - steps.control
    return Move((change * (steps.noise - 0.5 * change)).sum(1).exp(), 0.5 * a.square().sum(1))


def returns_to_go(paths: Trajectories, temperature: float, kl_in_reward: bool = True) -> Tensor:
    """What is still to be earned from step k on, ``(T, n)``: rewards, less the price of the KL of
    LATER steps.

    The KL of step k itself is a function of the parameters, not of the noise, and is differentiated
    as such. With it, ``E sum_k [ grad log p(z_k | x_k) to_go_k - temperature grad |a_k|^2 / 2 ]``
    is the gradient of J (the policy gradient theorem). ``kl_in_reward=False`` leaves later KL out:
    DPOK's estimator, which is blind to how a step changes it.
    """
    earned = paths.running_rewards.flip(0).cumsum(0).flip(0) + paths.terminal_reward
    if not kl_in_reward:
        return earned
    kl = 0.5 * paths.controls.flatten(2).square().sum(2)
    return earned - temperature * (kl.flip(0).cumsum(0).flip(0) - kl)


class Descent(NamedTuple):
    """A gradient step, told by tensors: the GPU need not be waited for."""

    loss: Tensor
    norm: Tensor  # of the gradient, before it is clipped


class FineTuner(ProblemAgent):
    """Base of DPOK, DDPO and adjoint matching: sample paths of the present policy, make rows of
    them, take gradient steps.

    Args:
        policy: ``"MlpPolicy"``, a network beside the pre-trained model; ``"LoraPolicy"``, adapters
            inside it, for problems made of a diffusers pipeline; or a ``StepPolicy`` class. Absent:
            ``"LoraPolicy"`` where the problem takes adapters.
        env: an environment, a vector environment, a registered id, or a bare Problem.
        n_trajectories: paths in a round.
        gradient_steps: in a round.
        batch_size: rows (steps of paths) in a gradient step.
        max_grad_norm: gradients are clipped to it.
        weight_decay: of AdamW.
        learning_rate: of AdamW; a number or an SB3 schedule.

    The other arguments are stable-baselines3's.
    """

    policy_aliases: ClassVar[dict[str, Any]] = {"MlpPolicy": MlpPolicy, "LoraPolicy": LoraPolicy}
    policy: StepPolicy
    hyperparameters: ClassVar[tuple[str, ...]] = (
        *ProblemAgent.hyperparameters,
        *("gradient_steps", "batch_size", "max_grad_norm", "weight_decay"),
    )
    #: Tuned settings by problem (``baselines/hyperparameters.py``), used by ``tuned``.
    table: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init__(
        self,
        policy: str | type[StepPolicy] | None,
        env: Any,
        learning_rate: Any,
        n_trajectories: int,
        gradient_steps: int,
        batch_size: int,
        max_grad_norm: float,
        weight_decay: float = 0.0,
        **kwargs: Any,
    ) -> None:
        check_whole("gradient_steps", gradient_steps, 1)
        check_whole("batch_size", batch_size, 1)
        check_positive("max_grad_norm", max_grad_norm)
        check_range("weight_decay", weight_decay, 0)
        self.gradient_steps = gradient_steps
        self.batch_size = batch_size
        self.max_grad_norm = max_grad_norm
        self.weight_decay = weight_decay
        if env is not None:
            env = as_env(env)
        if policy is None:
            policy = (
                "LoraPolicy"
                if env is not None and hasattr(problem_of(env), "adapted_noise")
                else "MlpPolicy"
            )
        super().__init__(policy, env, learning_rate, n_trajectories, **kwargs)

    @classmethod
    def tuned(cls: type[SelfTuner], env: Any, **overrides: Any) -> SelfTuner:
        """The algorithm with the settings of ``table`` for the problem behind ``env``, and
        ``overrides`` on top.
        """
        env = as_env(env)
        return cls(env=env, **{**settings_for(cls.table, problem_of(env)), **overrides})

    def _setup_model(self) -> None:
        super()._setup_model()
        if not isinstance(self.policy, StepPolicy):
            raise ValueError(
                f"policy must be 'MlpPolicy', 'LoraPolicy' or a StepPolicy; got {self.policy_name}"
            )
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), weight_decay=self.weight_decay)

    def networks(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """See ProblemAgent."""
        return {**super().networks(), "optimizer": self.optimizer}

    def forget(self) -> None:
        """See ProblemAgent."""
        self.policy.steered.copy_(self.policy.steered_steps(self.problem))

    @abstractmethod
    def prepare(self, paths: Trajectories, inputs: Tensor) -> Any:
        """Rows to learn from, a NamedTuple of tensors ``(N, ...)``, of fresh paths and their
        encoded states ``(T, n, p)``.
        """

    @abstractmethod
    def loss(self, rows: Any) -> Tensor:
        """The loss of each row, ``(N,)``."""

    def iterate(self) -> None:
        """One round."""
        self.set_learning_rate(self.optimizer)
        data = self.prepare(*self.sample())
        steps = []
        for _ in range(self.gradient_steps):
            row = torch.randint(
                len(data[0]), (self.batch_size,), generator=self.generator, device=self.device
            )
            batch = type(data)(*(column[row] for column in data))
            steps.append(self.descend(batch))
        self.logger.record("train/loss", float(torch.stack([step.loss for step in steps]).mean()))
        self.tell(steps[-1])

    def parts_of(self, rows: Rows) -> list[Rows]:
        """Rows, as many at a time as the policy takes."""
        size = self.policy.micro_batch or max(len(rows[0]), 1)
        columns = (column.split(size) for column in rows)
        return [type(rows)(*part) for part in zip(*columns, strict=True)]

    def divisor(self, rows: Any) -> int:
        """What the sum of the rows' losses is divided by: their number."""
        return len(rows[0])

    def gradient(self, rows: Any) -> Tensor:
        """Put the gradient into the parameters, a part of the rows at a time; returns the loss."""
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.device)
        for part in self.parts_of(rows):
            share = self.loss(part).sum() / self.divisor(rows)
            share.backward()
            total = total + share.detach()
        return total

    def descend(self, rows: Any) -> Descent:
        """A gradient step."""
        loss = self.gradient(rows)
        norm = nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self._n_updates += 1
        return Descent(loss, norm)

    def tell(self, last: Descent) -> None:
        """Log the last gradient step of a round."""
        self.logger.record("train/gradient_norm", float(last.norm))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def sample(self) -> tuple[Trajectories, Tensor]:
        """Fresh paths of the policy, and their encoded states ``(T, n, p)``, computed once."""
        inputs: list[Tensor] = []

        def act(k: int, x: Tensor) -> Tensor:
            control, kept = self.policy.act(k, x)
            inputs.append(kept)
            return control

        paths = self.collect(act)
        if self._n_updates == 0:
            self.policy.start(
                torch.cat(inputs)
            )  # the control is zero still: the paths stay the policy's own
        self.logger.record("train/kl", float(paths.kl.mean()))
        return paths, torch.stack(inputs)
