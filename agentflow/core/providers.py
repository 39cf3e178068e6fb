"""The contract between agentflow and a provider's plugin. A plugin only describes; see design 7.

A `Provider` names the service; `@provider.task` wraps one operation; `fetch`, `find` and `cancel`
say how to ask after it, and get the job's input if they have a parameter `input`; `@provider.parse`
translates webhooks. Functions may be async or plain (plain ones run in a thread).
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import (
    Any,
    Generic,
    Literal,
    Protocol,
    TypeAlias,
    TypeVar,
    get_args,
    runtime_checkable,
)

import orjson
from pydantic import BaseModel, JsonValue, TypeAdapter, ValidationError

from agentflow.core.events import (
    Accepted,
    Canceled,
    Changed,
    Failed,
    Progressed,
    Succeeded,
)
from agentflow.core.language import ModelReply, ModelRequest
from agentflow.core.limits import Limit
from agentflow.core.policy import Abilities, Policy
from agentflow.core.pricing import Price, models_of
from agentflow.core.results import Result
from agentflow.errors import PluginError, ProviderError, ProviderFailure
from agentflow.types import Json

Outcome: TypeAlias = Accepted | Progressed | Changed | Succeeded | Failed | Canceled
"""What a plugin can say about an attempt."""

WebhookFamily: TypeAlias = Literal["per_request", "account", "none"]

TaskKind: TypeAlias = Literal["model"]
"""`model`: takes a `ModelRequest`, comes to a `ModelReply`."""

NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
TASK_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}(\.[a-z][a-z0-9_]{0,39})+")

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Verified:
    """What a signature vouches for: the delivery's id and the time it was sent, where it says.

    `proof` names the headers, in lower case, that held it and are not to be kept.
    """

    delivery_id: str | None = None
    sent_at: datetime | None = None
    proof: tuple[str, ...] = field(default=(), compare=False)


class Verifier(Protocol):
    """Proves that a delivery is from whom it says; made by a scheme with its keys in hand."""

    def check(self) -> None:
        """Raise `SettingsError` for a key that is missing, weak or malformed."""

    def verify(self, headers: Mapping[str, str], body: bytes, now: datetime) -> Verified:
        """Raise `SignatureError`, and nothing else whatever the input, for a forged delivery."""


Get: TypeAlias = Callable[[str], Awaitable[bytes]]
"""From a URL to what is there. Raises where there is nothing."""


@runtime_checkable
class FetchesKeys(Protocol):
    """A verifier whose keys lie at the provider. It knows those it holds; for a signature by none
    of them, `verify` raises `UnknownKey`, and is asked again after a `refresh`."""

    async def refresh(self, get: Get, now: datetime) -> None:
        """Hold the newest keys. Bounded, however often it is called. Raises `KeysUnavailable`."""


class Scheme(Protocol):
    """How a provider signs its webhooks, naming the settings that hold the keys."""

    def verifier(self, settings: Any) -> Verifier: ...


@dataclass(frozen=True, slots=True)
class Delivery:
    """A webhook as it came in: verified, stored, not yet understood.

    `headers` have lower-case names, without the signature. `token` is the attempt's, from the URL.
    """

    provider: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    delivery_id: str | None = None
    token: str | None = None
    received_at: datetime | None = None

    @property
    def json(self) -> Json:
        """The parsed body. Raises `ValueError` if it is not JSON."""
        return orjson.loads(self.body)


@dataclass(frozen=True, slots=True)
class Fact:
    """One event of a delivery, and how to find the attempt it is about.

    The attempt's token routes first, here or in the URL; else `external_id`. Neither: nobody's,
    stored and ignored. `id` is the provider's own for this event, where several deliveries may
    bring it: it is applied once.
    """

    event: Outcome
    external_id: str | None = None
    token: str | None = None
    id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSetup:
    """What there is to set a provider's webhooks up with.

    `settings` is the provider's settings object, `http` an `httpx.AsyncClient` without credentials,
    `url` where the webhooks shall come. `rotate` asks for a new key in place of the present one.
    `timeout` is in seconds, for the whole function.
    """

    settings: Any
    http: Any
    url: str
    rotate: bool = False
    timeout: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhooksReady:
    """How the provider's webhooks now stand. `note` is a line for people.

    `key` is what they are signed with, or checked by, for `field` of the settings; None where the
    provider shows it no more. `keep_old`: it still signs with the present one beside it.
    """

    note: str
    key: str | None = dataclasses.field(default=None, repr=False)
    field: str | None = None
    keep_old: bool = False


Parse: TypeAlias = Callable[[Delivery], Sequence[Fact]]


@dataclass(slots=True, eq=False)
class Task(Generic[F]):
    """One operation of a provider. Calling it calls the plain function."""

    name: str
    function: F
    input: type[BaseModel] | None = None
    policy: Policy = field(default_factory=Policy)
    description: str = ""
    kind: TaskKind | None = None
    fetch_timeout: float = 30.0
    """Seconds that one `fetch` may take."""
    fetcher: Callable[..., Any] | None = None
    finder: Callable[..., Any] | None = None
    canceler: Callable[..., Any] | None = None
    bounder: Callable[[Json], Mapping[str, float] | None] | None = None
    limits: tuple[Limit, ...] = ()
    asks_input: bool = False
    """Whether `fetch`, `find` or `cancel` wants the job's input."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def fetch(self, function: F2) -> F2:
        """`fetch(call, external_id) -> Outcome | None`: ask after the work. Raising is no news."""
        self.fetcher = function
        self.asks_input |= takes_input(function)
        return function

    def find(self, function: F2) -> F2:
        """`find(call, token, since) -> external_id | None`: look for a call made by this token."""
        self.finder = function
        self.asks_input |= takes_input(function)
        return function

    def cancel(self, function: F2) -> F2:
        """`cancel(call, external_id) -> Outcome | None`: ask the provider to stop the work."""
        self.canceler = function
        self.asks_input |= takes_input(function)
        return function

    def most(
        self, function: Callable[[Json], Mapping[str, float] | None]
    ) -> Callable[[Json], Mapping[str, float] | None]:
        """`most(input) -> usage | None`: what one call uses at the very most, by the units of the
        price table; pure, and None where nobody knows. `input` is JSON. Budgets rely on it."""
        self.bounder = function
        return function

    def bound(self, input: Json) -> Mapping[str, float]:
        """What `most` says, and nothing where it says nothing or fails."""
        try:
            return (self.bounder(input) if self.bounder else None) or {}
        except Exception:  # a stranger's code: then the bound is unknown
            return {}

    def abilities(self, *, webhooks: bool) -> Abilities:
        return Abilities(
            webhooks=webhooks,
            fetch=self.fetcher is not None,
            find=self.finder is not None,
            cancel=self.canceler is not None,
        )

    def validate(self, input: Json) -> Any:
        """The input as the task's model. Raises pydantic's `ValidationError`."""
        if self.input is None:
            return _ANY_JSON.validate_python(input)
        return self.input.model_validate(input)

    def check(self, output: Json) -> None:
        """Raise `ProviderError` for a result's output that does not fit the task's kind."""
        if self.kind != "model":
            return
        try:
            ModelReply.model_validate(output)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"])) or "the output"
            raise ProviderError(f"No ModelReply came back: {place}: {first['msg']}") from None

    @property
    def schema(self) -> dict[str, Any]:
        """JSON Schema of the input; `{}` admits anything."""
        return {} if self.input is None else self.input.model_json_schema()


F2 = TypeVar("F2", bound=Callable[..., Any])
_ANY_JSON: TypeAdapter[JsonValue] = TypeAdapter(JsonValue)


class Provider:
    """An external service.

    `settings` is a pydantic-settings class, read once at start. `webhooks` says how callbacks come:
    `per_request` (our URL carries the attempt's token), `account` (one endpoint for all; facts are
    found by external id) or `none`. `scheme` says how they are signed. `artifact_hosts` are the
    hosts the outputs may be downloaded from (`*.acme.com`); None admits any public host.
    `keys` names the setting, a `SecretStr`, that holds one key or several with commas between:
    each call is made with one of them. `limits` hold for all tasks together, for each key.
    `local` marks code of our own rather than a paid service. `prices` is the table by which calls
    are priced whose provider does not say what they cost, or a function of the settings. `loads`
    names the module that the functions import when they run, with the SDK in it: workers load it
    in a thread before, so that nothing else stands still meanwhile.
    """

    def __init__(
        self,
        name: str,
        *,
        settings: type[BaseModel] | None = None,
        webhooks: WebhookFamily = "none",
        scheme: Scheme | None = None,
        artifact_hosts: Sequence[str] | Callable[[Any], Sequence[str]] | None = None,
        max_body: int = 1024 * 1024,
        description: str = "",
        local: bool = False,
        prices: Sequence[Price] | Callable[[Any], Sequence[Price]] = (),
        keys: str | None = None,
        limits: Limit | Sequence[Limit] = (),
        loads: str | None = None,
    ) -> None:
        if not NAME.fullmatch(name):
            raise PluginError(f"{name!r} is no provider name: a-z, then a-z, 0-9, _")
        if webhooks not in get_args(WebhookFamily):
            known = ", ".join(get_args(WebhookFamily))
            raise PluginError(f"provider {name}: webhooks is {webhooks!r}, not one of {known}")
        if webhooks != "none" and scheme is None:
            raise PluginError(f"provider {name} takes webhooks and says no signature scheme")
        if keys is not None and keys not in getattr(settings, "model_fields", {}):
            raise PluginError(f"provider {name} has its keys in {keys!r}, which is no setting")
        self.name = name
        self.settings = settings
        self.webhooks: WebhookFamily = webhooks
        self.scheme = scheme
        self.artifact_hosts = artifact_hosts
        self.max_body = max_body
        self.description = description
        self.local = local
        self.prices = prices
        self.keys = keys
        self.limits = several(limits)
        self.loads = loads
        self.tasks: dict[str, Task[Any]] = {}
        self.parser: Parse | None = None
        self.translator: Callable[[Exception], ProviderFailure | None] | None = None
        self.typer: Callable[[Delivery], str | None] = default_type
        self.namer: Callable[[Json, Result | None], Sequence[str]] = models_of
        self.webhook_setter: Callable[[WebhookSetup], Any] | None = None
        self.webhook_tester: Callable[[WebhookSetup], Any] | None = None

    def task(
        self,
        name: str,
        *,
        input: type[BaseModel] | None = None,
        policy: Policy | None = None,
        description: str = "",
        kind: TaskKind | None = None,
        limits: Limit | Sequence[Limit] = (),
        fetch_timeout: float = 30.0,
    ) -> Callable[[F], Task[F]]:
        """Wrap `function(call, input)`, which returns an `Accepted`, `Succeeded`, `Failed`,
        `Result`, or any JSON value (the result's output). One of `kind="model"` takes a
        `ModelRequest` (`input` may be a subclass) and comes to a `ModelReply`. `limits` hold for
        this task besides those of the provider. `fetch_timeout` is in seconds, for a `fetch` that
        brings large files. Raises `PluginError` for a bad name or an input that does not fit the
        kind."""
        full = f"{self.name}.{name}"
        if kind == "model":
            input = input or ModelRequest
            if not issubclass(input, ModelRequest):
                raise PluginError(f"{full}: the input of a model task is a ModelRequest")

        def wrap(function: F) -> Task[F]:
            if not TASK_NAME.fullmatch(full) or full in self.tasks:
                raise PluginError(f"{full!r} is no task name, or taken")
            doc = description or (function.__doc__ or "").strip().split("\n")[0]
            task = Task(full, function, input, policy or Policy(), doc, kind, fetch_timeout)
            task.limits = several(limits)
            self.tasks[full] = task
            return task

        return wrap

    def parse(self, function: Parse) -> Parse:
        """`parse(delivery) -> [Fact]`: pure; the bytes are already verified. [] means unknown."""
        self.parser = function
        return function

    def translate(
        self, function: Callable[[Exception], ProviderFailure | None]
    ) -> Callable[[Exception], ProviderFailure | None]:
        """`translate(exc) -> ProviderFailure | None`: the SDK's errors in our words."""
        self.translator = function
        return function

    def billed_as(
        self, function: Callable[[Json, Result | None], Sequence[str]]
    ) -> Callable[[Json, Result | None], Sequence[str]]:
        """`billed_as(input, result) -> names`: what prices are looked up by, the most exact first;
        `result` is None before the call. Without it, `model` of the output, then of the input."""
        self.namer = function
        return function

    def type_of(self, function: Callable[[Delivery], str | None]) -> Any:
        """`type_of(delivery) -> str | None`: the name `@app.on_webhook` selects by."""
        self.typer = function
        return function

    def set_up_webhooks(self, function: F2) -> F2:
        """`set_up(setup) -> WebhooksReady`: have the provider send its webhooks to `setup.url`, and
        bring home the key. Harmless to repeat. Raises `ProviderFailure`; a person runs it, by
        `agentflow doctor`."""
        self.webhook_setter = function
        return function

    def test_webhooks(self, function: F2) -> F2:
        """`test(setup) -> int | None`: have a sample sent to `setup.url`; the status that the
        provider was answered, where it tells."""
        self.webhook_tester = function
        return function


def takes_input(function: Callable[..., Any]) -> bool:
    """Whether it has a parameter of the name `input`."""
    try:
        return "input" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # it does not tell
        return False


def several(limits: Limit | Sequence[Limit]) -> tuple[Limit, ...]:
    return (limits,) if isinstance(limits, Limit) else tuple(limits)


def default_type(delivery: Delivery) -> str | None:
    """The first of `type`, `event` and `status` that the body holds as text."""
    body = delivery.json
    if not isinstance(body, dict):
        return None
    return next(
        (body[k] for k in ("type", "event", "status") if isinstance(body.get(k), str)), None
    )
