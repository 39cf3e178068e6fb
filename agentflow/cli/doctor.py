"""`agentflow doctor`: one look at everything that is usually wrong."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from agentflow.cli.finding import Finding, State
from agentflow.cli.leaving import Code
from agentflow.cli.options import AppName, AsJson, Data, Url


def doctor(
    data: Data = None,
    app: AppName = None,
    url: Url = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Ask no server, database, Redis or bucket.")
    ] = False,
    set_up: Annotated[
        str | None,
        typer.Option(
            "--set-up",
            metavar="PROVIDER",
            help="Instead, have this provider send its webhooks to AGENTFLOW_PUBLIC_URL.",
        ),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(help="The file of variables that --set-up writes the webhook's key into."),
    ] = None,
    show_key: Annotated[
        bool, typer.Option("--show-key", help="Have --set-up write the key to the terminal.")
    ] = False,
    rotate: Annotated[
        bool,
        typer.Option(
            "--rotate", help="With --set-up: a new key; the old one is good for a day more."
        ),
    ] = False,
    test: Annotated[
        str | None,
        typer.Option(
            "--test", metavar="PROVIDER", help="Instead, have a sample sent, and see it arrive."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check settings, plugins, keys, PostgreSQL, Redis, files and the server.

    With --set-up and --test, set a provider's webhooks up and try them.
    The exit code is 1 if something fails.
    """
    from agentflow.cli import webhooks
    from agentflow.cli.showing import write_json, write_table

    if set_up or test:
        found: list[Finding] = []
        if set_up:
            found += webhooks.set_up(set_up, store=store, show=show_key, rotate=rotate)
        if test:
            found += webhooks.try_out(test, url)
    else:
        found = list(_findings(data, app, url, offline))
    if as_json:
        write_json({"items": [f._asdict() for f in found]})
    else:
        write_table(("check", "state", "found"), found, "", wrap=True)
    failed = any(f.state == "fail" for f in found)
    raise typer.Exit(Code.FAILED if failed else Code.DONE)


def _findings(
    data: str | None, app: str | None, url: str | None, offline: bool
) -> Iterator[Finding]:
    from agentflow.errors import SettingsError
    from agentflow.settings import load_settings

    yield _python()
    try:
        settings = load_settings(data_dir=data, app=app)
    except SettingsError as error:
        yield Finding("settings", "fail", str(error))
        return
    yield Finding("settings", "ok", "read from the environment")
    yield from _plugins(settings)
    if settings.app:
        yield _application(settings.app)
    yield _directory(settings)
    if offline:
        return
    yield from _backends(settings)
    if settings.mode in ("worker", "writer") and url is None:
        return  # which serve nobody
    served, server = _server(url or settings.url, alone=settings.redis_url is None)
    yield server
    yield _public(settings.public_url, served=served)


def _python() -> Finding:
    version = platform.python_version()
    good = (3, 11) <= sys.version_info < (3, 14)
    if not good:
        return Finding("python", "fail", f"{version}: agentflow needs 3.11, 3.12 or 3.13")
    return Finding("python", "ok", version)


def _plugins(settings: Any) -> Iterator[Finding]:
    from agentflow.cli.plugins import installed, plugin_view

    known = installed(settings)
    if not known.plugins:
        yield Finding("plugins", "warn", "none is installed; try: pip install agentflow-replicate")
    for plugin in known.plugins:
        view = plugin_view(plugin, known)
        name = f"plugin {view['name']}"
        if view["usable"]:
            yield Finding(name, "ok", f"{view['distribution']} {view['version']}")
        else:
            yield Finding(name, "fail", known.problems.get(plugin.label) or "it has no provider")
        for provider in view["providers"]:
            if provider in known.providers:
                yield from _keys(known.providers[provider], settings.public_url)


def _keys(ready: Any, public_url: str | None) -> Iterator[Finding]:
    """Which secrets are there. A missing webhook secret is a fault where webhooks are expected,
    and the provider is used: some secret of it is there."""
    from pydantic import SecretStr

    settings, name = ready.settings, ready.provider.name
    prefix = settings.model_config.get("env_prefix", "") if settings is not None else ""
    used = False
    for field in type(settings).model_fields if settings is not None else ():
        value = getattr(settings, field)
        if not isinstance(value, SecretStr):
            continue
        there = bool(value.get_secret_value())
        used |= there
        said = f"{prefix}{field}".upper() + (" is set" if there else " is not set")
        yield Finding(f"{name} key", "ok" if there else "warn", said)
    if ready.webhook_problem:
        said = f"refused: {ready.webhook_problem}"
        yield Finding(f"{name} webhooks", "fail" if public_url and used else "warn", said)


def _application(name: str) -> Finding:
    from agentflow.cli.loading import load_app
    from agentflow.errors import UsageError

    try:
        load_app(name)
    except UsageError as error:
        return Finding("app", "fail", str(error))
    return Finding("app", "ok", name)


def _backends(settings: Any) -> Iterator[Finding]:
    from agentflow.cli.backends import backends
    from agentflow.cli.files import files
    from agentflow.cli.loading import load_app
    from agentflow.errors import UsageError

    try:
        models = load_app(settings.app).models if settings.app else None
    except UsageError:  # said above
        models = None
    yield from backends(settings, models)
    yield from files(settings)


def _directory(settings: Any) -> Finding:
    import tempfile

    from agentflow.errors import SettingsError
    from agentflow.store.database import DirectoryLock

    place = settings.data_dir.absolute()
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.data_dir):
            pass
        lock = DirectoryLock(settings.data_dir)
        lock.take(" (agentflow doctor)")
        lock.release()
    except SettingsError:
        return Finding("data", "ok", f"{place}, in use by a server")
    except OSError as error:
        return Finding("data", "fail", f"{place} cannot be written: {error.strerror}")
    return Finding("data", "ok", f"{place}, writable and free")


def _server(url: str, *, alone: bool) -> tuple[bool, Finding]:
    """Whether there is one, and how it is. `alone`: it is all of agentflow in one process."""
    from agentflow.client import Client, ClientError

    try:
        with Client(url, repeats=0, timeout=5.0) as client:
            health = client.health()
    except ClientError as error:
        start = "dev" if alone else "serve"
        said = f"{error}; start one with: agentflow {start}"
        return False, Finding("server", "warn", said)
    if health["status"] != "ok":
        said = f"{url} is not ready: {', '.join(health['missing'])}"
        return True, Finding("server", "fail", said)
    late = health["oldest_due_seconds"]
    if late is not None and late > 60:
        return True, Finding("server", "warn", f"{url} is {late:.0f} s behind with its work")
    return True, Finding("server", "ok", f"{url} is ready")


def _public(url: str | None, *, served: bool) -> Finding:
    """`served`: there is a server to be reached."""
    import httpx

    if url is None:
        return Finding("public URL", "warn", "AGENTFLOW_PUBLIC_URL is not set: polling only")
    try:
        answer = httpx.get(f"{url}/healthz", timeout=10.0)
        good = answer.status_code == 200 and answer.json() == {"status": "ok"}
    except (httpx.HTTPError, ValueError) as error:
        state: State = "fail" if served else "warn"
        return Finding("public URL", state, f"{url} is not reachable: {error}")
    if not good:
        return Finding("public URL", "fail", f"{url}/healthz answers {answer.status_code}")
    return Finding("public URL", "ok", f"{url} is reachable from here")
