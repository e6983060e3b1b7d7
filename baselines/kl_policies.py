"""Policies of stable-baselines3 that know what their actions cost, for actions that are noise.

The policy's own Gaussian is the chain's noise, so exploring costs nothing beyond the control:
KL(N(a, I) || N(0, I)) = |a|^2 / 2 per step, in closed form. SB3's training loops are not touched.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecEnvWrapper
from stable_baselines3.sac.policies import Actor, SACPolicy
from torch import Tensor, nn

from ..envs.checks import check_positive
from .on_device.lanes import SEEN, tensor_of

#: The first weights of an actor's last layer are this much smaller than SB3's, as PPO's own are.
_GAIN = 0.01


class SeesTensors(BasePolicy):
    """Takes what lanes on the device show, besides arrays."""

    def obs_to_tensor(self, observation: Any) -> tuple[Any, bool]:
        """As BasePolicy."""
        if isinstance(observation, dict):
            return observation[SEEN].to(self.device), True
        return super().obs_to_tensor(observation)


class KLActorCriticPolicy(SeesTensors, ActorCriticPolicy):
    """PPO's policy N(a_k(x), I): unit variance, the mean bounded and zero at first.

    In the place of the entropy it gives ``-|a|^2 / 2``, the derivative of the present step's price
    that the sampled returns do not hold; with ``ent_coef=1`` and rewards in units of the
    temperature PPO then ascends J itself. ``MeanPriced`` charges the same at every step taken.

    Args:
        args: of ActorCriticPolicy.
        control_bound: largest control in any coordinate, approached smoothly.
        kwargs: of ActorCriticPolicy.
    """

    def __init__(self, *args: Any, control_bound: float = 1.0, **kwargs: Any) -> None:
        check_positive("control_bound", control_bound)
        self.control_bound = control_bound
        self.last_mean: Tensor | None = None  #: of the last actions drawn, (n, noise size)
        super().__init__(*args, **kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "control_bound": self.control_bound}

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        assert isinstance(self.action_net, nn.Linear)
        nn.init.zeros_(self.action_net.weight)
        nn.init.zeros_(self.action_net.bias)
        self.log_std.data.zero_()
        self.log_std.requires_grad_(False)
        optimizer: Any = self.optimizer_class
        parameters = [p for p in self.parameters() if p.requires_grad]
        self.optimizer = optimizer(parameters, lr=lr_schedule(1), **self.optimizer_kwargs)

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> Distribution:
        bound = self.control_bound
        mean = bound * torch.tanh(self.action_net(latent_pi) / bound)
        self.last_mean = mean
        return self.action_dist.proba_distribution(mean, self.log_std)

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions, values and log likelihoods."""
        return super().forward(tensor_of(obs), deterministic)

    def predict_values(self, obs: Any) -> Tensor:
        """Values ``(n, 1)``."""
        return super().predict_values(tensor_of(obs))

    def evaluate_actions(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values, log likelihoods and minus the KL of the present step, each ``(n,)``."""
        values, log_prob, _ = super().evaluate_actions(obs, actions)
        assert self.last_mean is not None
        return values, log_prob, -0.5 * self.last_mean.square().sum(1)


class KLActor(Actor):
    """SAC's actor with log likelihoods relative to N(0, I); it begins near N(0, I) itself.

    With these, a fixed entropy coefficient is the temperature: SAC's soft value is the value
    function of the problem.
    """

    last_kl: Tensor | None = None  #: log likelihood ratios of the last actions drawn, (n,)
    last_action: Tensor | None = None  #: these actions, in [-1, 1], (n, noise size)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.bound = float(np.max(self.action_space.high))
        with torch.no_grad():
            # squashing by tanh narrows a little: the start is wider by as much
            for head, start in ((self.mu, 0.0), (self.log_std, math.log(1.05 / self.bound))):
                assert isinstance(head, nn.Linear)
                head.weight.mul_(_GAIN)
                head.bias.fill_(start)

    def forward(self, obs: Any, deterministic: bool = False) -> Tensor:
        """Actions in [-1, 1]; ``last_kl`` keeps what they cost."""
        action = super().forward(obs, deterministic)
        self.last_kl = self._relative(action, self.action_dist.log_prob(action))
        self.last_action = action
        return action

    def action_log_prob(self, obs: Any) -> tuple[Tensor, Tensor]:
        """Actions in [-1, 1] and ``log pi(z) - log N(z; 0, I)`` of ``z = bound * action``."""
        action, log_prob = super().action_log_prob(obs)
        return action, self._relative(action, log_prob)

    def _relative(self, action: Tensor, log_prob: Tensor) -> Tensor:
        z = action * self.bound
        normal = -0.5 * (z.square() + math.log(2 * math.pi)) + math.log(self.bound)
        return log_prob - normal.sum(1)


class KLSACPolicy(SeesTensors, SACPolicy):
    """SAC's MLP policy with a ``KLActor``."""

    def make_actor(self, features_extractor: Any = None) -> Actor:
        """As in SACPolicy."""
        kwargs = self._update_features_extractor(self.actor_kwargs, features_extractor)
        return KLActor(**kwargs).to(self.device)


class PricedReplayBuffer(NStepReplayBuffer):
    """Returns over n steps, less the price of each step after the first.

    The soft value at the end of the n steps holds the KL from there on, and a Q-function leaves out
    that of its own step. SB3's buffer leaves out the steps between too: over five steps four
    fifths of the price are forgotten.

    Args:
        buffer: of the model, which this one takes the place of.
        venv: what the model learns in.
    """

    def __init__(self, buffer: NStepReplayBuffer, venv: RatioKept) -> None:
        vars(self).update(vars(buffer))
        self.venv = venv
        self.prices = np.zeros_like(self.rewards)

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """As NStepReplayBuffer."""
        self.prices[self.pos] = self.venv.price
        super().add(obs, next_obs, action, reward - self.venv.price, done, infos)

    def _get_samples(self, batch_inds: np.ndarray, env: Any = None) -> ReplayBufferSamples:
        state = np.random.get_state()  # the lanes that NStepReplayBuffer is about to draw
        lanes = np.random.randint(0, self.n_envs, size=batch_inds.shape)
        np.random.set_state(state)
        samples = super()._get_samples(batch_inds, env)
        first = self.to_torch(self.prices[batch_inds, lanes][:, None])
        return samples._replace(rewards=samples.rewards + first)


class Unpriced(VecEnvWrapper):
    """Rewards without the price of the noise, in units of ``scale``: the policy pays it itself.

    Args:
        venv: a ``ProblemVecEnv`` whose actions are noise.
        scale: what a reward of 1 becomes 1 / scale of.
    """

    def __init__(self, venv: Any, scale: float = 1.0) -> None:
        super().__init__(venv)
        self.scale = scale

    def reset(self) -> Any:
        """As without the wrapper."""
        return self.venv.reset()

    def step_wait(self) -> Any:
        """As without the wrapper, but for the rewards."""
        observation, reward, done, info = self.venv.step_wait()
        refund: Any = self.refund(getattr(reward, "device", "cpu"))
        if not isinstance(reward, Tensor):
            refund = refund.numpy()
        return observation, (reward + refund) / self.scale, done, info

    def refund(self, device: Any) -> Tensor:
        """What is given back for the last actions, ``(num_envs,)``."""
        venv: Any = self.venv
        return venv.problem.temperature * venv.last_kl.float().to(device)


class MeanPriced(Unpriced):
    """Rewards less ``temperature * |a|^2 / 2`` of the policy's mean, in place of the sampled price.

    The sampled one has a variance of ``temperature^2 m / 2`` a step on top. ``policy`` must be set
    to the ``KLActorCriticPolicy`` that acts.
    """

    policy: KLActorCriticPolicy

    def refund(self, device: Any) -> Tensor:
        """See Unpriced."""
        assert self.policy.last_mean is not None
        kl = 0.5 * self.policy.last_mean.detach().square().sum(1)
        return super().refund(device) - self.venv.problem.temperature * kl.to(device)  # type: ignore[attr-defined]


class RatioKept(Unpriced):
    """Unpriced; ``price`` keeps ``temperature * log pi(z) / N(z; 0, I)`` of the last actions,
    ``(num_envs,)``: in the mean the temperature times KL.

    ``policy`` must be set to the ``KLSACPolicy`` that acts. Actions that are not the policy's (SB3
    draws the first ``learning_starts`` ones without it) have no price, whatever the policy was
    asked for in between, by an evaluation say.
    """

    policy: KLSACPolicy
    _nats: Tensor

    def step_async(self, actions: np.ndarray) -> None:
        """As without the wrapper."""
        actor: Any = self.policy.actor
        self._nats = torch.zeros(self.num_envs)
        if actor.last_kl is not None and actor.last_action.shape == actions.shape:
            nats = actor.last_kl.detach()
            self._nats = torch.where(self._drawn(actor, actions), nats, torch.zeros_like(nats))
        actor.last_kl = actor.last_action = None
        self.venv.step_async(actions)

    @property
    def price(self) -> np.ndarray:
        """See the class."""
        return self.venv.problem.temperature * self._nats.cpu().numpy()  # type: ignore[attr-defined]

    @staticmethod
    def _drawn(actor: Any, actions: np.ndarray) -> Tensor:
        """Whether these are the actions that the policy was last asked for, ``()``."""
        own = actor.bound * actor.last_action.detach()
        given = torch.from_numpy(actions).to(own.device, own.dtype, non_blocking=True)
        return torch.isclose(own, given, atol=1e-4 * actor.bound).all()
