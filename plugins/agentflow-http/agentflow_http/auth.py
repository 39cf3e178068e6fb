"""How a service knows us. A secret is text, or `{"env": "NAME"}`: the variable that holds it."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

SHORTEST = 6
"""Characters of a secret that is cut out of what is shown."""


def _resolved(value: Any) -> Any:
    match value:
        case {"env": str(name)} if len(value) == 1:
            return os.environ.get(name, "").strip()
        case _:
            return value


Secret = Annotated[SecretStr, BeforeValidator(_resolved)]
"""Empty where its variable is not set: it need not be everywhere."""

HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$")]


class Shape(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, use_attribute_docstrings=True
    )


class Bearer(Shape):
    kind: Literal["bearer"]
    token: Secret

    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token.get_secret_value()}"}


class Basic(Shape):
    kind: Literal["basic"]
    username: str
    password: Secret

    @property
    def pair(self) -> str:
        both = f"{self.username}:{self.password.get_secret_value()}"
        return base64.b64encode(both.encode()).decode()

    def headers(self) -> dict[str, str]:
        return {"authorization": f"Basic {self.pair}"}


class Header(Shape):
    kind: Literal["header"]
    name: HeaderName
    value: Secret
    prefix: str = ""

    def headers(self) -> dict[str, str]:
        return {self.name.lower(): self.prefix + self.value.get_secret_value()}


class Query(Shape):
    kind: Literal["query"]
    name: str = Field(min_length=1)
    value: Secret

    def headers(self) -> dict[str, str]:
        return {}


class OAuth2(Shape):
    """Client credentials (RFC 6749, 4.4)."""

    kind: Literal["oauth2"]
    token_url: str
    client_id: str
    client_secret: Secret
    scope: str = ""

    def headers(self) -> dict[str, str]:
        """Known once there is a token."""
        return {}


Auth: TypeAlias = Annotated[Bearer | Basic | Header | Query | OAuth2, Field(discriminator="kind")]


def secrets_of(auth: Auth | None) -> Iterator[str]:
    """What must never be shown, in every form in which it is sent."""
    if auth is None:
        return
    for name in type(auth).model_fields:
        value = getattr(auth, name)
        if isinstance(value, SecretStr):
            yield value.get_secret_value()
    if isinstance(auth, Basic):
        yield auth.pair


def is_set(auth: Auth) -> bool:
    return all(secrets_of(auth))


class Redaction:
    """Cuts secrets out of texts."""

    def __init__(self, *secrets: str) -> None:
        self.secrets = sorted((s for s in secrets if len(s) >= SHORTEST), key=len, reverse=True)

    def text(self, said: str) -> str:
        for secret in self.secrets:
            said = said.replace(secret, "***")
        return said

    def document(self, value: Any) -> Any:
        """JSON with its strings cut; names of members too."""
        match value:
            case str():
                return self.text(value)
            case list():
                return [self.document(each) for each in value]
            case dict():
                return {self.text(name): self.document(each) for name, each in value.items()}
            case _:
                return value
