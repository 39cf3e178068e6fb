"""A process killed while it stores a file leaves none under the key."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentflow.artifacts import FolderStore

DATABASES = ()
SIZE = 8 * 1024 * 1024

PUT = f"""
import asyncio, sys
from agentflow.artifacts import FolderStore

async def chunks(pause):
    for _ in range({SIZE} // 65536):
        yield b"x" * 65536
        if pause:
            await asyncio.sleep(pause)

async def main():
    store = FolderStore(sys.argv[1])
    await store.start()
    print("ready", flush=True)
    for n in range(1000):
        await store.put(f"a/{{n}}", chunks(float(sys.argv[2])), max_bytes={SIZE})

asyncio.run(main())
"""


def kill_after(root: Path, seconds: float, pause: float) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PUT, str(root), str(pause)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(seconds)
        process.kill()


def split(root: Path) -> tuple[list[Path], list[Path]]:
    found = [path for path in root.rglob("*") if path.is_file()]
    drafts = [path for path in found if path.name.startswith(".put-")]
    return [path for path in found if path not in drafts], drafts


async def test_an_unfinished_file_is_not_seen_and_later_removed(tmp_path: Path) -> None:
    kill_after(tmp_path, 0.5, pause=0.1)
    shown, drafts = split(tmp_path)
    assert (shown, len(drafts)) == ([], 1)
    store = FolderStore(tmp_path)
    assert await store.size("a/0") is None
    assert await store.start(stale_after=60) == 0
    assert await store.start(stale_after=-1) == 1
    assert split(tmp_path) == ([], [])


@pytest.mark.parametrize("seconds", [0.05, 0.11, 0.17, 0.23, 0.31])
async def test_a_file_that_is_seen_is_whole(tmp_path: Path, seconds: float) -> None:
    kill_after(tmp_path, seconds, pause=0)
    shown, drafts = split(tmp_path)
    assert len(drafts) <= 1
    assert all(path.read_bytes() == b"x" * SIZE for path in shown)
