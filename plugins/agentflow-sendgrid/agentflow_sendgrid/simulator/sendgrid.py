"""SendGrid's v3 API and its Event Webhook, as far as the plugin and its users meet them."""

from __future__ import annotations

import asyncio
import base64
import time
import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import orjson
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from agentflow.testing.simulator import RETRIES, Json, Simulator
from agentflow_sendgrid.mail import TO, TOKEN
from agentflow_sendgrid.simulator.webhooks import Webhooks

JUNK: list[Any] = [None, 7, [], {"event": 3}, {TOKEN: ["x"], "email": {}}, {TOKEN: "a\0b"}]

BROKEN = b'{"event": "open", "useragent": "\\ud83d"}'
"""Half a character, as somebody's mail program may call itself: no JSON for strict readers."""


class Script(BaseModel):
    """What becomes of a mail: JSON in its custom argument `simulate`."""

    model_config = ConfigDict(extra="forbid")

    seconds: float = 0.05
    ends: Literal["delivered", "bounce", "dropped", "never"] = "delivered"
    deferred: int = 0
    """How often the receiving server puts it off."""
    later: list[str] = []
    """What its reader does, as `open`."""
    junk: bool = False
    """Whether each batch has elements that make no sense."""
    broken: bool = False
    """Whether each batch has an element that is no JSON."""
    twice: bool = False
    """Whether the events come again, in another batch."""


class SendGridSimulator(Simulator):
    """`webhook_url` is the account's Event Webhook. `stats.created` counts mails by the attempt's
    token."""

    def __init__(self, *, key: str, retries: Sequence[float] = RETRIES, seed: int = 0) -> None:
        super().__init__(retries=retries, seed=seed)
        self.key = key
        self.mails: list[dict[str, Any]] = []
        self.webhooks = Webhooks(self)
        self.nameless = False
        """Whether it takes mails without giving them an id."""
        self._pair, self._other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))

    @property
    def public_key(self) -> str:
        """As SendGrid shows it."""
        public = self._pair.public_key()
        der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return base64.b64encode(der).decode()

    def env(self) -> dict[str, str]:
        return {
            "SENDGRID_API_KEY": self.key,
            "SENDGRID_BASE_URL": self.url,
            "SENDGRID_WEBHOOK_PUBLIC_KEY": self.public_key,
        }

    def sign(
        self,
        delivery_id: str,  # noqa: ARG002 - SendGrid names none
        sent_at: datetime,
        body: bytes,
        forged: bool,
    ) -> Any:
        """Nothing names the delivery but its content."""
        timestamp = str(int(sent_at.timestamp()))
        pair = self._other if forged else self._pair
        signature = pair.sign(timestamp.encode() + body, ec.ECDSA(SHA256()))
        return {
            "X-Twilio-Email-Event-Webhook-Signature": base64.b64encode(signature).decode(),
            "X-Twilio-Email-Event-Webhook-Timestamp": timestamp,
        }

    def routes(self) -> Sequence[BaseRoute]:
        return [Route("/v3/mail/send", self._send, methods=["POST"]), *self.webhooks.routes()]

    def stranger(self, request: Request) -> Response | None:
        """The answer to one without the key."""
        if request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        return self.problem(401, "auth", "The provided authorization grant is invalid")

    def problem(self, status: int, title: str, detail: str, **more: Any) -> Response:
        """`{"errors": [{message, field, help}]}`"""
        return Json({"errors": [{"message": detail, "field": None, "help": title, **more}]}, status)

    def throttled(self, seconds: float) -> Response:
        response = self.problem(429, "limit", "too many requests")
        response.headers["x-ratelimit-reset"] = f"{time.time() + seconds:.3f}"
        return response

    async def _send(self, request: Request) -> Response:
        if (refused := self.stranger(request)) is not None:
            return refused
        asked = orjson.loads(await request.body())
        about = asked.get("custom_args") or {}
        try:
            script = Script.model_validate_json(about.get("simulate") or "{}")
        except ValueError as error:
            return self.problem(400, "script", str(error), field="custom_args.simulate")

        async def create() -> Response:
            id = uuid.uuid4().hex[:22]
            self.mails.append(asked)
            self.stats.created[about.get(TOKEN, "")] += 1
            living = self.spawn(self._live(asked, script, id))
            if self.hit("webhook_before_response"):
                await asyncio.wait([living])
                await asyncio.sleep(0.1)
            named = {} if self.nameless else {"x-message-id": id}
            return Response(status_code=202, headers=named)

        return await self.faulty(create, self.hit)

    async def _live(self, asked: dict[str, Any], script: Script, id: str) -> None:
        urls = {each["url"] for each in self.webhooks.all.values() if each.get("public_key")}
        urls |= {self.webhook_url} if self.webhook_url else set()
        await asyncio.gather(*(self._tell(url, asked, script, id) for url in urls))

    async def _tell(self, url: str, asked: dict[str, Any], script: Script, id: str) -> None:
        outbox = self.outbox(url, self.hit)
        ends = "bounce" if self.hit("fail") else script.ends
        kinds = ["processed", *["deferred"] * script.deferred, *([ends] * (ends != "never"))]
        events = [event for kind in kinds for event in self._events(asked, kind, id)]
        await asyncio.sleep(script.seconds)
        for event in events[:-1]:
            outbox.post(_batch([event], script), last=False)
        outbox.post(_batch(events[-1:], script), last=True)
        more = [event for kind in script.later for event in self._events(asked, kind, id)]
        if script.twice:
            more = [*events, *more]
        if more:
            await outbox.settled.wait()
            outbox.post(_batch(more, script), last=True)

    def _events(self, asked: dict[str, Any], kind: str, id: str) -> list[dict[str, Any]]:
        """One event of this kind for each recipient, those of copies first: SendGrid keeps no
        order, and so they are news before the one that the job is about."""
        people = [
            person["email"]
            for group in asked["personalizations"]
            for name in ("bcc", "cc", "to")
            for person in group.get(name) or ()
        ]
        about = asked.get("custom_args") or {}
        copies = {p for p in people if p.lower() != about.get(TO)}
        return [
            {
                **about,
                "email": email,
                "timestamp": int(time.time()),
                # Copies bounce: what becomes of them is not what the job is about.
                "event": "bounce" if email in copies and kind == "delivered" else kind,
                "sg_event_id": base64.urlsafe_b64encode(uuid.uuid4().bytes).decode(),
                "sg_message_id": f"{id}.recvd-5f54b5d587-1",
                "smtp-id": f"<{id}@sendgrid.net>",
                "reason": "550 no such mailbox" if kind in ("bounce", "dropped") else None,
                "response": "250 OK" if kind == "delivered" else None,
            }
            for email in people
        ]


def _batch(events: list[dict[str, Any]], script: Script) -> bytes:
    """As SendGrid writes it: each event on a line of its own, with CRLF, which is signed too."""
    junk = [*(JUNK if script.junk else []), *events]
    lines = [*([BROKEN] if script.broken else []), *map(orjson.dumps, junk)]
    return b"[" + b",\r\n".join(lines) + b"]\r\n"
