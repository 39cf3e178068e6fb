"""Keeps the API of a server without keys for the people at this machine.

A tunnel that brings webhooks in would bring in everybody, and a page in a browser can send
requests to loopback (by DNS rebinding with its own name as the host, or as a plain form).
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from agentflow.settings import LOOPBACK
from agentflow.web.problems import problem

_FORWARDED = (
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-real-ip",
    "cf-connecting-ip",
    "via",
)
"""What a tunnel or proxy adds, also one that rewrites the host."""


class LocalOnly:
    """ASGI middleware: 403 for all but webhooks and `/healthz`, unless the request is from here.

    "From here" means: every `Host` is a loopback name, nobody forwarded it, and the page that
    sent it, if one did, was from loopback too.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _open(scope["path"]) or _local(Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        detail = (
            "There are no API keys yet, so only this machine may use the API:"
            " ask http://127.0.0.1 or http://localhost, without a proxy or tunnel."
            " Webhooks and /healthz are open."
        )
        await problem(403, "Forbidden", detail)(scope, receive, send)


def _open(path: str) -> bool:
    return path.startswith("/webhooks/") or path == "/healthz"


def _local(headers: Headers) -> bool:
    hosts = headers.getlist("host")
    origins = headers.getlist("origin")
    return (
        bool(hosts)
        and all(_name(f"//{host}") in LOOPBACK for host in hosts)
        and all(_name(origin) in LOOPBACK for origin in origins)
        and not any(name in headers for name in _FORWARDED)
    )


def _name(url: str) -> str | None:
    """The host of a URL in lower case, without its port; None if there is none."""
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
