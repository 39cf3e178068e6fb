"""The files of jobs: on their way into custody, and out of it to whoever works with them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from typing import TypeAlias

import httpx
import orjson

from agentflow.artifacts import ArtifactStore, ArtifactTooLarge, Source, Stored, collect
from agentflow.core.events import Event, Succeeded
from agentflow.core.results import Artifact, Custody, Result, artifact_place
from agentflow.errors import InvalidInput, PluginError, Unstorable
from agentflow.types import JobId

Keep: TypeAlias = Callable[[AsyncIterator[bytes], str, str], Awaitable[Artifact]]
"""Takes the chunks of a file, its name and its media type."""


class Files:
    """`max_result` and `max_artifact` are in bytes; `downloads` fetches what is to be copied."""

    def __init__(
        self,
        store: ArtifactStore,
        downloads: httpx.AsyncClient,
        *,
        max_result: int,
        max_artifact: int,
    ) -> None:
        self.store, self.downloads = store, downloads
        self.max_result, self.max_artifact = max_result, max_artifact

    async def stored(self, outcome: Event, job: JobId) -> Event:
        """An outcome fit for a row: inline files and large outputs go straight into custody."""
        if not isinstance(outcome, Succeeded):
            return outcome
        result = outcome.result
        for i, a in enumerate(result.artifacts):
            if a.key is not None and a.key != artifact_key(job, i):
                raise PluginError("Kept files come first among the artifacts, in their order.")
        artifacts = [
            await self.copy(a, artifact_key(job, i), None) if _inline(a) else a
            for i, a in enumerate(result.artifacts)
        ]
        return replace(outcome, result=await self._small(replace(result, artifacts=artifacts), job))

    async def _small(self, result: Result, job: JobId) -> Result:
        """The result with its output in a file, the last one, if it is too large for a row."""
        if len(orjson.dumps([result.output, result.text])) <= self.max_result:
            return result
        key = artifact_key(job, len(result.artifacts))
        kept = await self.store.put(
            key, _once(orjson.dumps(result.output)), max_bytes=self.max_artifact
        )
        file = _in_custody(kept, key, "output.json", "application/json")
        return replace(result, output=None, text=None, artifacts=[*result.artifacts, file])

    async def copy(self, artifact: Artifact, key: str, hosts: Collection[str] | None) -> Artifact:
        """The artifact in custody. Raises what `collect` raises."""
        assert artifact.url is not None, "a pending artifact has a source"
        source = Source(url=artifact.url, media_type=artifact.media_type, name=artifact.name)
        kept = await collect(
            source,
            self.store,
            self.downloads,
            key=key,
            max_bytes=self.max_artifact,
            allowed_hosts=hosts,
        )
        url = None if _inline(artifact) else artifact.url
        return replace(
            artifact, url=url, status=Custody.STORED, key=kept.key, sha256=kept.sha256,
            size=kept.size, media_type=kept.media_type, name=kept.name,
        )  # fmt: skip

    def keeper(self, job: JobId) -> Keep:
        """What keeps the files that the job's call makes, one after the other."""
        places = count()

        async def keep(chunks: AsyncIterator[bytes], name: str, media_type: str) -> Artifact:
            key = artifact_key(job, next(places))
            try:
                kept = await self.store.put(key, chunks, max_bytes=self.max_artifact)
            except ArtifactTooLarge as error:
                raise Unstorable(error.message) from error
            return _in_custody(kept, key, name, media_type)

        return keep

    @asynccontextmanager
    async def open(self, id: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """The chunks of a file in custody. Raises `InvalidInput` if there is none of this id."""
        place = artifact_place(id)
        key = artifact_key(*place) if place else ""
        if not place or await self.store.size(key) is None:
            raise InvalidInput(f"There is no file {id} in custody")
        yield await self.store.open(key)


def artifact_key(job: JobId, index: int) -> str:
    """Where a file lies in the store: derived from its id, so that no look-up is needed."""
    digits = job.removeprefix("job_")
    return f"{digits[:8]}/{digits}/{index}"


def _in_custody(kept: Stored, key: str, name: str, media_type: str) -> Artifact:
    return Artifact(
        None, name, media_type, status=Custody.STORED, sha256=kept.sha256, size=kept.size, key=key
    )


def _inline(artifact: Artifact) -> bool:
    return artifact.url is not None and artifact.url.startswith("data:")


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
