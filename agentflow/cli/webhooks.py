"""`agentflow doctor --set-up` and `--test`: a provider's webhooks, made and tried."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from agentflow.cli.env_file import EnvFile
from agentflow.cli.finding import Finding, State
from agentflow.cli.leaving import Code, leave, settings_checked

if TYPE_CHECKING:
    from agentflow.core.providers import WebhookSetup, WebhooksReady
    from agentflow.plugins.catalogue import Ready
    from agentflow.settings import Settings

ARRIVES_WITHIN = 15.0
"""Seconds that a sample may take."""

WHY = {
    401: "the key there is another: restart the server with the one that was stored",
    404: "there is no agentflow, or none with this plugin",
    403: "something before agentflow keeps strangers out",
    503: "the server has no key for these webhooks, or no database: restart it with the key",
}
"""What an answer to a sample tells about the server."""


def set_up(name: str, *, store: Path | None, show: bool, rotate: bool) -> list[Finding]:
    """Have the provider send its webhooks to the public URL; keep the key where told."""
    ready, settings = _provider(name)
    if ready.provider.webhook_setter is None:
        leave(Code.USAGE, f"The plugin of {name} cannot set webhooks up; see its page.")
    if store is None and not show:
        leave(
            Code.USAGE,
            "Say where the key shall go, which may be shown this once: --store .env or --show-key",
        )
    file = EnvFile(store) if store is not None else None
    if file is not None and (problem := file.problem()) is not None:
        leave(Code.USAGE, problem)  # before there is a key that could be lost
    check = f"{name} webhooks"
    made = _asked(ready.provider.webhook_setter, _setup(ready, settings, rotate), check)
    if isinstance(made, Finding):
        return [made]
    found = [Finding(check, "ok", made.note)]
    if made.key is not None and made.field is not None:
        found.append(_kept(ready, made, file, show))
    elif ready.webhook_problem:
        said = f"{ready.webhook_problem}. {name} shows its key no more: --rotate makes a new one"
        found.append(Finding(f"{name} key", "fail", said))
    return found


def _kept(ready: Ready, made: WebhooksReady, file: EnvFile | None, show: bool) -> Finding:
    variable, value = variable_of(ready.settings, made.field or ""), made.key or ""
    if made.keep_old and (old := _present(ready.settings, made.field or "")):
        value = f"{value},{old.replace(',', ' ').split()[0]}"
    if show:
        typer.echo(f"{variable}={value}", err=True)  # the table would wrap it
    if file is None:
        return Finding(f"{ready.provider.name} key", "ok", f"{variable} was shown, this once")
    try:
        file.set(variable, value)
    except OSError as error:
        said = f"{file.path} cannot be written: {error.strerror}. Its key is lost: say --rotate"
        return Finding(f"{ready.provider.name} key", "fail", said)
    said = f"{variable} is in {file.path}: restart the server with it"
    return Finding(f"{ready.provider.name} key", "ok", said)


def try_out(name: str, url: str | None) -> list[Finding]:
    """Have the provider send a sample, and see it in the server's inbox."""
    ready, settings = _provider(name)
    if ready.provider.webhook_tester is None:
        leave(Code.USAGE, f"The plugin of {name} cannot have a sample sent; see its page.")
    check = f"{name} sample"
    before = _deliveries(name, url, settings)
    status = _asked(ready.provider.webhook_tester, _setup(ready, settings), check)
    if isinstance(status, Finding):
        return [status]
    if status is not None and not 200 <= status < 300:
        why = WHY.get(status, "see the server's log")
        return [Finding(check, "fail", f"{name} was answered {status}: {why}")]
    if before is None:
        state: State = "warn" if status is None else "ok"
        said = f"{name} was answered {status}" if status is not None else "it was sent"
        return [Finding(check, state, f"{said}; the server cannot be asked for it from here")]
    return [_arrived(name, url, settings, before)]


def _arrived(name: str, url: str | None, settings: Settings, before: set[str]) -> Finding:
    until = time.monotonic() + ARRIVES_WITHIN
    while time.monotonic() < until:
        new = (_deliveries(name, url, settings) or set()) - before
        if new:
            return Finding(f"{name} sample", "ok", f"it arrived, signed as it should: {min(new)}")
        time.sleep(0.2)
    said = f"nothing arrived within {ARRIVES_WITHIN:g} s; see agentflow deliveries and the log"
    return Finding(f"{name} sample", "fail", said)


def _deliveries(name: str, url: str | None, settings: Settings) -> set[str] | None:
    """The newest deliveries of the provider; None if the server does not tell."""
    from itertools import islice

    from agentflow.client import Client, ClientError

    key = settings.api_key.get_secret_value() if settings.api_key else None
    try:
        with Client(url or settings.url, key, repeats=0, timeout=5.0) as client:
            return {each["id"] for each in islice(client.deliveries(provider=name, page=20), 20)}
    except ClientError:
        return None


def _provider(name: str) -> tuple[Ready, Settings]:
    from agentflow.cli.plugins import installed
    from agentflow.settings import load_settings

    with settings_checked():
        settings = load_settings()
    known = installed(settings)
    if name not in known.providers:
        said = known.problems.get(name) or f"There is no provider {name!r}"
        leave(Code.USAGE, f"{said}. There are: {', '.join(sorted(known.providers)) or 'none'}")
    if settings.public_url is None:
        leave(Code.USAGE, "AGENTFLOW_PUBLIC_URL is not set: where shall the webhooks go?")
    return known.providers[name], settings


def _setup(ready: Ready, settings: Settings, rotate: bool = False) -> WebhookSetup:
    from agentflow.core.providers import WebhookSetup

    url = f"{settings.public_url}/webhooks/{ready.provider.name}"
    first = ready.settings_of(None)  # of several keys
    return WebhookSetup(settings=first, http=None, url=url, rotate=rotate)


def _asked(function: Any, setup: WebhookSetup, check: str) -> Any:
    """What the plugin's function returned; a finding of what it raised, without secrets."""
    from dataclasses import replace

    import httpx

    async def ask() -> Any:
        async with httpx.AsyncClient(timeout=setup.timeout, follow_redirects=False) as http:
            async with asyncio.timeout(setup.timeout):
                return await function(replace(setup, http=http))

    try:
        return asyncio.run(ask())
    except Exception as error:  # the plugin's code, the network
        from agentflow.worker.outcomes import redacted

        said = str(error) or type(error).__name__
        return Finding(check, "fail", redacted(said, setup.settings)[:500])


def variable_of(settings: Any, field: str) -> str:
    """The environment variable of a field of a plugin's settings."""
    prefix = settings.model_config.get("env_prefix", "")
    return f"{prefix}{field}".upper()


def _present(settings: Any, field: str) -> str:
    value = getattr(settings, field, "")
    return str(value.get_secret_value() if hasattr(value, "get_secret_value") else value or "")
