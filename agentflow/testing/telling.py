"""A plugin of pytest that says after each check how far the run is, for who reads the output."""

from __future__ import annotations

import re
from typing import Any

_LINE = re.compile(r"agentflow: (\d+) of (\d+)$")


def pytest_configure(config: Any) -> None:
    config.pluginmanager.register(_Teller(config), "agentflow-teller")


class _Teller:
    def __init__(self, config: Any) -> None:
        self._config = config
        self._done = self._all = 0

    def pytest_collection_finish(self, session: Any) -> None:
        self._all = len(session.items)
        self._say()

    def pytest_runtest_logfinish(self) -> None:
        self._done += 1
        self._say()

    def _say(self) -> None:
        out = self._config.pluginmanager.get_plugin("terminalreporter")
        if out is not None:
            out.write_line(f"agentflow: {self._done} of {self._all}", flush=True)


def heard(line: str) -> tuple[int, int] | None:
    """The checks that are done and all of them; None for other lines of pytest's."""
    found = _LINE.search(line.rstrip())
    return (int(found[1]), int(found[2])) if found else None
