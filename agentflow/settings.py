"""Settings: environment variables `AGENTFLOW_*`, read once, validated at start, never logged."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError as UnreadableSetting

from agentflow.errors import SettingsError

_BUCKET = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*/?")

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def names(value: Any) -> Any:
    """Those in `a,b`, with spaces or commas, or in a JSON list. Raises `ValueError`."""
    if not isinstance(value, str):
        return value
    if not value.lstrip().startswith("["):
        return value.replace(",", " ").split()
    try:
        return [str(name) for name in json.loads(value)]
    except ValueError:
        raise ValueError('it is like a,b or like ["a", "b"]') from None


Names: TypeAlias = Annotated[frozenset[str], NoDecode, BeforeValidator(names)]


class Settings(BaseSettings):
    """Durations are in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="AGENTFLOW_", extra="ignore", frozen=True)

    mode: Literal["all", "web", "worker", "writer"] = Field(
        "all", description="Which roles this process plays."
    )
    data_dir: Path = Field(
        Path(".agentflow"), description="Where the database, the files and the spool live."
    )
    database_url: SecretStr | None = Field(
        None,
        description="`postgres://user:password@host/name`. Unset: SQLite in the data directory.",
    )
    writer_database_url: SecretStr | None = Field(
        None, description="The writer's own login, where it is not that of `database_url`."
    )
    redis_url: SecretStr | None = Field(
        None,
        description="`redis://:password@host/0`, `rediss://` with TLS. Unset: everything in one "
        "process.",
    )
    queues: Names = Field(
        frozenset(), description="The providers this worker serves; empty: all that are installed."
    )
    artifacts_dir: Path | None = Field(
        None,
        description="Where the files live, shared by all workers and web processes. Unset: in the "
        "data directory.",
    )
    prices: Path | None = Field(
        None, description="A JSON file of prices, which come before those of the plugins."
    )
    artifacts_url: str | None = Field(
        None,
        description="A bucket for the files instead: `s3://bucket/prefix`, with the customary "
        "`AWS_*` variables.",
    )
    keep_jobs: float | None = Field(
        None, gt=0, description="Days after which a final job goes, with its history and files."
    )
    keep_bodies: float = Field(
        30.0, gt=0, description="Days after which the body of a delivery that was read goes."
    )
    keep_deliveries: float | None = Field(
        None,
        gt=0,
        description="Days after which a delivery goes, and with it the memory of its id.",
    )
    host: str = Field(
        "127.0.0.1", description="Address to listen on; others than loopback ask for API keys."
    )
    port: int = Field(8700, ge=0, le=65535, description="Port to listen on.")
    public_url: str | None = Field(
        None,
        description="Where providers reach this server, with the path it is mounted under. "
        "Unset: no webhooks, polling only.",
    )
    app: str | None = Field(None, description="The application's code, as `module:attribute`.")
    concurrency: int = Field(64, ge=1, le=10_000, description="Calls one worker makes at once.")
    max_input: int = Field(262_144, ge=1, description="Largest input of a job.")
    max_result: int = Field(262_144, ge=1, description="Larger results become artifacts.")
    max_artifact: int = Field(1 << 30, ge=1, description="Largest file taken into custody.")
    live_text: int = Field(
        524_288, ge=0, description="Newest live text of one job that is kept; 0: none is taken."
    )
    live_memory: int = Field(
        67_108_864,
        ge=1,
        description="Live text of all jobs, in each process; with Redis, each worker's there.",
    )
    live_keep: float = Field(
        60.0, gt=0, description="How long live text is kept after the end of its call."
    )
    max_wait: float = Field(60.0, gt=0, description="Longest bounded wait of one request.")
    grace: float = Field(10.0, ge=0, description="Time for running calls to end at a stop.")
    park_for: float = Field(
        86_400.0, gt=0, description="How long a webhook for nobody yet is kept for its job."
    )
    handler_timeout: float = Field(2.0, gt=0, description="Time limit of one handler.")
    handler_budget: float = Field(5.0, gt=0, description="Time of all handlers in one batch.")
    transaction_limit: float = Field(
        5.0, gt=0, description="How long application code may hold a transaction open."
    )
    synchronous: Literal["FULL", "NORMAL"] = Field(
        "FULL", description="SQLite's durability: FULL survives a power cut."
    )
    callback_secret: SecretStr | None = Field(
        None, description="Signs callbacks: `whsec_…`; several with spaces between sign together."
    )
    callback_allow: Names = Field(
        frozenset(), description="What callbacks may reach although it is private."
    )
    allow_downloads: Names = Field(
        frozenset(),
        description="`host:port` pairs files may be copied from although they are private.",
    )
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR.")
    log_format: Literal["text", "json"] = Field(
        "text", description="Lines for people, or one JSON object a line."
    )
    metrics_token: SecretStr | None = Field(
        None,
        min_length=16,
        description="Opens `/metrics` to requests from elsewhere, as a bearer token.",
    )
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="A port of its own for `/metrics` and health checks."
    )
    metrics_host: str = Field("127.0.0.1", description="Address of the metrics port.")
    api_key: SecretStr | None = Field(None, description="Sent by the command line to a server.")
    require_keys: bool | None = Field(
        None, description="Whether the API is closed to requests without an API key."
    )
    rate_limit: str | None = Field(
        None,
        description="Requests of one API key, or of one address without: `100/second;2000/minute`.",
    )
    limits: dict[str, Any] | None = Field(
        None,
        description="How much of a provider may be used: a JSON object of limits by provider or"
        " task, which take the place of those declared.",
    )
    max_backlog: int = Field(
        1_000_000, ge=1, description="Jobs of a tenant that may wait; then submits get 503."
    )

    @field_validator("public_url")
    @classmethod
    def _http(cls, value: str | None) -> str | None:
        if not value:
            return None
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query:
            raise ValueError("it is http(s)://host[/path], without a query")
        return value.rstrip("/")

    @field_validator("artifacts_url")
    @classmethod
    def _bucket(cls, value: str | None) -> str | None:
        if value and not _BUCKET.fullmatch(value):
            raise ValueError("it is s3://bucket[/prefix], without a key or a password")
        return value.rstrip("/") if value else None

    @field_validator("rate_limit")
    @classmethod
    def _rate(cls, value: str | None) -> str | None:
        if not value:
            return None
        from limits import parse_many  # slow to import, and seldom needed

        try:
            parse_many(value)
        except ValueError:
            raise ValueError("it is like 100/second;2000/minute") from None
        return value

    @field_validator("database_url", "writer_database_url")
    @classmethod
    def _postgres(cls, value: SecretStr | None) -> SecretStr | None:
        return _url(value, {"postgres", "postgresql"}, "postgres://user:password@host:port/name")

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: SecretStr | None) -> SecretStr | None:
        return _url(value, {"redis", "rediss", "unix"}, "redis://:password@host:port/0")

    def database(self, role: str) -> str | None:
        """The PostgreSQL URL of this role, or None for SQLite. The writer's is also the owner's."""
        own = self.writer_database_url if role in {"writer", "owner"} else None
        chosen = own or self.database_url
        return chosen.get_secret_value() if chosen else None

    @property
    def url(self) -> str:
        """Where a client on this machine finds the server."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


def _url(value: SecretStr | None, schemes: set[str], form: str) -> SecretStr | None:
    """An empty variable is none. The value is never quoted: it holds a password."""
    if value is None or not value.get_secret_value():
        return None
    parts = urlsplit(value.get_secret_value())
    if parts.scheme not in schemes or not (parts.hostname or parts.path):
        raise ValueError(f"it is {form}")
    return value


def _check_roles(settings: Settings) -> None:
    """Raise `SettingsError` for roles that could not reach each other."""
    if settings.mode != "all" and settings.redis_url is None:
        raise SettingsError(
            f"The roles talk through Redis: set AGENTFLOW_REDIS_URL for a {settings.mode}, or run"
            " everything in one process with agentflow serve."
        )
    if settings.redis_url and not settings.database_url and settings.mode != "worker":
        raise SettingsError(
            "With Redis, several processes share one database, which SQLite cannot: set"
            " AGENTFLOW_DATABASE_URL to a PostgreSQL database."
        )
    missing = [
        name
        for name, wanted in (
            ("asyncpg", settings.database_url),
            ("taskiq_redis", settings.redis_url),
        )
        if wanted and find_spec(name) is None
    ]
    if missing:
        raise SettingsError(
            f"{' and '.join(missing)} must be installed for this:"
            " pip install 'agentflow-core[scale]'"
        )


def load_settings(**overrides: object) -> Settings:
    """The settings of this process. Raises `SettingsError` naming each variable that is wrong."""
    try:
        settings = Settings(**{k: v for k, v in overrides.items() if v is not None})  # type: ignore[arg-type]  # checked by pydantic
    except ValidationError as error:
        wrong = "; ".join(
            f"AGENTFLOW_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}"
            for e in error.errors(include_input=False)
        )
        raise SettingsError(f"These settings are wrong. {wrong}") from None
    except UnreadableSetting as error:  # which names the field, and not what is in it
        raise SettingsError(f"A setting cannot be read: {error}") from None
    _check_roles(settings)
    if settings.artifacts_dir and settings.artifacts_url:
        raise SettingsError(
            "AGENTFLOW_ARTIFACTS_DIR and AGENTFLOW_ARTIFACTS_URL are both set: files live in one"
            " place. Unset the one that is not meant."
        )
    if settings.metrics_host not in LOOPBACK and settings.metrics_token is None:
        raise SettingsError(
            f"AGENTFLOW_METRICS_HOST={settings.metrics_host}: others than this machine need a"
            " token to see the numbers. Set AGENTFLOW_METRICS_TOKEN."
        )
    if settings.host not in LOOPBACK and settings.require_keys is not True:
        raise SettingsError(
            f"AGENTFLOW_HOST={settings.host}: without API keys only this machine may come in. Set"
            " AGENTFLOW_REQUIRE_KEYS=true and make a key with: agentflow keys create NAME. Or"
            " listen on 127.0.0.1 and put a tunnel or a proxy in front for the webhooks."
        )
    return settings
