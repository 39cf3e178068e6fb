"""`python -m tests.mixed --jobs 600 --kills 30`, in both modes: see `run.py`. 1 for a problem."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mixed")
    parser.add_argument("--mode", choices=["embedded", "scaled", "both"], default="both")
    parser.add_argument("--jobs", type=int, default=600)
    parser.add_argument("--kills", type=int, default=30, dest="faults", help="faults of ours")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--rate", type=float, default=6.0, help="jobs submitted a second")
    parser.add_argument("--scale", type=float, default=0.5, help="of everything that lasts")
    parser.add_argument("--patience", type=float, default=240.0, help="seconds for the end")
    parser.add_argument("--checks", type=int, default=2, help="looks for a call of unknown outcome")
    parser.add_argument("--keep", type=Path, help="where logs and files are to stay")
    options = vars(parser.parse_args())
    mode, kept = options.pop("mode"), options.pop("keep")
    sys.path.insert(0, str(TESTS))
    from chaos.storm import Plan

    from mixed.run import embedded, scaled

    chosen = {"embedded": [embedded], "scaled": [scaled], "both": [embedded, scaled]}[mode]
    problems: list[str] = []
    for run in chosen:
        with tempfile.TemporaryDirectory(prefix="agentflow-mixed-") as temporary:
            folder = (kept or Path(temporary)) / run.__name__
            folder.mkdir(parents=True)
            print(f"{run.__name__}, seed {options['seed']}", flush=True)
            outcome = asyncio.run(run(Plan(**options), folder))
        print(*outcome.lines, sep="\n", flush=True)
        problems += outcome.problems
    for problem in problems:
        print(f"WRONG: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
