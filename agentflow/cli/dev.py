"""`agentflow dev`"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from agentflow.cli.leaving import leave_behind, settings_checked
from agentflow.cli.options import AppName, Data

if TYPE_CHECKING:
    from agentflow.runtime import Runtime
    from agentflow.settings import Settings


def dev(
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Bring simulated providers; no key is needed.")
    ] = False,
    app: AppName = None,
    host: Annotated[str | None, typer.Option(help="A loopback address.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0 takes a free one.")] = None,
    data: Data = None,
) -> None:
    """Run everything in one process: web, worker and writer."""
    import asyncio

    changes = {"APP": app, "HOST": host, "PORT": port, "DATA_DIR": data}
    with settings_checked():
        asyncio.run(_run({k: str(v) for k, v in changes.items() if v is not None}, simulate))


async def _run(changes: Mapping[str, str], simulate: bool) -> None:
    """Open one thing after the other, serve, and close them in the reverse order."""
    import os
    from contextlib import AsyncExitStack

    from agentflow.settings import load_settings

    # By the environment, because the application's AgentFlow reads its settings there.
    os.environ.update({f"AGENTFLOW_{name}": value for name, value in changes.items()})
    settings = load_settings()
    configure_logs(settings)

    from agentflow.app import AgentFlow, standalone
    from agentflow.cli.loading import load_app
    from agentflow.cli.narrator import narrating
    from agentflow.testing.simulated import simulated_providers
    from agentflow.web.guard import LocalOnly
    from agentflow.web.listening import Listening

    async with AsyncExitStack() as stack:
        listener = stack.enter_context(_listening(settings))
        os.environ["AGENTFLOW_PORT"] = str(listener.getsockname()[1])
        simulated: Sequence[str] = ()
        if simulate:
            sims = await stack.enter_async_context(simulated_providers())
            os.environ.setdefault("AGENTFLOW_PUBLIC_URL", load_settings().url)
            public = load_settings().public_url
            for name, sim in sims.items() if public else ():
                sim.webhook_url = f"{public}/webhooks/{name}"
            simulated = [*sims]
        app = load_app(settings.app) if settings.app else AgentFlow()
        server = Listening(LocalOnly(standalone(app)))
        stack.enter_context(server.signals())
        await stack.enter_async_context(app.lifespan())
        await stack.enter_async_context(narrating(app.runtime))
        async with server.serving(listener):
            _banner(app.runtime, load_settings(), simulated)
    leave_behind()


def configure_logs(settings: Settings) -> None:
    from agentflow import logs
    from agentflow.errors import SettingsError

    try:
        logs.configure(settings.log_level, form=settings.log_format)
    except ValueError as error:
        raise SettingsError(f"AGENTFLOW_LOG_LEVEL: {error}") from None


@contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    """The bound socket. If both the port and the data directory are taken, the latter is said:
    it is the same server, and another port would not help."""
    from agentflow.errors import SettingsError
    from agentflow.store.database import DirectoryLock
    from agentflow.web.listening import bind

    try:
        listener = bind(settings.host, settings.port)
    except SettingsError:
        lock = DirectoryLock(settings.data_dir)
        lock.take()
        lock.release()
        raise
    with listener:
        yield listener


def _banner(runtime: Runtime, listens: Settings, simulated: Sequence[str]) -> None:
    from agentflow.cli.showing import console, write_fields
    from agentflow.types import VERSION

    settings, known = runtime.settings, runtime.catalogue
    names = [f"{n} (simulated)" if n in simulated else n for n in known.providers]
    public = settings.public_url
    webhooks = f"{public}/webhooks/…" if public else "off: AGENTFLOW_PUBLIC_URL is not set, polling"
    if public and simulated and public == listens.url:
        webhooks += "  (from the simulators)"
    out = console(err=True)
    out.print(f"[bold]agentflow {VERSION}[/]  {listens.url}  (for this machine only)")
    fields = {
        "data": str(settings.data_dir.absolute()),
        "providers": ", ".join(names) or "none: no plugin is installed",
        "webhooks": webhooks,
        "app": settings.app,
        "stop": "Ctrl-C",
    }
    write_fields(fields, err=True)
