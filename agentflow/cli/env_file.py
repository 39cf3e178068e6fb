"""A file of environment variables, `NAME=value` a line, as Docker, systemd and honcho read it."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

_PLAIN = re.compile(r"[A-Za-z0-9_./+=,:@-]*")
_MODE = 0o600


class EnvFile:
    """Writes one variable and leaves the other lines as they are."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def problem(self) -> str | None:
        """Why it could not be written, as a sentence."""
        place = self.path.resolve()
        if place.exists() and not place.is_file():
            return f"{self.path} is no file."
        if not os.access(place if place.exists() else place.parent, os.W_OK):
            return f"{self.path} cannot be written."
        if not os.access(place.parent, os.W_OK | os.X_OK):
            return f"{self.path.parent} cannot be written."
        return None

    def set(self, name: str, value: str) -> None:
        """In place of what the name had, or at the end; afterwards only its owner can read the
        file. Raises `OSError`, and then nothing has changed."""
        if not _PLAIN.fullmatch(value):
            raise ValueError(f"the value of {name} has characters that need quoting")
        place = self.path.resolve()
        lines = place.read_text().splitlines() if place.exists() else []
        said = re.compile(rf"\s*(export\s+)?{re.escape(name)}\s*=")
        mine = [n for n, line in enumerate(lines) if said.match(line)]
        if not mine:
            lines.append(f"{name}={value}")
        for n in mine:
            export = "export " if lines[n].lstrip().startswith("export") else ""
            lines[n] = f"{export}{name}={value}"
        _replace(place, "".join(f"{line}\n" for line in lines))


def _replace(place: Path, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=f".{place.name}.", dir=place.parent)
    try:
        with os.fdopen(descriptor, "w") as file:  # mkstemp lets nobody else read it
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _MODE)
        os.replace(temporary, place)
    except BaseException:
        os.unlink(temporary)
        raise
