"""Real PostgreSQL and Redis for the tests: processes on loopback, each with a folder of its own.

A server keeps its port and its folder from start to start, so what was killed can be started
again on what it kept. It does not outlive the process that made it, however that ends.
"""

from __future__ import annotations

import atexit
import itertools
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Self

from support import processes
from support.programs import (
    POSTGRES,
    REDIS,
    Program,
    ServersMissing,
    ensure_servers,
    missing,
    run,
)

__all__ = [
    "Postgres",
    "RedisServer",
    "Server",
    "ServerFailed",
    "ServersMissing",
    "ensure_servers",
    "free_port",
    "missing",
]


class ServerFailed(Exception):
    """A server, or a program that talks to it, said no; the message is what it printed."""


def free_port() -> int:
    """A port nobody has. It is below those that clients are given: one that knocks again and
    again at a server that is away would some day be given that very port, and meet itself. A
    program started meanwhile by another thread holds our socket for a moment, which keeps nobody
    who reuses addresses, as servers do."""
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as s, suppress(OSError):
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind(("127.0.0.1", port))
            return port


class Server:
    """One server process. `start` or `with` starts it; `close` ends it and deletes its data."""

    program: ClassVar[Program]
    gently: ClassVar[signal.Signals]  # makes it stop in order, without waiting for clients

    def __init__(self) -> None:
        path = self.program.path()
        if path is None:
            raise ServersMissing(missing())
        self.path = path
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"agentflow-{path.name}-"))
        self._process: subprocess.Popen[bytes] | None = None
        processes.watched(self.folder, None)
        atexit.register(self.close)

    def _command(self) -> list[str | Path]:
        raise NotImplementedError

    def _ready(self) -> bool:
        raise NotImplementedError

    def _identity(self) -> dict[str, Any]:
        """As whom it runs, in arguments of `subprocess`."""
        return {}

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None, "it was not started"
        return self._process.pid

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def start(self) -> None:
        """Returns when it serves, whether it was stopped, killed or paused, or served before."""
        if self.running:
            self.resume()
            return
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=environment(),
                start_new_session=True,  # Ctrl-C is for the tests alone
                **self._identity(),
            )
        processes.watched(self.folder, self.pid)
        processes.until(lambda: self._ready() or not self.running, f"{self.path.name} to serve")
        if not self.running:
            raise ServerFailed(f"{self.path.name} ended: {self.log[-2000:]}")

    def stop(self) -> None:
        """In order: what it knows is written, clients are sent away."""
        if self.running:
            self.resume()
        self._end(lambda process: process.send_signal(self.gently))

    def kill(self) -> None:
        """As a crash does it, whatever it is doing, also when paused."""
        self._end(lambda process: processes.kill(process.pid))

    def _end(self, how: Callable[[subprocess.Popen[bytes]], None]) -> None:
        if self._process is None:
            return
        if self.running:
            how(self._process)
            self._process.wait(processes.PATIENCE)
        self._process = None
        processes.watched(self.folder, None)

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """It hangs: the system takes connections and bytes for it, and nothing is answered."""
        processes.freeze(self.pid)

    def resume(self) -> None:
        processes.thaw(self.pid)

    def close(self) -> None:
        atexit.unregister(self.close)
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        processes.unwatched(self.folder)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def environment() -> dict[str, str]:
    """Without what PostgreSQL's programs obey, and with their messages in English."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))}
    return {**kept, "LC_ALL": "C"}


class Postgres(Server):
    """It trusts everybody on loopback. `durable`: what it confirmed survives a crash of the
    machine too, as in production. `settings` are those of postgresql.conf."""

    program = POSTGRES
    gently = signal.SIGINT

    def __init__(self, *, durable: bool = False, **settings: str) -> None:
        super().__init__()
        self._data = self.folder / "data"
        self._numbers = itertools.count(1)
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            "max_connections": "200",
            "shared_buffers": "64MB",
            "dynamic_shared_memory_type": "mmap",  # in the folder: a kill leaves none behind
            "fsync": "on" if durable else "off",
            **settings,
        }

    def _identity(self) -> dict[str, Any]:
        """PostgreSQL refuses to run as root."""
        if os.geteuid() != 0:
            return {}
        accounts = {account.pw_name: account for account in pwd.getpwall()}
        account = accounts.get("postgres") or accounts["nobody"]
        return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}

    def _command(self) -> list[str | Path]:
        if not self._data.exists():
            self._make_data()
        settings = (f"--{name}={value}" for name, value in self._settings.items())
        return [self.path, "-D", self._data, *settings]

    def _make_data(self) -> None:
        identity = self._identity()
        if identity:
            self.folder.chmod(0o755)
            os.chown(self.folder, identity["user"], identity["group"])
        options = ["-U", "postgres", "-A", "trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        self._run([self.path.with_name("initdb"), "-D", self._data, *options], **identity)

    def _ready(self) -> bool:
        """By the file `pg_ctl` goes by: its first line is the process, its eighth the state."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and (lines[0], lines[7].strip()) == (str(self.pid), "ready")

    def url(self, database: str = "postgres", user: str | None = None) -> str:
        return f"postgres://{user or 'postgres'}@127.0.0.1:{self.port}/{database}"

    def sql(self, statement: str, database: str = "postgres") -> str:
        """What psql prints: a row a line, `|` between values. Raises `ServerFailed`."""
        return self._run([
            self.path.with_name("psql"), "-XAtq", "-h", self.folder, "-p", str(self.port),
            "-U", "postgres", "-d", database, "-c", statement,
        ])  # fmt: skip

    def _run(self, command: list[str | Path], **identity: Any) -> str:
        done = run(command, cwd=self.folder, env=environment(), **identity)
        if done.returncode:
            raise ServerFailed(f"{command[0]}: {done.stderr.strip()}")
        return done.stdout.strip()

    def create_database(self, name: str, template: str | None = None) -> None:
        """`template`: a database to copy, to which nobody is connected."""
        self.sql(f'CREATE DATABASE "{name}"' + (f' TEMPLATE "{template}"' if template else ""))

    def drop_database(self, name: str) -> None:
        """Whoever is connected to it is sent away."""
        self.sql(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    @contextmanager
    def database(self, template: str | None = None) -> Iterator[str]:
        """The URL of a new database, dropped in the end."""
        name = f"test_{next(self._numbers)}"
        self.create_database(name, template)
        try:
            yield self.url(name)
        finally:
            self.start()  # whatever the test did to it
            self.drop_database(name)


class RedisServer(Server):
    """Redis or Valkey. A command is in its file before it is answered: killed or stopped, it
    comes back with everything, unless started with `keep=False`."""

    program = REDIS
    gently = signal.SIGTERM

    def __init__(self, *, password: str = "") -> None:
        super().__init__()
        self._password = password

    def _command(self) -> list[str | Path]:
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        return [
            self.path, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", data,
            "--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction",
            "--requirepass", self._password,
        ]  # fmt: skip

    def start(self, *, keep: bool = True) -> None:
        if not keep and not self.running:
            shutil.rmtree(self.folder / "data", ignore_errors=True)
        super().start()

    def restart(self, *, keep: bool = True) -> None:
        self.stop()
        self.start(keep=keep)

    def _ready(self) -> bool:
        """It takes connections before it has read its file."""
        try:
            return self._ask("PING") == "+PONG"
        except OSError:
            return False

    def flush(self) -> None:
        """Delete everything in all databases."""
        said = self._ask("FLUSHALL")
        if said != "+OK":
            raise ServerFailed(said)

    def _ask(self, command: str) -> str:
        """The first line of the answer as the protocol writes it."""
        commands = [f"AUTH {self._password}", command] if self._password else [command]
        address = ("127.0.0.1", self.port)
        with socket.create_connection(address, processes.PATIENCE) as s, s.makefile() as answers:
            s.sendall("".join(f"{each}\r\n" for each in commands).encode())
            return [answers.readline().strip() for _ in commands][-1]

    def url(self, db: int = 0) -> str:
        login = f":{self._password}@" if self._password else ""
        return f"redis://{login}127.0.0.1:{self.port}/{db}"
