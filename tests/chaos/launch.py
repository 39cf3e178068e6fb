"""`python launch.py SECONDS NAME ROLE …`: `agentflow ROLE …` with its machine's clock set wrong.

The clock is `SECONDS` ahead; the worker's id tells its `NAME`, so that a history tells who it was.
"""

from __future__ import annotations

import os
import sys
import time
import uuid
from datetime import UTC, datetime, timedelta

from agentflow import types


def set_clock(ahead: float) -> None:
    """Before anything else of agentflow is imported: names are bound then."""
    right_time, right_uuid = time.time, types.uuid7
    types.utcnow = lambda: datetime.now(UTC) + timedelta(seconds=ahead)
    time.time = lambda: right_time() + ahead
    types.uuid7 = lambda: uuid.UUID(int=right_uuid().int + (int(ahead * 1000) << 80))


def set_name(name: str) -> None:
    right = types.new_id
    own = f"worker_{name}.{os.getpid()}"
    types.new_id = lambda prefix: own if prefix == "worker" else right(prefix)


if __name__ == "__main__":
    ahead, name = float(sys.argv[1]), sys.argv[2]
    if ahead:
        set_clock(ahead)
    set_name(name)
    from agentflow.cli import main

    sys.argv = ["agentflow", *sys.argv[3:]]
    main()
