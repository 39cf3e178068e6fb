"""Whether a provider is described well enough to be used: what is wrong is said at the start, not
by the first job that meets it."""

from __future__ import annotations

import inspect
import math
from functools import cache
from typing import Any, get_type_hints

import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError

from agentflow.core.policy import Policy
from agentflow.core.providers import NAME, TASK_NAME, Provider
from agentflow.errors import PluginError

RESERVED = frozenset({"agentflow"})
"""Names of providers that agentflow itself has."""


def check_provider(provider: Provider) -> None:
    """Raises `PluginError` with the first thing that is wrong."""
    if provider.name in RESERVED or not NAME.fullmatch(str(provider.name)):
        raise PluginError(f"{provider.name!r} is no name for a provider")
    for name in ("parser", "translator", "typer"):
        function = getattr(provider, name)
        if function is not None and not _is_plain(function):
            raise PluginError(f"{provider.name}: its {name} is no plain function")
    settings = provider.settings
    if settings is not None and not _is_model(settings):
        raise PluginError(f"{provider.name}: settings is no pydantic-settings class")
    if not provider.max_body > 0:
        raise PluginError(f"{provider.name}: max_body is a number of bytes")
    for name, task in provider.tasks.items():
        _check_task(provider, name, task)


def _check_task(provider: Provider, name: str, task: Any) -> None:
    if getattr(task, "name", None) != name:
        raise PluginError(f"{name}: use @provider.task to add it")
    if not TASK_NAME.fullmatch(name) or not name.startswith(f"{provider.name}."):
        raise PluginError(f"{name!r} is no name for a task of {provider.name}")
    for part in ("function", "fetcher", "finder", "canceler"):
        given = getattr(task, part)
        if not callable(given) and (given is not None or part == "function"):
            raise PluginError(f"{name}: its {part} is a {type(given).__name__}, not a function")
    if task.input is not None and not _is_model(task.input):
        raise PluginError(f"{name}: input is no pydantic model")
    _check_policy(name, task.policy)
    try:
        orjson.dumps(task.schema)
    except Exception as error:  # pydantic's, and those of the model's own code
        said = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise PluginError(f"{name}: its input has no JSON Schema: {said}") from None


def _check_policy(name: str, policy: Any) -> None:
    if not isinstance(policy, Policy):
        raise PluginError(f"{name}: policy is a {type(policy).__name__}, not a Policy")
    for field, wanted in _fields().items():
        value = getattr(policy, field)
        if isinstance(value, float) and not math.isfinite(value):
            raise PluginError(f"{name}: policy: {field} is {value}")
        try:
            wanted.validate_python(value, strict=True)
        except ValidationError as error:
            said = error.errors(include_url=False)[0]["msg"]
            raise PluginError(f"{name}: policy: {field}: {said}") from None


@cache
def _fields() -> dict[str, TypeAdapter[Any]]:
    return {name: TypeAdapter(hint) for name, hint in get_type_hints(Policy).items()}


def _is_model(given: Any) -> bool:
    return inspect.isclass(given) and issubclass(given, BaseModel)


def _is_plain(function: Any) -> bool:
    is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    return callable(function) and not is_async
