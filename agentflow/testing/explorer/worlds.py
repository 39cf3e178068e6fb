"""The worlds that are searched: every family of webhooks, ability, policy and hostility."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import get_args

from agentflow.core.providers import WebhookFamily
from agentflow.testing.explorer.search import Explored
from agentflow.testing.explorer.world import OnUnknown, World

WORLDS = (
    World(name="webhooks by token"),
    World(name="webhooks by token, two workers", askings=(2,)),
    World(name="webhooks by token, find", find=True),
    World(name="webhooks by token, unknown is retried", on_unknown="retry"),
    World(name="webhooks by token, unknown is asked", on_unknown="ask"),
    World(name="webhooks by token, no cancel", cancel=False),
    World(name="webhooks by token, no fetch", fetch=False),
    World(name="webhooks by token, with a file", files=1),
    World(name="webhooks by token, with files, one attempt", files=2, askings=(1,)),
    World(name="webhooks by token, with files that expire", files=2, expiring=True, askings=(1,)),
    World(name="thin webhooks", thin=True),
    World(name="thin webhooks without ids", thin=True, bare=True),
    World(name="thin webhooks without ids, find", thin=True, bare=True, find=True),
    World(name="webhooks without ids", bare=True),
    World(name="webhooks without ids, find", bare=True, find=True),
    World(name="contradictory webhooks", contradictory=True),
    World(name="webhooks by id", webhooks="account", askings=(2, 1)),
    World(name="webhooks by id, unknown is retried", webhooks="account", on_unknown="retry"),
    World(name="polling", webhooks="none", askings=(2, 1)),
    World(name="polling, find", webhooks="none", find=True),
    World(
        name="an answer at once, three workers",
        synchronous=True,
        webhooks="none",
        fetch=False,
        cancel=False,
        askings=(3, 1),
    ),
    World(
        name="an answer at once, repeatable",
        repeatable=True,
        synchronous=True,
        webhooks="none",
        fetch=False,
        cancel=False,
    ),
    World(name="polling, repeatable", repeatable=True, webhooks="none"),
    World(name="no word from the provider", webhooks="none", fetch=False, cancel=False),
    World(name="adopted", adopted=True, askings=(1,)),
    World(name="adopted, polling", adopted=True, askings=(1,), webhooks="none"),
)
"""Searched by every run of the tests, in about half a minute."""

MORE = (
    *(
        World(
            name=f"{webhooks}, {on_unknown}, {'find' if find else 'no find'}, two workers",
            webhooks=webhooks,
            on_unknown=on_unknown,
            find=find,
            askings=(2, 1),
        )
        for webhooks, on_unknown, find in product(
            get_args(WebhookFamily), get_args(OnUnknown), (False, True)
        )
    ),
    World(name="repeatable", repeatable=True),
    World(name="repeatable, one attempt, two workers", repeatable=True, askings=(2,)),
    World(name="thin, unknown is retried", thin=True, on_unknown="retry"),
    World(name="thin, without ids, unknown is retried", thin=True, bare=True, on_unknown="retry"),
    World(name="thin, without ids, repeatable", thin=True, bare=True, repeatable=True),
    World(name="contradictory, unknown is retried", contradictory=True, on_unknown="retry"),
    World(name="contradictory, two workers", contradictory=True, askings=(2, 1)),
    World(name="without ids, two workers", bare=True, find=True, askings=(2, 1)),
    World(name="with files, unknown is retried", files=1, on_unknown="retry"),
)
"""Searched on request, in about five minutes."""


def table(explored: Iterable[Explored]) -> str:
    """Markdown."""
    rows = ["| world | jobs | decisions | states | transitions |", "|---|--:|--:|--:|--:|"]
    rows += [
        f"| {e.world.name} | {e.jobs:,} | {e.decisions:,} | {e.states:,} | {e.transitions:,} |"
        for e in explored
    ]
    return "\n".join(rows)
