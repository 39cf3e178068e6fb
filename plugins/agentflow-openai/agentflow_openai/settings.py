"""The settings, under the names OpenAI's own SDK uses."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class OpenAISettings(BaseSettings):
    """Read from the environment: `OPENAI_API_KEY` and so on.

    The key and the secret may be missing: a process that only takes webhooks has no use for the
    key, and one that only polls has none for the secret.
    """

    model_config = SettingsConfigDict(
        env_prefix="OPENAI_", env_ignore_empty=True, frozen=True, hide_input_in_errors=True
    )

    api_key: SecretStr = SecretStr("")
    """From https://platform.openai.com/api-keys; needed to make calls. One or several of different
    projects, separated by commas or spaces."""
    base_url: str = "https://api.openai.com/v1"
    """Another service that speaks this API; with its version, as the SDK wants it."""
    webhook_secret: SecretStr = SecretStr("")
    """One or several `whsec_…`, separated by commas or spaces; needed to take webhooks."""
    org_id: str | None = None
    """The organization that is billed, where the key belongs to several."""
    project_id: str | None = None
    """The project, likewise."""

    @field_validator("api_key")
    @classmethod
    def _trimmed(cls, key: SecretStr) -> SecretStr:
        return SecretStr(key.get_secret_value().strip())

    @field_validator("base_url")
    @classmethod
    def _a_url(cls, url: str) -> str:
        url = url.strip().rstrip("/")
        parts = urlsplit(url)
        if parts.scheme not in ("https", "http") or not parts.hostname:
            raise ValueError("must be an https:// or http:// URL")
        return url
