"""The settings: environment variables `AGENTFLOW_HTTP_*`."""

from __future__ import annotations

import json
import re
from ipaddress import ip_network
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from agentflow import SettingsError

MEGABYTE = 1024 * 1024

_HOST = re.compile(r"[A-Za-z0-9*][A-Za-z0-9*._-]*|[0-9A-Fa-f:]+")
_PLACE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:]+\]):[1-9][0-9]{0,4}")


def _several(value: Any) -> Any:
    """Those of a JSON list, or of `a,b`. Raises `ValueError`."""
    if not isinstance(value, str):
        return value
    return json.loads(value) if value.lstrip().startswith("[") else value.replace(",", " ").split()


Names = Annotated[frozenset[str], NoDecode, BeforeValidator(_several)]


class HttpSettings(BaseSettings):
    """Without any of them, `http.get` and `http.request` reach nothing."""

    model_config = SettingsConfigDict(
        env_prefix="AGENTFLOW_HTTP_", env_ignore_empty=True, frozen=True, hide_input_in_errors=True
    )

    services: str = ""
    """The declared services: JSON, or the path of a .json or .toml file."""
    hosts: Names = frozenset()
    """Hosts that may be called without a service: `api.example.com`, `*.example.com`, or `*` for
    every public one."""
    private: Names = frozenset()
    """`host:port` or networks that may be called although they are not public."""
    max_response: Annotated[int, Field(ge=1)] = 16 * MEGABYTE
    """Bytes of an answer to a call without a service."""

    @field_validator("hosts")
    @classmethod
    def _names(cls, hosts: frozenset[str]) -> frozenset[str]:
        for host in hosts:
            if not _HOST.fullmatch(host):
                raise ValueError(f"{host!r} is no host: write api.example.com, or *.example.com")
        return hosts

    @field_validator("private")
    @classmethod
    def _places(cls, private: frozenset[str]) -> frozenset[str]:
        for place in private:
            if not (_is_network(place) if "/" in place else _PLACE.fullmatch(place)):
                raise ValueError(f"{place!r} is neither host:port nor a network, as 10.0.0.0/8")
        return private

    @classmethod
    def read(cls) -> Self:
        """Raises `SettingsError`."""
        try:
            return cls()
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            name = "_".join(map(str, first["loc"])).upper()
            said = first["msg"].removeprefix("Value error, ")
            raise SettingsError(f"AGENTFLOW_HTTP_{name}: {said}") from None


def _is_network(text: str) -> bool:
    try:
        ip_network(text)
    except ValueError:
        return False
    return True
