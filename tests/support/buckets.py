"""S3 on loopback: moto's server, which keeps what it is given in memory."""

from __future__ import annotations

import itertools
import re
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import httpx
from obstore.store import S3Store

from support.programs import Program
from support.servers import Server

KEYS = {
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_SECRET_ACCESS_KEY": "a secret",
    "AWS_REGION": "us-east-1",
}
_NUMBERS = itertools.count(1)


class _Python(Program):
    def path(self) -> Path:
        return Path(sys.executable)


class Bucket:
    """`url` is what the settings say; `endpoint` is the server's."""

    def __init__(self, endpoint: str, name: str) -> None:
        self.endpoint, self.name = endpoint, name
        self.url = f"s3://{name}/files"

    @property
    def environ(self) -> dict[str, str]:
        return {**KEYS, "AWS_ENDPOINT_URL": self.endpoint}

    def keys(self) -> list[str]:
        """Of the objects that can be seen, without the prefix."""
        found = re.findall(r"<Key>files/(.*?)</Key>", self._ask("?list-type=2"))
        return sorted(found)

    def uploads(self) -> list[str]:
        """The keys of multipart uploads that are neither completed nor aborted."""
        return re.findall(r"<Key>files/(.*?)</Key>", self._ask("?uploads"))

    def remove(self, key: str) -> None:
        self._signed().delete(f"files/{key}")

    def put(self, key: str, content: bytes) -> None:
        self._signed().put(f"files/{key}", content)

    def _signed(self) -> S3Store:
        """moto lets everybody look, but only those with a key change anything."""
        config: Any = {name.lower(): value for name, value in self.environ.items()}
        return S3Store(self.name, config=config, client_options={"allow_http": True})

    def _ask(self, tail: str) -> str:
        return httpx.get(f"{self.endpoint}/{self.name}{tail}").raise_for_status().text


class S3Server(Server):
    """What it holds ends with it."""

    program = _Python("Python", (), (3, 11))
    gently = signal.SIGTERM

    def _command(self) -> list[str | Path]:
        serve = "import sys; from moto.server import main; main(sys.argv[1:])"
        return [self.path, "-c", serve, "-H", "127.0.0.1", "-p", str(self.port)]

    def _ready(self) -> bool:
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def bucket(self) -> Bucket:
        """A new one."""
        name = f"bucket-{next(_NUMBERS)}"
        httpx.put(f"{self.endpoint}/{name}").raise_for_status()
        return Bucket(self.endpoint, name)
