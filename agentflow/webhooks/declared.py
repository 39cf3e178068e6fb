"""Schemes from configuration: a table with a `kind`, the rest the arguments of the scheme."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from agentflow.core.providers import Scheme
from agentflow.errors import SettingsError
from agentflow.webhooks.hmacs import Hmac
from agentflow.webhooks.jwks import FAL_KEYS, Ed25519Jwks
from agentflow.webhooks.signatures import StandardWebhooks
from agentflow.webhooks.static import StaticHeader

_CLASSES: dict[str, type[Any]] = {
    "standard_webhooks": StandardWebhooks,
    "hmac": Hmac,
    "ed25519_jwks": Ed25519Jwks,
    "static_header": StaticHeader,
}
_READY: dict[str, Callable[[str], Scheme]] = {
    "github": Hmac.github,
    "slack": Hmac.slack,
    "stripe": Hmac.stripe,
    "elevenlabs": Hmac.elevenlabs,
}
KINDS = (*_CLASSES, *_READY, "fal")


def scheme_of(declared: Mapping[str, Any], secret: str = "webhook_secret") -> Scheme:
    """The scheme of `{"kind": "github"}`, or `{"kind": "hmac", "header": …}`.

    `secret` is the field of the settings that holds the keys, which the table does not name.
    Raises `SettingsError` naming what is wrong.
    """
    given = dict(declared)
    kind = given.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise SettingsError(f"There is no scheme {kind!r}; there are {', '.join(KINDS)}")
    if kind in _READY:
        _none_left(kind, given, {})
        return _READY[kind](secret)
    if kind == "fal":
        url = given.pop("url", FAL_KEYS)
        _none_left(kind, given, {"url"})
        if not isinstance(url, str):
            raise SettingsError("scheme fal: url: it is a text")
        return Ed25519Jwks.fal(url)
    cls = _CLASSES[kind]
    names = {field.name for field in fields(cls)}
    if "secret" in names:
        _none_left(kind, given, names - {"secret"})
        given["secret"] = secret
    _none_left(kind, given, names)
    try:
        scheme: Scheme = TypeAdapter(cls).validate_python(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise SettingsError(f"scheme {kind}: {place}: {first['msg']}") from None
    return scheme


def _none_left(kind: str, given: Mapping[str, Any], known: Any) -> None:
    if unknown := sorted(given.keys() - set(known)):
        raise SettingsError(f"scheme {kind} knows no {', '.join(unknown)}")
