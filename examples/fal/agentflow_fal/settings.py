"""The settings, read from the environment: `FAL_KEY` is what fal's own SDK reads."""

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class FalSettings(BaseSettings):
    """All have defaults: a process that only takes webhooks needs no key."""

    model_config = SettingsConfigDict(
        env_prefix="FAL_", env_ignore_empty=True, hide_input_in_errors=True
    )

    key: SecretStr = SecretStr("")
    queue_url: str = "https://queue.fal.run"
    jwks_url: str = "https://rest.fal.ai/.well-known/jwks.json"
