"""One process of a role and its links, to be killed, stopped and cut off."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from support import processes
from support.proxy import Proxy

LAUNCH = Path(__file__).with_name("launch.py")


class Role:
    """`web-1`, `worker-2`, …: what dies is started again at once, as a supervisor would do.

    `redis` and `postgres` are its own links to these. `deaths` are the instants at which it ended
    without having been killed.
    """

    def __init__(
        self, name: str, folder: Path, env: Mapping[str, str], redis: Proxy, postgres: Proxy | None
    ) -> None:
        self.name, self.kind = name, name.partition("-")[0]
        self.folder, self.log = folder / name, folder / f"{name}.log"
        self.redis, self.postgres = redis, postgres
        self.ahead = 0.0
        self.deaths: list[float] = []
        self._env = {**os.environ, **env, "AGENTFLOW_DATA_DIR": str(self.folder)}
        self._process: subprocess.Popen[bytes] | None = None
        self._tending: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "it was not started"
        return self._process.pid

    def start(self) -> None:
        self._spawn()
        self._tending = asyncio.create_task(self._tend())

    def _spawn(self) -> None:
        role = [{"web": "serve"}.get(self.kind, self.kind)]
        options = ["--open"] if self.kind == "web" else []
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", LAUNCH, f"{self.ahead:g}", self.name, *role, *options],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the storm alone
            )
        processes.watched(self.folder, self.pid)

    async def _tend(self) -> None:
        while True:
            await asyncio.sleep(0.2)
            if self._process is not None and self._process.poll() is not None:
                self.deaths.append(time.time())
                self._spawn()

    def kill(self) -> None:
        """kill -9, and a new process at once."""
        self._end()
        self._spawn()

    def _end(self) -> None:
        assert self._process is not None, "it was started"
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "it was started"
        self._process.send_signal(number)

    async def stop(self) -> None:
        """In order; a process that does not end is killed, which counts as a death."""
        if self._tending is not None:
            self._tending.cancel()
        if self._process is None:
            return
        self._process.terminate()
        self.thaw()
        try:
            await asyncio.to_thread(self._process.wait, 30)
        except subprocess.TimeoutExpired:
            self._end()
            self.deaths.append(time.time())
        processes.unwatched(self.folder)
