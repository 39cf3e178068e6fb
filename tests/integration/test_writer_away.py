"""A writer whose database goes away for a moment: nobody is to blame for that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.fakes import Fake, rows, running, tell, until
from tortoise.exceptions import DBConnectionError

from agentflow import Result, Succeeded


async def test_a_batch_that_lost_its_database_is_tried_again_whole_and_nothing_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, Fake()) as app:
        job = await app.submit("fake.work", {})
        await until(app, job.id, "waiting")
        commit, fails = app.runtime.writer._commit, [4]

        async def sometimes(*args: Any, **options: Any) -> Any:
            assert not options, "it was taken apart"
            if fails[0]:
                fails[0] -= 1
                raise DBConnectionError("the server closed the connection")
            return await commit(*args, **options)

        monkeypatch.setattr(app.runtime.writer, "_commit", sometimes)
        await tell(app, job.id, Succeeded(Result(output=1), attempt=1))
        assert (await job.status())["status"] == "succeeded"
        assert fails == [0]
        assert await rows("SELECT id FROM agentflow_inbox WHERE status = 'failed'") == []
