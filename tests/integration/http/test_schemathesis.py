"""A thousand requests made from the OpenAPI document, good and bad: each is answered as it says."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
from support.web import World

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONFIG = """
[checks]
# Only the running application knows which tasks there are and what fits them.
positive_data_acceptance.enabled = false

[[operations]]
include-name = "POST /v1/jobs/batch"
# What is wrong with an item is said of the item alone.
checks.negative_data_rejection.enabled = false
"""


async def test_every_answer_is_the_one_that_is_documented(api: World, tmp_path: Path) -> None:
    for task in ("acme.echo", "acme.refuse", "acme.draw"):
        await api.submit(task)
    (tmp_path / "schemathesis.toml").write_text(CONFIG, encoding="utf-8")
    code, said = await run(
        tmp_path,
        *("run", f"{api.url}/openapi.json", "--seed", "1", "--max-examples", "5", "--no-shrink"),
        *("--phases", "examples,coverage,fuzzing", "--continue-on-failure", "--no-color"),
        *("--request-timeout", "10", "--warnings", "off"),
    )
    assert code == 0, said
    count = len(api.contract.page["paths"])
    assert count > 15
    tested = sum(len(item) for item in api.contract.page["paths"].values())
    assert f"Tested: {tested}\n" in said, said


async def run(folder: Path, *arguments: str) -> tuple[int | None, str]:
    """What schemathesis says in a process of its own: it is not made for an event loop."""
    started = await asyncio.create_subprocess_exec(
        *(Path(sys.executable).with_name("schemathesis"), *arguments),
        cwd=folder,
        env={**os.environ, "COLUMNS": "100"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        said, _ = await asyncio.wait_for(started.communicate(), 100)
    finally:
        if started.returncode is None:
            started.kill()
            await started.wait()
    return started.returncode, said.decode()
