"""`agentflow serve`, `worker`, `writer`: one process each, any number of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from agentflow.cli.leaving import leave_behind, settings_checked
from agentflow.cli.options import AppName, Data

if TYPE_CHECKING:
    import asyncio

    from agentflow.app import AgentFlow
    from agentflow.settings import Settings

OpenApi = Annotated[
    bool,
    typer.Option("--open", help="Ask for no API key: whoever reaches the address may do all."),
]


def serve(
    app: AppName = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0 takes a free one.")] = None,
    data: Data = None,
    open_api: OpenApi = False,
) -> None:
    """Serve the job API and the webhooks; with Redis as one role of many, without alone.

    Without AGENTFLOW_REDIS_URL this process also works and writes: all of agentflow in one.
    """
    changes = {"HOST": host, "PORT": port, "REQUIRE_KEYS": None if open_api else "true"}
    _go("web", {**changes, "APP": app, "DATA_DIR": data})


def worker(
    app: AppName = None,
    queues: Annotated[
        str | None, typer.Option(help="The providers to serve, as in replicate,openai.")
    ] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Calls at once.")] = None,
    data: Data = None,
) -> None:
    """Make the providers' calls. Needs Redis and no database."""
    changes = {"CONCURRENCY": concurrency, "APP": app, "DATA_DIR": data}
    _go("worker", {**changes, "QUEUES": queues})


def writer(app: AppName = None, data: Data = None) -> None:
    """Apply what workers and webhooks say, keep the alarms, run the handlers."""
    _go("writer", {"APP": app, "DATA_DIR": data})


def _go(role: str, changes: Mapping[str, object]) -> None:
    import asyncio
    import os

    # By the environment, because the application's AgentFlow reads its settings there.
    told = {f"AGENTFLOW_{name}": str(v) for name, v in changes.items() if v is not None}
    os.environ.update(told)
    with settings_checked(), asyncio.Runner(loop_factory=_fast_loop()) as runner:
        runner.run(_run(role))


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where uvicorn brought it."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _run(role: str) -> None:
    import os

    from agentflow.cli.dev import configure_logs
    from agentflow.cli.loading import load_app
    from agentflow.settings import load_settings

    alone = role == "web" and load_settings().redis_url is None
    os.environ["AGENTFLOW_MODE"] = "all" if alone else role
    settings = load_settings()
    configure_logs(settings)

    from agentflow.app import AgentFlow

    app = load_app(settings.app) if settings.app else AgentFlow()
    if role == "web":
        await _serve(app, settings)
    else:
        await _work(app, role)
    leave_behind()


async def _serve(app: AgentFlow, settings: Settings) -> None:
    from contextlib import AsyncExitStack

    from agentflow.app import standalone
    from agentflow.errors import SettingsError
    from agentflow.store.keys import any_key
    from agentflow.types import utcnow
    from agentflow.web.listening import Listening, bind

    async with AsyncExitStack() as stack:
        listener = stack.enter_context(bind(settings.host, settings.port))
        server = Listening(standalone(app))
        stack.enter_context(server.signals())
        await stack.enter_async_context(app.lifespan())
        if settings.require_keys and not await any_key(utcnow()):
            raise SettingsError(
                "There is no API key yet. Make one with: agentflow keys create NAME. Or serve"
                " without any, on an address that only you reach: agentflow serve --open"
            )
        async with server.serving(listener):
            host, port = listener.getsockname()[:2]
            _say(app, f"serves http://{host}:{port}")


async def _work(app: AgentFlow, role: str) -> None:
    import asyncio

    asked = asyncio.Event()
    with _signals(asked):
        async with app.lifespan():
            _say(app, f"is a {role}")
            await asked.wait()
            _say(app, "stops; a second signal ends it at once")


@contextmanager
def _signals(asked: asyncio.Event) -> Iterator[None]:
    """The first SIGTERM or SIGINT asks for a stop, the second ends the process."""
    import asyncio
    import os
    import signal

    loop = asyncio.get_running_loop()

    def heard(number: int) -> None:
        if asked.is_set():
            os._exit(128 + number)
        asked.set()

    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, heard, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _say(app: AgentFlow, what: str) -> None:
    from agentflow.types import VERSION

    providers = ", ".join(sorted(app.runtime.catalogue.providers)) or "no provider"
    typer.echo(f"agentflow {VERSION} {what} ({providers})", err=True)
