"""Exceptions of an SDK, made without knowing it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from importlib import import_module
from unittest.mock import MagicMock

import httpx


def classes_in(modules: Sequence[str]) -> Iterator[type[Exception]]:
    """The exceptions that are there to be met: public, of this package, and no warning."""
    seen = set()
    for name in modules:
        package = name.partition(".")[0]
        for cls in list(vars(import_module(name)).values()):
            if not inspect.isclass(cls) or not issubclass(cls, Exception) or cls in seen:
                continue
            own = cls.__module__.partition(".")[0] == package
            if own and not cls.__name__.startswith("_") and not issubclass(cls, Warning):
                seen.add(cls)
                yield cls


def made(cls: type[Exception]) -> Exception:
    """An instance, by its parameters' names. Raises `AssertionError` with the way out."""
    request = httpx.Request("POST", "https://api.example")
    known = {
        "message": "said", "request": request, "body": None, "status": 500, "headers": {},
        "response": httpx.Response(500, request=request), "status_code": 500,
    }  # fmt: skip
    try:
        parameters = _parameters(cls)
        wanted = [p for p in parameters if p.name in known or p.default is p.empty]
        plain = [p for p in wanted if p.kind is p.POSITIONAL_ONLY]
        named = {p.name: known.get(p.name, MagicMock()) for p in wanted if p not in plain}
        return cls(*["said"] * len(plain), **named)
    except (TypeError, ValueError, AttributeError) as error:
        raise AssertionError(
            f"say in sdk_error() how a {cls.__module__}.{cls.__qualname__} is made ({error})"
        ) from None


_ANY = inspect.Parameter("said", inspect.Parameter.POSITIONAL_ONLY)


def _parameters(cls: type[Exception]) -> list[inspect.Parameter]:
    """Those of its constructor; what takes any takes one."""
    try:
        given = list(inspect.signature(cls).parameters.values())
    except ValueError:  # no __init__ in Python
        return [_ANY]
    several = [p for p in given if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return [p for p in given if p not in several] or [_ANY] * bool(several)
