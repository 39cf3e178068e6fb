"""The command line. It talks HTTP to a running server; `dev` and `demo` bring their own.

Loading this loads typer and no more: each command imports what it needs when it runs.
"""

from __future__ import annotations

from agentflow.cli.program import main

__all__ = ["main"]
