"""Running a plugin's functions so that one that never returns keeps nobody else waiting."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys
import threading
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from functools import partial
from importlib import import_module
from typing import Any

from pydantic import ValidationError

from agentflow.core.providers import Task, takes_input
from agentflow.errors import InvalidInput
from agentflow.types import Json

STUBBORN = 5.0
"""Seconds an async function has to end once it is canceled."""

_left: set[asyncio.Task[Any]] = set()
"""Functions that did not end, and were left to themselves."""


def _nobody(place: str) -> None:
    """Whom nobody told us of."""


async def run_function(function: Any, *args: Any, stubborn: Callable[[str], None] = _nobody) -> Any:
    """Await an async function; run a plain one in a thread. One that goes on though it is canceled
    is left behind after a while, and `stubborn` is told where it is."""
    if inspect.iscoroutinefunction(function):
        return await _awaited(function(*args), stubborn)
    returned = await in_thread(function, *args)
    return await _awaited(returned, stubborn) if inspect.isawaitable(returned) else returned


async def _awaited(work: Awaitable[Any], stubborn: Callable[[str], None]) -> Any:
    """What it comes to. It is in a task of its own, so that who waits can go away without it."""
    task = asyncio.ensure_future(_caught(work))
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait([task], timeout=STUBBORN)
        if not task.done():
            _left.add(task)
            task.add_done_callback(_left.discard)
            stubborn(_place(task))
            raise
    result, error = task.result()
    if error is not None:
        raise error
    return result


async def _caught(work: Awaitable[Any]) -> tuple[Any, BaseException | None]:
    """What it returns, and what it raises: an exit that leaves a task would end the loop."""
    try:
        return await work, None
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        return None, error


def _place(task: asyncio.Task[Any]) -> str:
    """The line at which the plugin's function waits."""
    frame = getattr(getattr(task.get_coro(), "cr_await", None), "cr_frame", None)
    return "an unknown place" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def left_behind() -> int:
    """How many functions run on that nobody waits for. A loop does not close before they end."""
    return len(_left)


def with_input(task: Task[Any], function: Callable[..., Any], input: Json) -> Callable[..., Any]:
    """A task's `fetch`, `find` or `cancel`, the job's input in hand if it asks for that. Raises
    `InvalidInput`, without showing it, for one that the task's model refuses by now."""
    if not takes_input(function):
        return function
    try:
        return partial(function, input=task.validate(input))
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(["input", *map(str, fault["loc"])])
        raise InvalidInput(f"The job's input does not fit: {place}: {fault['msg']}") from None


async def load(module: str | None) -> None:
    """Import what a provider's functions will import. What it raises, they will raise."""
    if module is not None and module not in sys.modules:
        with contextlib.suppress(Exception):
            await in_thread(import_module, module)


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Run it in a thread of its own. One of the loop's pool would be lost to everybody when the
    function hangs, to the look-up of host names too, and would keep the process from ending."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Any] = loop.create_future()
    context = copy_context()

    def tell(result: Any, error: BaseException | None) -> None:
        if ended.done():  # nobody waits any more
            return
        if error is not None:
            ended.set_exception(error)
        else:
            ended.set_result(result)

    def run() -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = context.run(function, *args)
        except StopIteration as stop:  # which a future cannot hold
            error = RuntimeError(f"StopIteration: {stop}")
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, result, error)

    name = getattr(function, "__qualname__", "function")
    threading.Thread(target=run, name=f"agentflow-{name}", daemon=True).start()
    return await ended
