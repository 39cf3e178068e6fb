"""The provider `replicate` and its one task, `replicate.predict`."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from agentflow import (
    Accepted,
    Changed,
    Delivery,
    Fact,
    Failed,
    Policy,
    Progressed,
    Provider,
    ResultLost,
    StandardWebhooks,
)
from agentflow_replicate.facts import KEPT, State, ended, fact, identity
from agentflow_replicate.failures import failure
from agentflow_replicate.files import with_files
from agentflow_replicate.settings import ReplicateSettings

if TYPE_CHECKING:
    from agentflow import Call
    from agentflow_replicate.session import Session

SKEW = timedelta(seconds=60)
"""How far Replicate's clock may be off ours."""
MOST_PAGES = 10
"""Of 100 predictions each: what `find` reads at most."""
MOST_LOOKS = 20
"""How many predictions `find` opens at most, where the list does not tell their webhook."""

_WORD = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_VERSION = "[0-9a-f]{64}"


class Predict(BaseModel):
    """What to run: exactly one of `model`, `version` and `deployment`, and the model's input."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    model: Annotated[str, Field(pattern=f"^{_WORD}/{_WORD}(:{_VERSION})?$")] | None = None
    """`owner/name` or `owner/name:version`."""
    version: Annotated[str, Field(pattern=f"^{_VERSION}$")] | None = None
    """The 64 hex digits of a version."""
    deployment: Annotated[str, Field(pattern=f"^{_WORD}/{_WORD}$")] | None = None
    """`owner/name`."""
    input: dict[str, JsonValue]
    """Files are given by http(s) URL, as a data URI, or as the id of an artifact (`art_…`)."""

    @model_validator(mode="after")
    def _one_target(self) -> Predict:
        if sum(bool(each) for each in (self.model, self.version, self.deployment)) != 1:
            raise ValueError("give exactly one of model, version and deployment")
        return self

    def target(self) -> dict[str, str]:
        """The argument of the SDK that names what to run."""
        if self.model:
            name, _, version = self.model.partition(":")
            return {"version": version} if version else {"model": name}
        if self.version:
            return {"version": self.version}
        return {"deployment": str(self.deployment)}


provider = Provider(
    "replicate",
    settings=ReplicateSettings,
    keys="api_token",
    webhooks="per_request",
    scheme=StandardWebhooks(secret="webhook_secret"),
    artifact_hosts=lambda settings: settings.output_hosts,
    max_body=4 * 1024 * 1024,
    description="Models hosted on replicate.com",
    loads="agentflow_replicate.session",
)
provider.translate(failure)


@provider.task(
    "predict",
    input=Predict,
    # Outputs are deleted an hour after a prediction ends: polls are never further apart than
    # five minutes, so that there is time to copy them.
    policy=Policy(
        timeout=60,
        on_unknown="fail",
        deadline=3600,
        poll_after=2,
        poll_max=60,
        files_live=KEPT.total_seconds(),
    ),
)
async def predict(call: Call, input: Predict) -> Accepted | State:
    """Run a model on Replicate."""
    files = await with_files(call, input.input)
    made = await _session(call).create(input.target(), files, call.webhook_url)
    return fact(made) if ended(made) else Accepted(str(identity(made)))


@predict.fetch
async def fetch(call: Call, external_id: str) -> State:
    """The prediction as it is now. Raises `ProviderFailure` if Replicate does not say."""
    found = await _session(call).get(external_id)
    if found is None:
        return Failed(ResultLost("Replicate knows no such prediction."), external_id=external_id)
    state = fact(found)
    if isinstance(state, Changed):  # to fetch it again at once would tell nothing more
        return Progressed(message=_status(found), external_id=external_id)
    return state


@predict.find
async def find(call: Call, token: str, since: datetime) -> str | None:
    """The prediction whose webhook carries the token, among those made `since` then.

    Replicate knows a call of ours by nothing but its webhook, so a call made without one is never
    found. Its list need not show the webhook; then the predictions are opened one by one.
    """
    session, looks, query = _session(call), MOST_LOOKS, None
    for _ in range(MOST_PAGES):
        page, query = await session.page(query)
        for row in page:
            found = identity(row)
            if found is None:
                continue
            if _made_before(row, since - SKEW):
                return None
            if "webhook" not in row and looks:
                looks -= 1
                row = await session.get(found) or {}
            if _token(row.get("webhook")) == token:
                return found
        if query is None:
            return None
    return None


@predict.cancel
async def cancel(call: Call, external_id: str) -> State | None:
    """Ask Replicate to stop; what it answers may still be `processing`."""
    found = await _session(call).cancel(external_id)
    return None if found is None else fact(found)


@provider.parse
def parse(delivery: Delivery) -> list[Fact]:
    """A webhook's body is the prediction."""
    prediction = _json(delivery)
    about = identity(prediction)
    return [] if about is None else [Fact(fact(prediction), external_id=about)]


@provider.type_of
def type_of(delivery: Delivery) -> str | None:
    return _status(_json(delivery))


def _session(call: Call) -> Session:
    from agentflow_replicate.session import Session

    return Session(call)


def _json(delivery: Delivery) -> Any:
    try:
        return delivery.json
    except ValueError:
        return None


def _status(prediction: Any) -> str | None:
    status = prediction.get("status") if isinstance(prediction, dict) else None
    return status if isinstance(status, str) else None


def _token(webhook: Any) -> str | None:
    """The last segment of a webhook's path."""
    try:
        return urlsplit(webhook).path.rpartition("/")[2] if isinstance(webhook, str) else None
    except ValueError:
        return None


def _made_before(prediction: dict[str, Any], then: datetime) -> bool:
    try:
        return datetime.fromisoformat(prediction["created_at"]) < then
    except (KeyError, TypeError, ValueError):
        return False
