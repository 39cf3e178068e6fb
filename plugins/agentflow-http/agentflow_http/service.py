"""A service as configuration describes it: where it is, what may be asked, how its work goes on."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, JsonValue, field_validator, model_validator

from agentflow import SettingsError, scheme_of
from agentflow_http.auth import Auth, HeaderName, OAuth2, Redaction, Secret, Shape, secrets_of
from agentflow_http.failures import KINDS
from agentflow_http.pointer import Pointer

Method: TypeAlias = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
SAFE = ("GET", "HEAD")
Expect: TypeAlias = Literal["auto", "json", "text", "file"]

_PATH = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*")
_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HIDDEN = re.compile(r"%(2e|2f|5c|00)", re.IGNORECASE)
_PLACE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
TASK = re.compile(r"[a-z][a-z0-9_]{0,39}")


def checked_path(path: str) -> str:
    """Raises `ValueError` for a path that could lead elsewhere than it seems to."""
    if not _PATH.fullmatch(path) or _PERCENT.search(path):
        raise ValueError("is no path of a URL: it begins with / and is percent-encoded")
    if _HIDDEN.search(path) or "//" in path or {".", ".."} & set(path.split("/")):
        raise ValueError("must not have empty or dotted segments, nor hide a slash or a dot")
    return path


def _template(path: str) -> str:
    checked_path(_PLACE.sub("x", path))
    return path


Path = Annotated[str, AfterValidator(checked_path)]
PathTemplate = Annotated[str, AfterValidator(_template)]
Words = Annotated[list[str], Field(default_factory=list)]


def places(template: str) -> list[str]:
    """The `{names}` in a path."""
    return _PLACE.findall(template)


def filled(template: str, values: dict[str, str]) -> str:
    return _PLACE.sub(lambda found: values[found[1]], template)


class Reading(Shape):
    """How a document says how the work stands."""

    status: Pointer
    running: Words
    succeeded: list[str] = Field(min_length=1)
    failed: Words
    canceled: Words
    result: Pointer | None = None
    """Where the result is; in the answer to a look, unset is the whole document."""
    error: Pointer | None = None
    progress: Pointer | None = None
    """A number from 0 to 1."""
    artifacts: list[Pointer] = Field(default_factory=list)
    """Where in the result URLs of files are; `*` stands for every element."""

    @model_validator(mode="after")
    def _apart(self) -> Reading:
        words = [*self.running, *self.succeeded, *self.failed, *self.canceled]
        if len(words) != len(set(words)):
            raise ValueError("a word stands for one state only")
        return self


class Cancel(Shape):
    method: Method = "POST"
    path: PathTemplate


class Work(Reading):
    """Work that goes on after the answer: `{id}` in a path is the service's id of it."""

    id: Pointer
    """Where in the answer the id is."""
    status_path: PathTemplate | None = None
    """What is asked how the work stands; unset, only webhooks tell."""
    result_path: PathTemplate | None = None
    """Where the result is once the status says that there is one."""
    cancel: Cancel | None = None
    poll_after: float = Field(5.0, gt=0)
    poll_max: float = Field(60.0, gt=0)

    @model_validator(mode="after")
    def _by_id(self) -> Work:
        paths = [self.status_path, self.result_path, self.cancel.path if self.cancel else None]
        for path in filter(None, paths):
            if places(path) != ["id"]:
                raise ValueError(f"{path} has {{id}} once, and no other place")
        return self


class Send(Shape):
    """What a create carries so that its webhook finds us: values with `{url}`, `{token}` and
    `{secret}`."""

    query: dict[str, str] = Field(default_factory=dict)
    headers: dict[HeaderName, str] = Field(default_factory=dict)
    body: dict[str, str] = Field(default_factory=dict)
    """By the name of a member, or by a pointer."""

    @property
    def per_request(self) -> bool:
        values = [*self.query.values(), *self.headers.values(), *self.body.values()]
        return any("{url}" in value for value in values)


class Webhook(Reading):
    """The webhooks of a service. Where a success brings no result, the work is asked after."""

    scheme: dict[str, JsonValue]
    secret: Secret | None = None
    id: Pointer
    token: Pointer | None = None
    """Where a webhook brings the attempt's token back."""
    event: Pointer | None = None
    """Where the service's own id of the event is; one that comes twice counts once."""
    send: Send = Field(default_factory=Send)
    max_body: int = Field(1024 * 1024, ge=1)

    @property
    def family(self) -> Literal["per_request", "account"]:
        return "per_request" if self.send.per_request else "account"

    @field_validator("scheme")
    @classmethod
    def _known(cls, declared: dict[str, Any]) -> dict[str, Any]:
        try:
            scheme_of(declared)
        except SettingsError as error:
            raise ValueError(error.message) from None
        return declared


class Operation(Shape):
    """A task of its own. Its input is what the service is sent; `{names}` in the path take
    members out of it."""

    method: Method = "POST"
    path: PathTemplate
    description: str = ""
    defaults: dict[str, JsonValue] = Field(default_factory=dict)
    """Members that the input may leave out."""
    send_as: Literal["json", "form"] = "json"
    expect: Expect = "auto"
    output: Pointer | None = None
    repeatable: bool | None = None
    """Whether it is harmless to do twice; unset, GET and HEAD are."""
    timeout: float | None = Field(None, gt=0)
    deadline: float | None = Field(None, gt=0)
    work: Work | None = None

    @property
    def safe(self) -> bool:
        return self.method in SAFE if self.repeatable is None else self.repeatable


class Service(Shape):
    """Durations are in seconds, sizes in bytes."""

    base_url: str
    description: str = ""
    auth: Auth | None = None
    headers: dict[HeaderName, str] = Field(default_factory=dict)
    """Sent with every call. Nothing secret: that is what `auth` is for."""
    methods: tuple[Method, ...] = ("GET", "HEAD", "POST")
    paths: tuple[str, ...] = ("/*",)
    """Which paths below `base_url` may be asked; `*` stands for anything."""
    idempotency_header: HeaderName | None = None
    """Carries the job's id, by which the service does a repeated call once."""
    errors: dict[Annotated[str, Field(pattern=r"^[3-5][0-9]{2}$")], str] = Field(
        default_factory=dict
    )
    error_message: Pointer | None = None
    max_response: int = Field(16 * 1024 * 1024, ge=1)
    private: bool = False
    """Whether the host of `base_url` may have an address that is not public."""
    artifact_hosts: list[str] | None = None
    timeout: float = Field(60.0, gt=0)
    deadline: float = Field(3600.0, gt=0)
    max_attempts: int = Field(3, ge=1)
    webhook: Webhook | None = None
    tasks: dict[str, Operation] = Field(default_factory=dict)

    @field_validator("base_url")
    @classmethod
    def _absolute(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("https", "http") or not parts.hostname or parts.username:
            raise ValueError("is an https:// URL without credentials")
        if parts.query or parts.fragment:
            raise ValueError("has no query and no fragment")
        if parts.path.strip("/"):
            checked_path(parts.path.rstrip("/"))
        return url.rstrip("/")

    @field_validator("errors")
    @classmethod
    def _kinds(cls, errors: dict[str, str]) -> dict[str, str]:
        if unknown := set(errors.values()) - KINDS.keys():
            raise ValueError(f"no error is called {', '.join(sorted(unknown))}")
        return errors

    @field_validator("tasks")
    @classmethod
    def _names(cls, tasks: dict[str, Operation]) -> dict[str, Operation]:
        for name in tasks:
            if not TASK.fullmatch(name) or name in ("get", "request"):
                raise ValueError(f"{name!r} is no task's name, or taken")
        return tasks

    @model_validator(mode="after")
    def _whole(self) -> Service:
        plain = urlsplit(self.base_url).scheme == "http"
        if plain and not self.private:
            raise ValueError("base_url: http is for private services (private = true)")
        if isinstance(self.auth, OAuth2) and not self.auth.token_url.startswith(
            ("https://", *(["http://"] if self.private else []))
        ):
            raise ValueError("auth: token_url is an https:// URL")
        asked = [o.work.status_path for o in self.tasks.values() if o.work]
        if self.webhook is None and None in asked:
            raise ValueError("tasks: without a webhook, work needs a status_path")
        if None in asked and self.webhook is not None and self.webhook.result is None:
            raise ValueError("webhook: without a status_path, the webhook brings the result")
        return self

    def admit(self, method: str, path: str) -> None:
        """Raises `ValueError` for what may not be asked."""
        if method not in self.methods:
            raise ValueError(f"{method} is not among the methods of this service")
        checked_path(path)
        if not any(_fits(path, pattern) for pattern in self.paths):
            raise ValueError("the path is not among those of this service")

    @property
    def thin(self) -> bool:
        """Whether a webhook without a result leads to a look."""
        return any(o.work and o.work.status_path for o in self.tasks.values())

    @property
    def redaction(self) -> Redaction:
        hook = self.webhook.secret if self.webhook else None
        held = hook.get_secret_value().replace(",", " ").split() if hook else []
        return Redaction(*secrets_of(self.auth), *held)


def _fits(path: str, pattern: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), path) is not None
