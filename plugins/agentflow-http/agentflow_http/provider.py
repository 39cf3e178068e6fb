"""The provider `http`, and one for each declared service.

A service is a provider of its own: its webhooks have a route, its jobs a queue and limits, its
secrets settings, as those of any plugin.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, SecretStr, create_model, model_validator

from agentflow import (
    Delivery,
    InvalidInput,
    Limit,
    PermissionRefused,
    Policy,
    Provider,
    SettingsError,
    scheme_of,
)
from agentflow_http.asking import (
    HttpGet,
    HttpRequest,
    ServiceGet,
    ServiceRequest,
    bound,
    of_service,
    of_url,
)
from agentflow_http.auth import secrets_of
from agentflow_http.following import add_operation
from agentflow_http.service import Operation, Service
from agentflow_http.session import Session, place
from agentflow_http.settings import HttpSettings
from agentflow_http.work import facts, status

if TYPE_CHECKING:
    from agentflow import Call


def http_provider(services: Mapping[str, Service]) -> Provider:
    """`http.get` and `http.request`, which reach what the settings allow."""
    provider = Provider(
        "http",
        settings=HttpSettings,
        description="Any HTTP service",
        limits=Limit(by=_host),  # a 429 is about one of them
    )
    sessions = {name: Session(name, each) for name, each in services.items()}

    @provider.task("get", input=HttpGet, policy=Policy(repeatable=True))
    async def get(call: Call, input: HttpGet) -> Any:
        """Read a URL: GET or HEAD, harmless to repeat."""
        session = _session(call.settings, input, sessions)
        return await session.result(call, of_url(input), repeatable=True)

    @provider.task("request", input=HttpRequest)
    async def request(call: Call, input: HttpRequest) -> Any:
        """Call a URL once."""
        session = _session(call.settings, input, sessions)
        return await session.result(call, of_url(input), repeatable=False)

    return provider


def _host(input: Any) -> str:
    return place(str(input["url"]))


def _session(
    settings: HttpSettings, input: HttpGet | HttpRequest, sessions: Mapping[str, Session]
) -> Session:
    """Who we are for this URL. Raises `InvalidInput` and `PermissionRefused`."""
    if input.auth is None:
        return _open(settings, input.url)
    session = sessions.get(input.auth)
    if session is None:
        raise InvalidInput(f"auth: there is no service {input.auth!r}")
    base, asked = urlsplit(session.service.base_url), urlsplit(input.url)
    same = (base.scheme, place(session.service.base_url)) == (asked.scheme, place(input.url))
    if not same or not f"{asked.path}/".startswith(f"{base.path}/"):
        raise PermissionRefused(f"The URL is not one of the service {input.auth}.")
    try:
        session.service.admit(input.method, asked.path.removeprefix(base.path) or "/")
    except ValueError as error:
        raise PermissionRefused(f"{input.auth}: {error}") from None
    return session


def _open(settings: HttpSettings, url: str) -> Session:
    """A service that nobody declared: without credentials, where the settings allow it."""
    host = (urlsplit(url).hostname or "").removesuffix(".")
    listed = any(fnmatchcase(host, pattern.lower()) for pattern in settings.hosts)
    if not listed and place(url) not in settings.private:
        raise PermissionRefused(
            f"{host} may not be called: declare a service, or allow it by AGENTFLOW_HTTP_HOSTS."
        )
    plain = Service.model_validate(
        {"base_url": "https://any.invalid", "max_response": settings.max_response}
    )
    session = Session(host, plain)
    session.allow = settings.private
    return session


class ServiceSettings(BaseModel):
    """The secrets of a service, where the core knows to cut them out: `credential` and
    `webhook_secret`, those that it declares."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)


def broken_provider(name: str, problem: str) -> Provider:
    """Stands for a service that is declared wrong, so that it is reported and the rest runs."""

    def refuse(_: Any) -> Any:
        raise SettingsError(f"AGENTFLOW_HTTP_SERVICES: {name}: {problem}")

    validators: dict[str, Any] = {"refuse": model_validator(mode="before")(refuse)}
    return Provider(name, settings=create_model(f"{name}_Broken", __validators__=validators))


def service_provider(name: str, service: Service) -> Provider:
    """`NAME.get`, `NAME.request`, and the tasks that are declared."""
    hook = service.webhook
    secrets: dict[str, Any] = {}
    if service.auth is not None:
        credential = SecretStr(next(iter(secrets_of(service.auth)), ""))
        secrets["credential"] = (SecretStr, credential)
    if hook is not None and hook.secret is not None:
        secrets["webhook_secret"] = (SecretStr, hook.secret)
    settings: Any = create_model(f"{name}_Settings", __base__=ServiceSettings, **secrets)
    provider = Provider(
        name,
        settings=settings,
        webhooks="none"
        if hook is None
        else ("per_request" if hook.send.per_request else "account"),
        scheme=None if hook is None else scheme_of(hook.scheme),
        artifact_hosts=service.artifact_hosts,
        max_body=hook.max_body if hook else 1024 * 1024,
        description=service.description or f"{urlsplit(service.base_url).hostname} by HTTP",
    )
    session = Session(name, service)
    _plain_tasks(provider, session)
    for task, operation in service.tasks.items():
        add_operation(provider, session, task, operation, policy(service, operation))
    if hook is not None:
        provider.parse(lambda delivery: facts(delivery, service))
        provider.type_of(lambda delivery: _type(delivery, service))
    return provider


def _type(delivery: Delivery, service: Service) -> str | None:
    assert service.webhook is not None, "asked of webhooks alone"
    return status(delivery.json, service.webhook)


def policy(service: Service, operation: Operation | None = None, *, safe: bool = False) -> Policy:
    """A call with an idempotency key is not made twice at once, and repeated when unsure."""
    safe = operation.safe if operation else safe
    once = service.idempotency_header is not None and not safe
    work = operation.work if operation else None
    return Policy(
        repeatable=safe,
        on_unknown="retry" if once else "fail",
        unknown_checks=1 if once else Policy().unknown_checks,
        timeout=(operation and operation.timeout) or service.timeout,
        deadline=(operation and operation.deadline) or service.deadline,
        max_attempts=service.max_attempts,
        poll_after=work.poll_after if work else Policy().poll_after,
        poll_max=max(work.poll_after, work.poll_max) if work else Policy().poll_max,
    )


def _plain_tasks(provider: Provider, session: Session) -> None:
    name, service = session.name, session.service

    @provider.task(
        "get",
        input=bound(name, service, ServiceGet),
        policy=policy(service, safe=True),
        description=f"Read a path of {name}: GET or HEAD, harmless to repeat.",
    )
    async def get(call: Call, input: ServiceGet) -> Any:
        return await session.result(call, of_service(input, service), repeatable=True)

    @provider.task(
        "request",
        input=bound(name, service, ServiceRequest),
        policy=policy(service),
        description=f"Call a path of {name} once.",
    )
    async def request(call: Call, input: ServiceRequest) -> Any:
        return await session.result(call, of_service(input, service), repeatable=False)
