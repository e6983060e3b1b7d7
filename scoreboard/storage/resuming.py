"""What a process has to take over from a killed one, so that the run goes on as if nothing had
happened.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from ...agents.archive import bounded
from ...baselines import sb3_state
from ...envs.checks import words_of

#: What is said of states that do not fit.
_SAID_OF_MISFITS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError),
    *(TypeError, ValueError),
)


def resumable(model: Any) -> bool:
    """Whether a learner can be saved between two rounds: it has ``training_state`` and
    ``set_training_state``, as our agents have (and no ``resumes`` that is False), or is
    stable-baselines3's PPO or SAC on our lanes.
    """
    own = all(hasattr(model, name) for name in ("training_state", "set_training_state"))
    return bool(getattr(model, "resumes", True)) if own else sb3_state.resumable(model)


def state_of(model: Any) -> dict[str, Any]:
    """A learner between two rounds, and the random streams of its process, as a tree of tensors and
    plain values.
    """
    own = getattr(model, "training_state", None)
    state = sb3_state.training_state(model) if own is None else own()
    return {"model": {type(model).__name__: state}, "random": _random_streams()}


def take_over(model: Any, state: dict[str, Any]) -> None:
    """Make ``model`` what another was when ``state_of`` saw it.

    Raises:
        ValueError: it was another kind of model.
    """
    own = getattr(model, "set_training_state", None)
    try:
        before = state["model"][type(model).__name__]
        with bounded("its settings"):
            if own is None:
                sb3_state.set_training_state(model, before)
            else:
                own(before)
        _set_random_streams(state["random"])
    except _SAID_OF_MISFITS as error:
        said = f"{type(error).__name__}: {words_of(error, 1000)}"
        raise ValueError(
            "the run's checkpoint must be of the same agent and version of girsanov; it does not"
            f" fit ({said}); delete the run's folder to begin it again"
        ) from error


def _random_streams() -> dict[str, Any]:
    numpy: Any = np.random.get_state()
    kind, key, position, has_gauss, gauss = numpy
    version, words, second = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, key.astype(np.int64), position, has_gauss, gauss],
        "python": [version, np.array(words, np.int64), second],
    }


def _set_random_streams(streams: dict[str, Any]) -> None:
    torch.set_rng_state(streams["torch"])
    if len(streams["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(streams["cuda"])
    kind, key, position, has_gauss, gauss = streams["numpy"]
    np.random.set_state((kind, key.astype(np.uint32), position, has_gauss, gauss))
    version, words, second = streams["python"]
    random.setstate((version, tuple(words.tolist()), second))
