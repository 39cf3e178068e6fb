"""What the routes work with, and how they read a request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from agentflow.artifacts import ArtifactStore
from agentflow.core.submission import JobSpec, NewJob
from agentflow.errors import InvalidInput
from agentflow.plugins.catalogue import Catalogue
from agentflow.settings import Settings
from agentflow.store.intake import Intake
from agentflow.transport.bus import Bus
from agentflow.types import DEFAULT_TENANT, Clock

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Context:
    settings: Settings
    catalogue: Catalogue
    intake: Intake
    bus: Bus
    clock: Clock
    artifacts: ArtifactStore
    prepare: Callable[[JobSpec, str], NewJob]
    missing: Callable[[], list[str]]
    """What keeps this process from being ready, in words."""


def context(request: Request) -> Context:
    found: Context | None = request.app.state.agentflow
    if found is None:
        raise HTTPException(503, "agentflow is not started: run its lifespan")
    return found


def tenant(request: Request) -> str:
    """Until API keys exist there is one tenant; everything below already asks for it."""
    del request
    return DEFAULT_TENANT


async def body(request: Request, model: type[M]) -> M:
    """The JSON body as `model`. Raises `InvalidInput` with every fault, 400 for no JSON."""
    raw = await request.body()
    try:
        said = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise HTTPException(400, f"The body is no JSON: {error}") from None
    return checked(model, said)


def query(request: Request, model: type[M]) -> M:
    """The query parameters as `model`; unknown ones are faults. Raises `InvalidInput`."""
    return checked(model, dict(request.query_params))


def checked(model: type[M], said: Any) -> M:
    try:
        return model.model_validate(said)
    except ValidationError as error:
        faults = [
            {"loc": ".".join(map(str, e["loc"])) or "body", "msg": e["msg"]}
            for e in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        told = "; ".join(f"{f['loc']}: {f['msg']}" for f in faults[:5])
        raise InvalidInput(told, detail={"errors": faults}) from None
