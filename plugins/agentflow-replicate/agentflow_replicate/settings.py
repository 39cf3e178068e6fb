"""The settings, under the names Replicate's own SDK uses."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class ReplicateSettings(BaseSettings):
    """Read from the environment: `REPLICATE_API_TOKEN` and so on.

    The token and the secret may be missing: a process that only takes webhooks has no use for the
    token, and one that only polls has none for the secret.
    """

    model_config = SettingsConfigDict(
        env_prefix="REPLICATE_", env_ignore_empty=True, frozen=True, hide_input_in_errors=True
    )

    api_token: SecretStr = SecretStr("")
    """From https://replicate.com/account/api-tokens; needed to make calls. One or several of
    different accounts, separated by commas or spaces."""
    base_url: str = "https://api.replicate.com"
    """Another address of the API, a simulator's for instance; without `/v1`."""
    webhook_secret: SecretStr = SecretStr("")
    """One or several `whsec_…`, separated by commas or spaces; needed to take webhooks."""
    output_hosts: Annotated[tuple[str, ...], NoDecode] = (
        "replicate.delivery",
        "*.replicate.delivery",
        "*.replicate.com",
    )
    """Hosts that outputs are copied from, separated by commas or spaces."""

    @field_validator("api_token")
    @classmethod
    def _trimmed(cls, token: SecretStr) -> SecretStr:
        return SecretStr(token.get_secret_value().strip())

    @field_validator("base_url")
    @classmethod
    def _safe(cls, url: str) -> str:
        url = url.strip().rstrip("/").removesuffix("/v1")
        parts = urlsplit(url)
        local = parts.hostname in ("127.0.0.1", "::1", "localhost")
        if not parts.hostname or (
            parts.scheme != "https" and not (local and parts.scheme == "http")
        ):
            raise ValueError("must be an https:// URL, or http:// to this machine")
        return url

    @field_validator("output_hosts", mode="before")
    @classmethod
    def _several(cls, hosts: Any) -> Any:
        return tuple(hosts.replace(",", " ").split()) if isinstance(hosts, str) else hosts
