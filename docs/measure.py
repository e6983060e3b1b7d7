"""What is known of each environment: the value of no control, the bound, the exact optimum.

``python docs/measure.py`` writes ``benchmarks/results/environments.json``, from which the gallery's
tables are made (``docs/generate.py``). It takes about three CPU minutes.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from girsanov import certificate, make_problem, objective, rollout
from girsanov.envs import NEED_MUJOCO, NEED_WEIGHTS, PROBLEMS

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "environments.json"
#: Fewer paths where a step is dear.
PATHS = {"girsanov/Digits-v0": 8192, "girsanov/FlowDigits-v0": 1024}
PATHS |= dict.fromkeys(NEED_MUJOCO, 2000)
USUAL_PATHS = 20_000


def measure(env_id: str) -> dict[str, object]:
    """One environment's row; ``None`` where a thing is not known."""
    problem, n = make_problem(env_id), PATHS.get(env_id, USUAL_PATHS)
    free = objective(problem, None, n, torch.Generator().manual_seed(1))
    bound = certificate(problem, n, torch.Generator().manual_seed(2))
    row: dict[str, object] = {
        "env": env_id,
        "paths": n,
        "uncontrolled": list(free.objective),
        "bound": [bound.bound, bound.stderr] if bound.certified else None,
        "effective_paths": bound.ess,
        "success": None,
        "optimum": None,
        "exact_bound": None,
    }
    if hasattr(problem, "success"):
        ends = rollout(problem, None, n, torch.Generator().manual_seed(3)).states[-1]
        row["success"] = float(problem.success(ends).double().mean())
    if hasattr(problem, "optimal_objective"):
        row["optimum"] = float(problem.optimal_objective())
        row["exact_bound"] = float(problem.log_moment_objective())
    return row


def main() -> None:
    """Measure all, and write."""
    rows = []
    for env_id in sorted(set(PROBLEMS) - NEED_WEIGHTS):
        rows.append(measure(env_id))
        print(json.dumps(rows[-1]), flush=True)
    made_by = "python docs/measure.py"
    text = json.dumps({"made_by": made_by, "environments": rows}, indent=1)
    RESULTS.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
