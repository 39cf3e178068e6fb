"""The provider `fal` and its task `fal.run`."""

from typing import Any, TypeAlias
from urllib.parse import quote

import httpx
from agentflow import (
    Accepted,
    AuthenticationFailed,
    Call,
    Canceled,
    Changed,
    Delivery,
    Ed25519Jwks,
    Fact,
    Failed,
    Limit,
    Policy,
    Progressed,
    Provider,
    ProviderFailure,
    ResultLost,
    Succeeded,
)
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from agentflow_fal import errors
from agentflow_fal.results import result
from agentflow_fal.settings import FalSettings

State: TypeAlias = Progressed | Changed | Succeeded | Failed | Canceled

SEGMENT = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
MODEL = rf"^{SEGMENT}(/{SEGMENT})+$"
NAMESPACES = ("workflows", "comfy")
"""Of these an app's name has three segments, of all others two, as fal's own SDK reads them."""

provider = Provider(
    "fal",
    settings=FalSettings,
    keys="key",
    webhooks="per_request",
    scheme=Ed25519Jwks.fal("jwks_url"),
    max_body=8 * 2**20,  # the whole result is in it, sometimes with its files as data URLs
    limits=Limit(by="model"),  # a model that is full holds up no other
    description="Images, video, audio and more by the models of fal.ai",
)


class Run(BaseModel):
    """A model of fal and its input."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(pattern=MODEL, description="As fal names it: `fal-ai/flux/dev`.")
    input: dict[str, JsonValue] = Field(default={}, description="As the model's page says.")


# fal keeps a result of more than 10 KB for six minutes only
@provider.task("run", input=Run, policy=Policy(timeout=30, poll_after=3, poll_max=30))
async def run(call: Call, input: Run) -> Accepted:
    """Run a model of fal; the end comes by webhook or when asked."""
    where = {"fal_webhook": call.webhook_url} if call.webhook_url else {}
    answer = await ask(call, "POST", input.model, params=where, json=input.input)
    answer.raise_for_status()
    return Accepted(answer.json()["request_id"])


@run.fetch
async def fetch(call: Call, external_id: str, input: Run) -> State:
    """The status, and the result once there is one."""
    request = path_of(input.model, external_id)
    status = await ask(call, "GET", f"{request}/status")
    if status.status_code == 404:
        return Failed(ResultLost("fal knows no such request."))
    status.raise_for_status()
    match status.json():
        case {"status": "COMPLETED"}:
            return ended(await ask(call, "GET", request))
        case {"status": str(word)}:
            return Progressed(message=word)
        case _:
            return Progressed()


@run.cancel
async def cancel(call: Call, external_id: str, input: Run) -> State | None:
    """Out of the queue at once; what runs already is only asked to stop, and is looked at again."""
    answer = await ask(call, "PUT", f"{path_of(input.model, external_id)}/cancel")
    if answer.status_code in (400, 404):  # it has ended, or is gone: the fetch tells
        return None
    answer.raise_for_status()
    return Canceled() if answer.json().get("status") == "OK" else None


@provider.parse
def parse(delivery: Delivery) -> list[Fact]:
    """The one webhook of a request."""
    try:
        body = delivery.json
    except ValueError:
        return []
    match body:
        case {"request_id": str(id), "status": "OK" | "ERROR"} if id:
            return [Fact(fact(body), external_id=id, id=id)]
        case _:
            return []


@provider.translate
def translate(error: Exception) -> ProviderFailure | None:
    return errors.translate(error)


def fact(body: dict[str, Any]) -> State:
    """A webhook in agentflow's words."""
    payload = body.get("payload")
    if body["status"] == "ERROR":
        return failed(payload, body.get("error"))
    if payload is None:  # `payload_error` says that it could not be sent along
        return Changed()
    return Succeeded(result(payload))


def ended(answer: httpx.Response) -> State:
    """The result of a request that is completed: what the model answered, its status too."""
    body = errors.body_of(answer)
    types, message = errors.read(body)
    match answer.status_code:
        case 404:
            return Failed(ResultLost("fal no longer has the result."))
        case status if status >= 400 and types:
            return failed(body, f"status {status}")
        case 400 | 422 | 500 as status if message:  # the others may be of this question
            return failed(body, f"status {status}")
    answer.raise_for_status()
    return Succeeded(result(answer.json()))


def failed(body: Any, said: object) -> State:
    return Canceled() if errors.canceled(body) else Failed(errors.failure(body, said))


def path_of(model: str, id: str) -> str:
    """Where a request is asked after: below its app, without what the model's name has beyond."""
    segments = model.split("/")
    app = segments[: 3 if segments[0] in NAMESPACES else 2]
    return f"{'/'.join(app)}/requests/{quote(id, safe='')}"


async def ask(call: Call, method: str, path: str, **more: Any) -> httpx.Response:
    settings: FalSettings = call.settings
    key = settings.key.get_secret_value()
    if not key:
        raise AuthenticationFailed("FAL_KEY is not set for the worker.")
    return await call.http.request(
        method,
        f"{settings.queue_url.rstrip('/')}/{path}",
        headers={"Authorization": f"Key {key}"},
        **more,
    )
