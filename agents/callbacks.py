"""How stable-baselines3's callbacks see agents that take many environment steps at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback


class StoppedByCallback(Exception):
    """A callback asked to stop. ``learn`` ends well; what was learnt so far is kept."""


class BatchCallback(BaseCallback):
    """A callback that reads ``num_timesteps`` and counts no calls.

    Our agents call it once for a batch of steps, and others once for every step.
    """


class StepProgressBar(ProgressBarCallback, BatchCallback):
    """SB3's bar counts ``env.num_envs`` steps a call; ours counts the steps that were taken."""

    _seen = 0

    def _on_step(self) -> bool:
        self.pbar.update(self.num_timesteps - self._seen)
        self._seen = self.num_timesteps
        return True

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self._seen = self.num_timesteps


class StepCalls:
    """Calls callbacks once for every environment step of a batch of paths.

    SB3's callbacks count calls: ``EvalCallback(eval_freq=1000)`` and
    ``CheckpointCallback(save_freq=1000)`` act every 1,000 calls, hence every 1,000 environment
    steps, however many paths are rolled out side by side. Where one batched step holds several
    multiples of a frequency, they all see the same policy.

    A stop that is asked for by the first call of a batch takes effect at once, one that comes later
    with the next batch: a rollout that is complete by then is learnt from.
    """

    def __init__(self, callback: BaseCallback) -> None:
        self._callback, every = callback, list(_flat(callback))
        self._once = [one for one in every if isinstance(one, BatchCallback)]
        self._each = [one for one in every if not isinstance(one, BatchCallback)]
        self._asked = False

    def __call__(self, n: int, last: bool) -> bool:
        """Whether to go on after ``n`` steps, which are counted already.

        Args:
            n: environment steps taken at once.
            last: whether they end their paths; SB3's callbacks count episodes by it.
        """
        self._callback.update_locals({"dones": np.array([last])})
        goes_on = _all(self._once) and not self._asked
        for i in range(n if self._each else 0):
            if not _all(self._each):
                self._asked = True
                goes_on = goes_on and i > 0
                break
        return goes_on


def _flat(callback: BaseCallback) -> list[BaseCallback]:
    """The callbacks in a list of lists; lists with a mind of their own are left whole."""
    if type(callback) is not CallbackList:
        return [callback]
    return [one for inner in callback.callbacks for one in _flat(inner)]


def _all(callbacks: Sequence[BaseCallback]) -> bool:
    """Whether all go on; each is called, as SB3's ``CallbackList`` does."""
    return all([callback.on_step() for callback in callbacks])
