"""The settings: environment variables `SENDGRID_*`."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class SendGridSettings(BaseSettings):
    """The key may be missing where webhooks are taken, the public key where mails are sent; with
    no public key anywhere, a mail has succeeded once SendGrid has taken it."""

    model_config = SettingsConfigDict(
        env_prefix="SENDGRID_", env_ignore_empty=True, frozen=True, hide_input_in_errors=True
    )

    api_key: SecretStr = SecretStr("")
    """With the right to send mail; one or several, separated by commas or spaces."""
    base_url: str = "https://api.sendgrid.com"
    """`https://api.eu.sendgrid.com` for an account in the EU."""
    webhook_public_key: str = ""
    """The Event Webhook's verification key, as SendGrid shows it; several with spaces between."""
    webhook_tolerance: float = Field(172_800.0, gt=0)
    """How old a signature may be, in seconds: SendGrid repeats for a day and does not say whether
    it signs anew; what was applied is known by its event ids."""

    @field_validator("api_key")
    @classmethod
    def _trimmed(cls, key: SecretStr) -> SecretStr:
        return SecretStr(key.get_secret_value().strip())

    @field_validator("base_url")
    @classmethod
    def _safe(cls, url: str) -> str:
        url = url.strip().rstrip("/").removesuffix("/v3")
        parts = urlsplit(url)
        local = parts.hostname in ("127.0.0.1", "::1", "localhost")
        if not parts.hostname or (
            parts.scheme != "https" and not (local and parts.scheme == "http")
        ):
            raise ValueError("must be an https:// URL, or http:// to this machine")
        return url
