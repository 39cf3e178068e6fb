"""What stands around the application: who may come near, and what browsers are told.

Without keys the API is for the people at this machine. A tunnel that brings webhooks in would
bring in everybody, and a page in a browser can send requests to loopback (by DNS rebinding with
its own name as the host, or as a plain form).
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
            "This server asks for no API keys, so only this machine may use the API:"
            " ask http://127.0.0.1 or http://localhost, without a proxy or tunnel."
            " Webhooks and /healthz are open."
        )
        await problem(403, "Forbidden", detail)(scope, receive, send)


SECURITY = {
    b"x-content-type-options": b"nosniff",
    b"content-security-policy": b"default-src 'none'",
    b"referrer-policy": b"no-referrer",
    b"x-frame-options": b"DENY",
}
_JSON = (b"application/json", b"application/problem+json")


class SecurityHeaders:
    """ASGI middleware: every answer says what a browser must not do with it, unless the route said
    so itself, and JSON is kept by no cache. (A file that happens to be JSON has its ETag.)"""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = _secured(list(message.get("headers", ())))
            await send(message)

        await self.app(scope, receive, secured if scope["type"] == "http" else send)


def _secured(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    said = {name.lower(): value for name, value in headers}
    headers += [(name, value) for name, value in SECURITY.items() if name not in said]
    json = said.get(b"content-type", b"").startswith(_JSON)
    if json and b"cache-control" not in said and b"etag" not in said:
        headers.append((b"cache-control", b"no-store"))
    return headers


def from_here(scope: Scope) -> bool:
    """Whether a request was sent from this machine, by nobody else."""
    address, _ = scope.get("client") or ("", 0)
    return address in LOOPBACK and _local(Headers(scope=scope))


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
