"""`agentflow new-plugin`: a distribution that is done but for the provider."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated

import typer

from agentflow.cli.leaving import Code, leave


def new_plugin(
    name: Annotated[str, typer.Argument(help="The provider's name: a-z, then a-z, 0-9, _.")],
    into: Annotated[
        Path | None,
        typer.Option("--into", help="The folder to make; by default agentflow-NAME here."),
    ] = None,
) -> None:
    """Write a plugin that passes the conformance suite, to be changed into yours."""
    from agentflow.core.providers import NAME
    from agentflow.plugins.checking import RESERVED

    if not NAME.fullmatch(name) or name in RESERVED or name.endswith("_"):
        leave(Code.USAGE, f"{name!r} is no name for a provider: a-z, then a-z, 0-9, _")
    folder = into or Path(f"agentflow-{name.replace('_', '-')}")
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        leave(Code.USAGE, f"{folder} is there already; nothing was written")
    except OSError as error:
        leave(Code.USAGE, f"{folder} cannot be made: {error.strerror}")
    for path, text in contents(name).items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        typer.echo(str(file))
    typer.echo(
        f"Next:\n  pip install -e '{folder}[test]'\n  agentflow plugins test {folder}", err=True
    )


def contents(name: str) -> dict[str, str]:
    """The files of a plugin of this name, by their path."""
    words = {
        "@name@": name,
        "@dashed@": name.replace("_", "-"),
        "@NAME@": name.upper(),
        "@Title@": "".join(word.capitalize() for word in name.split("_")),
    }
    found = {}
    for path, text in _templates(files("agentflow.cli") / "template", ""):
        path = path.removesuffix(".txt").replace("package/", f"agentflow_{name}/")
        for mark, word in words.items():
            text = text.replace(mark, word)
        found[path] = text
    return found


def _templates(folder: Traversable, inside: str) -> list[tuple[str, str]]:
    found = []
    for each in sorted(folder.iterdir(), key=lambda one: one.name):
        path = f"{inside}{each.name}"
        if each.is_dir():
            found += _templates(each, f"{path}/")
        elif path.endswith(".txt"):
            found.append((path, each.read_text(encoding="utf-8")))
    return found
