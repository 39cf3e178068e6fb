"""The settings: environment variables `AGENTFLOW_HTTP_*`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from agentflow import SettingsError

MEGABYTE = 1024 * 1024


class HttpSettings(BaseSettings):
    """Without any of them, `http.get` and `http.request` reach nothing."""

    model_config = SettingsConfigDict(
        env_prefix="AGENTFLOW_HTTP_", env_ignore_empty=True, frozen=True, hide_input_in_errors=True
    )

    services: str = ""
    """The declared services: JSON, or the path of a .json or .toml file."""
    hosts: frozenset[str] = frozenset()
    """Hosts that may be called without a service: `api.example.com`, `*.example.com`, or `*` for
    every public one."""
    private: frozenset[str] = frozenset()
    """`host:port` or networks that may be called although they are not public."""
    max_response: Annotated[int, Field(ge=1)] = 16 * MEGABYTE
    """Bytes of an answer to a call without a service."""

    @classmethod
    def read(cls) -> Self:
        """Raises `SettingsError`."""
        try:
            return cls()
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            name = "_".join(map(str, first["loc"])).upper()
            raise SettingsError(f"AGENTFLOW_HTTP_{name}: {first['msg']}") from None
