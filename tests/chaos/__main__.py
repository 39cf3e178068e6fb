"""`python -m tests.chaos --jobs 10000 --faults 200`: see `storm.py`. Exits with 1 for a problem."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--rate", type=float, default=8.0, help="jobs submitted a second")
    parser.add_argument("--scale", type=float, default=1.0, help="of everything that lasts")
    parser.add_argument("--patience", type=float, default=180.0, help="seconds for the end")
    parser.add_argument("--checks", type=int, default=4, help="looks for a call of unknown outcome")
    parser.add_argument("--keep", type=Path, help="where logs and files are to stay")
    options = vars(parser.parse_args())
    kept = options.pop("keep")
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        return storm(options, kept)
    with tempfile.TemporaryDirectory(prefix="agentflow-chaos-") as folder:
        return storm(options, Path(folder))


def storm(options: dict[str, float], folder: Path) -> int:
    sys.path.insert(0, str(TESTS))
    import asyncio

    from chaos.storm import Plan, run

    print(f"seed {options['seed']}", flush=True)
    outcome = asyncio.run(run(Plan(**options), folder))  # type: ignore[arg-type]
    print(*outcome.lines, sep="\n")
    for problem in outcome.problems:
        print(f"WRONG: {problem}")
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
