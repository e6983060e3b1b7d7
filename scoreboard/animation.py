"""Moving pictures: policies side by side on the same noises, as a GIF.

    python -m girsanov.scoreboard.animation runs/single/Pendulum-v0/pde/seed0

films the uncontrolled process beside what a finished run has learned, into ``behaviour.gif`` in the
run's folder.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ..envs.problem import Policy, Problem, rollout
from .evaluation import SAMPLE_SEED, generator_on, policy_of
from .plots import name_of
from .registry import find_agent, make_env
from .spec import RunSpec
from .storage.records import read_record, write_whole

#: Pixels of a film's caption.
CAPTION = 24


@torch.no_grad()
def film(
    problem: Problem,
    policies: Mapping[str, Policy | None],
    seed: int = SAMPLE_SEED,
    frames: int = 50,
) -> list[np.ndarray]:
    """``problem.render`` of one path of each policy, side by side, all from the same start and
    noises.

    Args:
        problem: what is steered.
        policies: by the word to stand above each; ``None`` is no control.
        seed: of the start and the noises.
        frames: about as many pictures, evenly over the horizon, the first and the last state among
            them.
    """
    paths = [
        rollout(problem, policy, 1, generator_on(problem, seed)).states[:, 0].cpu()
        for policy in policies.values()
    ]
    steps = np.unique(
        np.linspace(0, problem.horizon, min(frames, problem.horizon + 1)).round().astype(int)
    )
    return [
        np.concatenate(
            [
                titled(problem.render(path[: k + 1]), name)
                for path, name in zip(paths, policies, strict=True)
            ],
            1,
        )
        for k in steps
    ]


def write_gif(path: Path, frames: Sequence[np.ndarray], seconds: float, colours: int = 32) -> None:
    """A GIF that plays ``frames`` in ``seconds`` over and over, the last of them held for a
    second.
    """
    from PIL import Image

    images = [
        Image.fromarray(frame).quantize(colours, dither=Image.Dither.NONE) for frame in frames
    ]
    each = max(20, round(1000 * seconds / len(images)))
    buffer = io.BytesIO()
    durations = [*[each] * (len(images) - 1), 1000]
    images[0].save(
        buffer,
        "GIF",
        save_all=True,
        append_images=images[1:],
        duration=durations,
        loop=0,
        optimize=True,
    )
    write_whole(path, buffer.getvalue())


def film_run(folder: Path, frames: int = 50, seconds: float = 5.0, seed: int = SAMPLE_SEED) -> Path:
    """Write ``behaviour.gif`` into the folder of a finished run.

    Args:
        folder: ``<out>/<env>/<agent>/seed<k>``.
        frames: about as many pictures.
        seconds: that they take.
        seed: of the start and the noises.

    Raises:
        ValueError: there is no finished run, or its agent can't be loaded.
    """
    if not (folder / "record.json").is_file():
        raise ValueError(
            "folder must be that of a finished run (<out>/<env>/<agent>/seed<k>); got"
            f" {str(folder)!r}"
        )
    spec = RunSpec.from_json(read_record(folder / "record.json")["spec"])
    agent = find_agent(spec.agent)
    if agent.load is None:
        raise ValueError(f"agent {spec.agent!r} can't be loaded")
    env = make_env(spec.env, spec.env_kwargs, "cpu")
    model = agent.load(str(folder / "model.zip"), env, "cpu")
    if hasattr(model, "draw"):
        raise ValueError(f"agent {spec.agent!r} has no policy to film: it draws whole samples")
    policies: dict[str, Policy | None] = {
        "without control": None,
        f"steered by {name_of(spec.agent)}": policy_of(model, env.problem),
    }
    path = folder / "behaviour.gif"
    write_gif(path, film(env.problem, policies, seed, frames), seconds)
    return path


def titled(picture: np.ndarray, title: str) -> np.ndarray:
    """A picture ``(H, W, 3)`` with a caption above it."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (picture.shape[1], picture.shape[0] + CAPTION), "white")
    image.paste(Image.fromarray(picture), (0, CAPTION))
    font, middle = ImageFont.load_default(15), (picture.shape[1] // 2, CAPTION // 2)
    ImageDraw.Draw(image).text(middle, title, fill="black", anchor="mm", font=font)
    return np.asarray(image)


def main(arguments: Sequence[str] | None = None) -> int:
    """The folders of finished runs; 2 and one line for what the caller can mend."""
    folders = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if not folders or folders[0] in ("-h", "--help"):
            raise ValueError(
                "usage: python -m girsanov.scoreboard.animation FOLDER_OF_A_FINISHED_RUN ..."
            )
        for folder in folders:
            print(film_run(Path(folder)))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
