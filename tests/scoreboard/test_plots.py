"""What pictures of runs share: who has which colour."""

from __future__ import annotations

from finished_runs import row
from matplotlib.colors import to_hex

from girsanov.scoreboard.plots import colours_of, learning_curves
from girsanov.scoreboard.registry import AGENTS

MAIN = {"pde": "#0072B2", "pi-ft": "#009E73", "ppo": "#D55E00", "sac": "#CC79A7"}
#: Two of these had one colour once.
ROWS = [f"{a}#the {of}" for a in ("ppo", "ppo-control") for of in ("features", "state")]


def test_no_two_agents_of_a_picture_share_a_colour() -> None:
    assert colours_of(MAIN) == MAIN
    many = [*(f"pde#{i}" for i in range(60)), *AGENTS, *ROWS]
    colours = colours_of(many)
    assert list(colours) == many and len(set(colours.values())) == len(many)
    assert colours.items() >= MAIN.items()
    assert colours_of(ROWS) == colours_of(ROWS) and not set(colours_of(many[:60]).values()) & {
        *MAIN.values()
    }


def test_a_row_has_its_colour_in_the_curves() -> None:
    runs = {agent: [[row(x, 0.1 * x, x) for x in (0, 5, 10)]] for agent in [*ROWS, "sac"]}
    axes = learning_curves(runs, "score", "t").axes[0]
    drawn = [to_hex(line.get_color()).upper() for line in axes.lines if line.get_linewidth() == 2]
    assert drawn == list(colours_of(runs).values()) and len(set(drawn)) == 5
    assert drawn[-1] == MAIN["sac"]
