"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="AGENTFLOW_URL",
        show_envvar=True,
        help="The server; by default AGENTFLOW_HOST and AGENTFLOW_PORT of this machine.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")]
Data = Annotated[
    str | None,
    typer.Option("--data", help="The data directory; by default AGENTFLOW_DATA_DIR or .agentflow."),
]
AppName = Annotated[
    str | None,
    typer.Option(
        "--app",
        help="The application's code, as module:attribute; by default AGENTFLOW_APP.",
    ),
]
Stream = Annotated[
    bool, typer.Option("--stream", "-s", help="Show the text of the job while it is written.")
]
