"""Exceptions of an SDK, made without knowing it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from importlib import import_module

import httpx


def classes_in(modules: Sequence[str]) -> Iterator[type[Exception]]:
    """The exceptions that are there to be met: public, of this package, and no warning."""
    seen = set()
    for name in modules:
        package = name.partition(".")[0]
        for cls in vars(import_module(name)).values():
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
        named = {name: known[name] for name in parameters if name in known}
        if named:
            return cls(**named)
        needed = [p for p in parameters.values() if p.default is p.empty and p.kind in _PLACED]
        return cls(*["said"] * (len(needed) or 1))
    except (TypeError, ValueError, AttributeError) as error:
        raise AssertionError(
            f"say in sdk_error() how a {cls.__module__}.{cls.__qualname__} is made ({error})"
        ) from None


_PLACED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _parameters(cls: type[Exception]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(cls).parameters)
    except ValueError:  # without an __init__ of its own, on Python 3.11
        return {}
