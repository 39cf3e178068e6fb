"""A plugin in a process of its own: `python -m agentflow.testing.conformance.fresh`.

The process reads `{"module", "provider", "what", ...}` as JSON from its standard input and writes
its answer as the last line of its output. It imports the plugin and agentflow, no pytest.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import threading
from datetime import datetime
from importlib import import_module
from typing import Any

from agentflow.core.events import dump_event, name_of
from agentflow.core.providers import Delivery, Provider
from agentflow.errors import AgentflowError

OUTSIDE = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.remove", "shutil.")
"""Audit events of what reaches beyond a process."""


class Reached(AgentflowError):
    """Something pure reached outside."""


def in_fresh_process(provider: Provider, what: str, asked: dict[str, Any]) -> Any:
    """The answer of a new process. Raises `AssertionError` with what it said otherwise."""
    task = next(iter(provider.tasks.values()))
    module = task.function.__module__.partition(".")[0]
    said = {"module": module, "provider": provider.name, "what": what, **asked}
    paths = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=json.dumps(said),
        env={**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": "random"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"in a process of its own: {done.stderr[-1500:]}"
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    asked = json.load(sys.stdin)
    before = set(sys.modules)
    module = import_module(asked["module"])
    provided = {p.name: p for p in module.agentflow_providers()}
    loaded = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
    threads = threading.active_count()
    match asked["what"]:
        case "load":
            answer: Any = {"providers": sorted(provided), "loaded": loaded, "threads": threads}
        case "parse":
            answer = _parsed(provided[asked["provider"]], asked["deliveries"])
        case _:
            answer = asyncio.run(_attempted(provided[asked["provider"]], asked))
    sys.stdout.write(f"\n{json.dumps(answer)}\n")


def _parsed(provider: Provider, deliveries: list[dict[str, Any]]) -> list[Any]:
    from agentflow.webhooks.reading import facts_of

    sys.addaudithook(_forbid)
    return [
        [
            [name_of(fact.event), dump_event(fact.event), fact.external_id, fact.token, fact.id]
            for fact in facts_of(provider, _delivery(provider, each))
        ]
        for each in deliveries
    ]


def _delivery(provider: Provider, given: dict[str, Any]) -> Delivery:
    at = given["received_at"]
    return Delivery(
        provider.name,
        base64.b64decode(given["body"]),
        given["headers"],
        given["delivery_id"],
        given["token"],
        datetime.fromisoformat(at) if at else None,
    )


async def _attempted(provider: Provider, asked: dict[str, Any]) -> list[str]:
    """The name of the outcome and its fields."""
    from agentflow.plugins.catalogue import Catalogue
    from agentflow.testing.conformance.attempts import Attempts
    from agentflow.testing.simulator import Simulator

    attempts = Attempts(Catalogue([], [provider]).provider(provider.name), Simulator())
    attempts.files = {id: base64.b64decode(text) for id, text in asked["files"].items()}
    outcome = await attempts.make(provider.tasks[asked["task"]], asked["input"])
    await attempts.close()
    return [name_of(outcome), dump_event(outcome)]


def _forbid(event: str, args: tuple[Any, ...]) -> None:
    writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
    if writes or event.startswith(OUTSIDE):
        raise Reached(f"{event}{args!r}"[:300])


if __name__ == "__main__":
    main()
