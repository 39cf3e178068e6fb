"""OAuth 2 client credentials (RFC 6749, 4.4): a token of the service, kept until shortly before it
ends, in this process alone."""

from __future__ import annotations

import json
import time
from typing import Any

from agentflow import AuthenticationFailed, ProviderFailure, Unavailable
from agentflow_http.asking import Ask, form
from agentflow_http.auth import OAuth2
from agentflow_http.wire import Answer, send

EARLY = 30.0
DEFAULT_LIFE = 300.0
LARGEST = 64 * 1024


class Tokens:
    """The token in use."""

    def __init__(self) -> None:
        self._token, self._until = "", 0.0

    async def token(self, auth: OAuth2, allow: frozenset[str], timeout: float) -> str:
        """Raises `AuthenticationFailed`, `Unavailable` and what `send` raises."""
        if time.monotonic() < self._until:
            return self._token
        asked = {
            "grant_type": "client_credentials",
            "client_id": auth.client_id,
            "client_secret": auth.client_secret.get_secret_value(),
            **({"scope": auth.scope} if auth.scope else {}),
        }
        body, type = form(asked)
        ask = Ask("POST", auth.token_url, body=body, type=type)
        answer = await send(ask, {}, {}, allow=allow, most=LARGEST, timeout=timeout, unsure=False)
        self._token, life = _granted(answer)
        self._until = time.monotonic() + life
        return self._token

    def forget(self) -> None:
        """The service refuses the token."""
        self._until = 0.0

    @property
    def known(self) -> str:
        return self._token


def _granted(answer: Answer) -> tuple[str, float]:
    try:
        said: Any = json.loads(answer.body)
    except ValueError:
        said = None
    token = said.get("access_token") if isinstance(said, dict) else None
    if answer.good and isinstance(token, str) and token:
        life = said.get("expires_in")
        known = isinstance(life, int | float) and not isinstance(life, bool)
        return token, max(0.0, (float(life) if known else DEFAULT_LIFE) - EARLY)
    raise _refusal(answer.status)


def _refusal(status: int) -> ProviderFailure:
    if status >= 500 or status in (408, 429):
        return Unavailable(f"The token endpoint answered {status}.")
    return AuthenticationFailed(f"The token endpoint answered {status}.")
