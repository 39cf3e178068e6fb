"""One call of a job to a service: who we are, what may go wrong, what is never shown."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from agentflow import AuthenticationFailed, InvalidInput, ProviderFailure, Result
from agentflow_http.answers import result_of
from agentflow_http.asking import Ask
from agentflow_http.auth import OAuth2, Query, Redaction, is_set
from agentflow_http.failures import failure
from agentflow_http.oauth import Tokens
from agentflow_http.service import SAFE, Service
from agentflow_http.wire import Answer, send

if TYPE_CHECKING:
    from agentflow import Call

MARGIN = 0.05
"""The share of the call's time that is kept, to say what happened before the worker cuts it off."""


class Session:
    """What calls of a service have in common, in this process."""

    def __init__(self, name: str, service: Service) -> None:
        self.name, self.service = name, service
        self.tokens = Tokens()
        self.allow = _allowed(service)

    @property
    def redaction(self) -> Redaction:
        held = self.service.redaction
        return Redaction(*held.secrets, self.tokens.known)

    async def result(self, call: Call, ask: Ask, *, repeatable: bool) -> Result:
        """Raises `ProviderFailure` alone."""
        answer = await self.answer(call, ask, repeatable=repeatable)
        if not answer.good:
            raise self.failure(answer, ask, repeatable=repeatable)
        return result_of(answer, ask, self.redaction)

    async def answer(self, call: Call, ask: Ask, *, repeatable: bool) -> Answer:
        """The answer, whatever its status."""
        try:
            return await self._answer(call, ask, repeatable=repeatable)
        except ProviderFailure as error:  # what the network says may quote the URL
            error.message = self.redaction.text(error.message)
            raise

    async def _answer(self, call: Call, ask: Ask, *, repeatable: bool) -> Answer:
        service, auth = self.service, self.service.auth
        timeout = min(ask.timeout or call.timeout, call.timeout) * (1 - MARGIN)
        headers = {name.lower(): value for name, value in service.headers.items()}
        query: dict[str, str] = {}
        if auth is not None and not is_set(auth):
            raise AuthenticationFailed(
                f"The credentials of the service {self.name} are not set for the worker."
            )
        if isinstance(auth, OAuth2):
            token = await self.tokens.token(auth, self.allow, timeout / 2)
            headers["authorization"] = f"Bearer {token}"
        elif isinstance(auth, Query):
            query[auth.name] = auth.value.get_secret_value()
        elif auth is not None:
            headers |= auth.headers()
        if service.idempotency_header is not None and ask.method not in SAFE:
            headers[service.idempotency_header.lower()] = call.job_id
        return await send(
            ask, headers, query, allow=self.allow, most=service.max_response, timeout=timeout,
            unsure=_unsure(ask, repeatable),
        )  # fmt: skip

    def failure(self, answer: Answer, ask: Ask, *, repeatable: bool) -> ProviderFailure:
        """What an answer that is not 2xx comes to."""
        service = self.service
        said = failure(
            answer.status, answer.headers, answer.body,
            unsure=_unsure(ask, repeatable),
            overrides=service.errors,
            message=service.error_message,
            once=service.idempotency_header is not None,
        )  # fmt: skip
        said.message = self.redaction.text(said.message)
        if answer.status == 401 and isinstance(service.auth, OAuth2):
            self.tokens.forget()
            said.retryable = True
        return said

    def url(self, template: str, id: str) -> str:
        """A path of the work `id`. Raises `InvalidInput` for one that would lead elsewhere."""
        if id in (".", ".."):
            raise InvalidInput(f"{id!r} is no id of any work.")
        return self.service.base_url + template.replace("{id}", quote(id, safe=""))


def _unsure(ask: Ask, repeatable: bool) -> bool:
    return not repeatable and ask.method not in SAFE


def _allowed(service: Service) -> frozenset[str]:
    """The hosts of a private service, as the guard knows them."""
    urls = [service.base_url]
    if isinstance(service.auth, OAuth2):
        urls.append(service.auth.token_url)
    return frozenset(place(url) for url in urls) if service.private else frozenset()


def place(url: str) -> str:
    """`host:port`"""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
