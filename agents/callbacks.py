"""How stable-baselines3's callbacks see agents that take many environment steps at once."""

from __future__ import annotations

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, ProgressBarCallback


class StoppedByCallback(Exception):
    """A callback asked to stop. ``learn`` ends well; what was learnt so far is kept."""


class StepProgressBar(ProgressBarCallback):
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
    """Calls a callback once for every environment step of a batch of paths.

    SB3's callbacks count calls: ``EvalCallback(eval_freq=1000)`` and
    ``CheckpointCallback(save_freq=1000)`` act every 1,000 calls, hence every 1,000 environment
    steps, however many paths are rolled out side by side. Where one batched step holds several
    multiples of a frequency, they all see the same policy.

    A stop that is asked for by the first call of a batch takes effect at once, one that comes later
    with the next batch: a rollout that is complete by then is learnt from.
    """

    def __init__(self, callback: BaseCallback) -> None:
        self.callback, self._asked = callback, False

    def __call__(self, n: int, last: bool) -> bool:
        """Whether to go on after ``n`` steps, which are counted already.

        Args:
            n: environment steps taken at once.
            last: whether they end their paths; SB3's callbacks count episodes by it.
        """
        asked = self._asked
        self.callback.update_locals({"dones": np.array([last])})
        for i in range(n):
            if not self.callback.on_step():
                self._asked = True
                if i == 0:
                    return False
                break
        return not asked
