"""The outgoing webhooks of agentflow itself: the task `agentflow.callback`.

They follow Standard Webhooks 1.0.0: one id however often an event is sent, a fresh timestamp with
each try, a signature by every key that is set, 2xx as the only success, 410 as the end of it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING

import httpx
import orjson
from pydantic import BaseModel, JsonValue

from agentflow.artifacts import AddressRefused, guarded_client
from agentflow.artifacts.addresses import Allowed
from agentflow.core.policy import Policy
from agentflow.core.providers import Provider
from agentflow.core.submission import CALLBACK_TASK
from agentflow.errors import (
    PermissionRefused,
    ProviderError,
    SettingsError,
    Unavailable,
)
from agentflow.settings import Settings
from agentflow.types import JsonObject, utcnow
from agentflow.webhooks.signatures import StandardWebhooksVerifier, sign
from agentflow.worker.outcomes import retry_after

if TYPE_CHECKING:
    from agentflow.worker.call import Call

TIMEOUT = 20.0

POLICY = Policy(
    repeatable=True,
    timeout=TIMEOUT + 10,
    max_attempts=14,
    backoff=10.0,
    backoff_max=6 * 3600.0,
    deadline=3 * 86_400.0,
)
"""The same event may come twice, so nothing is unknown; the tries spread over about half a day."""


class Callback(BaseModel):
    url: str
    event: dict[str, JsonValue]


def callback_provider(settings: Settings) -> Provider | None:
    """The provider `agentflow`, or None where no secret is set. Raises `SettingsError` for a weak
    one, or an address that is none."""
    secret = settings.callback_secret.get_secret_value() if settings.callback_secret else ""
    keys, allow = secret.replace(",", " ").split(), settings.callback_allow
    if not keys:
        return None
    for variable, check in (
        ("SECRET", StandardWebhooksVerifier(keys).check),
        ("ALLOW", partial(Allowed.of, allow)),
    ):
        try:
            check()
        except SettingsError as error:
            raise SettingsError(f"AGENTFLOW_CALLBACK_{variable}: {error.message}") from None

    async def callback(_: Call, input: Callback) -> JsonObject:
        return await post(input, keys, allow)

    name, _, task = CALLBACK_TASK.partition(".")
    # Code of our own: nobody bills it, so that no budget and no sum of usage is about it.
    provider = Provider(name, description="What agentflow itself does", local=True)
    provider.task(task, input=Callback, policy=POLICY, description="Tell a callback_url")(callback)
    return provider


async def post(input: Callback, keys: Sequence[str], allow: Collection[str]) -> JsonObject:
    """Post the event to the URL, signed. Anything but 2xx raises a `ProviderFailure`."""
    body = orjson.dumps(input.event)
    headers = {
        **signed(keys, str(input.event["id"]), body),
        "content-type": "application/json",
        "user-agent": "agentflow",
    }
    try:
        async with (
            guarded_client(allow, TIMEOUT) as client,
            client.stream("POST", input.url, content=body, headers=headers) as response,
        ):
            return judged(response)
    except AddressRefused as refused:
        raise PermissionRefused(f"{refused} AGENTFLOW_CALLBACK_ALLOW admits it.") from None
    except httpx.InvalidURL as error:
        raise ProviderError(f"The URL cannot be called: {error}") from None
    except httpx.TransportError as error:
        raise Unavailable(f"The receiver cannot be reached: {type(error).__name__}") from None


def signed(keys: Sequence[str], id: str, body: bytes) -> dict[str, str]:
    """The headers of Standard Webhooks, with a signature by each key."""
    now = utcnow()
    each = [sign(key, id, now, body) for key in keys]
    together = " ".join(headers["webhook-signature"] for headers in each)
    return {**each[0], "webhook-signature": together}


def judged(response: httpx.Response) -> JsonObject:
    """What the answer means. Its body is not read. A 429 is this receiver's alone: `RateLimited`
    would hold up the callbacks of everybody."""
    status = response.status_code
    wait = retry_after(response)
    said = f"The receiver answered {status}."
    match status:
        case _ if 200 <= status < 300:
            return {"status": status}
        case 410:
            raise ProviderError(f"{said} It wants no more events.")
        case _ if 300 <= status < 400:
            raise Unavailable(f"{said} Redirects are not followed.")
        case _:
            raise Unavailable(said, retry_after=wait)
