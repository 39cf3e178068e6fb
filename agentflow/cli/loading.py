"""The application named by `--app`."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path

from agentflow.app import AgentFlow
from agentflow.errors import UsageError


def load_app(name: str) -> AgentFlow:
    """The `AgentFlow` at `module:attribute`, found from the working directory too.

    Raises `UsageError`, with the place where the application's own code raised.
    """
    module_name, _, attribute = name.partition(":")
    if not (module_name and attribute):
        raise UsageError(f"--app {name}: it is module:attribute, as in shop.main:app")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise UsageError(f"--app {name}: there is no module {error.name!r} here") from None
        raise UsageError(_told(name, error)) from error
    except Exception as error:  # the application's code
        raise UsageError(_told(name, error)) from error
    found = getattr(module, attribute, None)
    if not isinstance(found, AgentFlow):
        what = "nothing" if found is None else f"a {type(found).__name__}"
        raise UsageError(f"--app {name}: that is {what}, not an AgentFlow")
    return found


def _told(name: str, error: Exception) -> str:
    return f"--app {name}: importing it failed.\n{''.join(traceback.format_exception(error))}"
