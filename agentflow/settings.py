"""Settings: environment variables `AGENTFLOW_*`, read once, validated at start, never logged."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from agentflow.errors import SettingsError

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class Settings(BaseSettings):
    """Durations are in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="AGENTFLOW_", extra="ignore", frozen=True)

    mode: Literal["all"] = Field("all", description="Which roles this process plays.")
    data_dir: Path = Field(
        Path(".agentflow"), description="Where the database, the files and the spool live."
    )
    host: str = Field("127.0.0.1", description="Address to listen on; loopback only for now.")
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
    allow_downloads: frozenset[str] = Field(
        frozenset(),
        description="`host:port` pairs files may be copied from although they are private.",
    )
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR.")
    api_key: SecretStr | None = Field(None, description="Sent by the command line to a server.")

    @field_validator("public_url")
    @classmethod
    def _http(cls, value: str | None) -> str | None:
        if not value:
            return None
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query:
            raise ValueError("it is http(s)://host[/path], without a query")
        return value.rstrip("/")

    @property
    def url(self) -> str:
        """Where a client on this machine finds the server."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


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
    if settings.host not in LOOPBACK:
        raise SettingsError(
            f"AGENTFLOW_HOST={settings.host}: this version has no API keys, so it listens on"
            " loopback only. Put a tunnel or a proxy in front for the webhooks."
        )
    return settings
