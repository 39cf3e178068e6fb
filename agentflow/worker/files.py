"""The files of jobs: on their way into custody, and out of it to whoever works with them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from typing import TypeAlias

import httpx
import orjson
import structlog

from agentflow.artifacts import (
    ArtifactStore,
    ArtifactStoreError,
    ArtifactTooLarge,
    Source,
    SourceRefused,
    collect,
)
from agentflow.artifacts.inline import is_inline
from agentflow.core.events import Event, Failed, Succeeded
from agentflow.core.results import Artifact, Custody, Result, artifact_place
from agentflow.errors import InvalidInput, PluginError, Unavailable, Unstorable
from agentflow.types import JobId

log = structlog.get_logger(__name__)

Keep: TypeAlias = Callable[[AsyncIterator[bytes], str, str], Awaitable[Artifact]]
"""Takes the chunks of a file, its name and its media type."""

FARTHEST = 30.0
"""Seconds between two tries to store what there is only once."""


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
        """An outcome fit for a row: inline files and large outputs go straight into custody. One
        that custody will not take has failed as `unstorable`. Raises `ArtifactStoreError`."""
        if not isinstance(outcome, Succeeded):
            return outcome
        result = outcome.result
        try:
            return replace(outcome, result=await self._stored(result, job))
        except (ArtifactTooLarge, SourceRefused) as error:
            refused = Unstorable(error.message)
            return Failed(
                refused, attempt=outcome.attempt, external_id=outcome.external_id,
                usage=result.usage or None, cost=result.cost,
            )  # fmt: skip

    async def stored_some_day(
        self, outcome: Event, job: JobId, patient: Callable[[float], bool]
    ) -> Event:
        """The same for an outcome that exists here alone and is paid for: while the store is away
        it is tried again, as long as `patient` is for so many seconds more."""
        for wait in _waits():
            try:
                return await self.stored(outcome, job)
            except ArtifactStoreError as error:
                if not patient(wait):
                    raise Unstorable(error.message) from error
                log.warning("A result waits for the artifact store", job_id=job, why=error.message)
                await asyncio.sleep(wait)
        raise AssertionError("it is tried for ever")

    async def _stored(self, result: Result, job: JobId) -> Result:
        for i, a in enumerate(result.artifacts):
            if a.key is not None and a.key != artifact_key(job, i):
                raise PluginError("Kept files come first among the artifacts, in their order.")
        artifacts = [
            await self.copy(a, artifact_key(job, i), None) if _inline(a) else a
            for i, a in enumerate(result.artifacts)
        ]
        if len(orjson.dumps([result.output, result.text])) <= self.max_result:
            return result.with_artifacts(artifacts)
        for content, name, type in _large(result):
            key = artifact_key(job, len(artifacts))
            artifacts.append(await self._put(key, _once(content), name, type))
        return replace(result, output=None, text=None, artifacts=artifacts)

    async def _put(
        self, key: str, chunks: AsyncIterator[bytes], name: str, media_type: str
    ) -> Artifact:
        kept = await self.store.put(key, chunks, max_bytes=self.max_artifact)
        return Artifact(
            None, name, media_type, status=Custody.STORED,
            sha256=kept.sha256, size=kept.size, key=key,
        )  # fmt: skip

    async def copy(self, artifact: Artifact, key: str, hosts: Collection[str] | None) -> Artifact:
        """The artifact in custody. Raises what `collect` raises."""
        if artifact.url is None:
            raise SourceRefused("The provider gave no URL of the file.")
        kept = await collect(
            Source(url=artifact.url, media_type=artifact.media_type, name=artifact.name),
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
            try:
                return await self._put(artifact_key(job, next(places)), chunks, name, media_type)
            except ArtifactTooLarge as error:
                raise Unstorable(error.message) from error

        return keep

    @asynccontextmanager
    async def open(self, id: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """The chunks of a file in custody. Raises `InvalidInput` if there is none of this id, and
        `Unavailable` while the store is away: a call that reads first has not been made then."""
        place = artifact_place(id)
        key = artifact_key(*place) if place else ""
        try:
            if not place or await self.store.size(key) is None:
                raise InvalidInput(f"There is no file {id} in custody")
            yield await self.store.open(key)
        except ArtifactStoreError as error:
            raise Unavailable(f"The file {id} cannot be read now. {error.message}") from error


def artifact_key(job: JobId, index: int) -> str:
    """Where a file lies in the store: derived from its id, so that no look-up is needed."""
    digits = job.removeprefix("job_")
    return f"{digits[:8]}/{digits}/{index}"


def _large(result: Result) -> Iterator[tuple[bytes, str, str]]:
    """Content, name and media type of the files that a result too large for a row becomes."""
    output, text = result.output, result.text
    inside = output == text or (isinstance(output, dict) and output.get("text") == text)
    if output is not None or text is None:
        yield orjson.dumps(output), "output.json", "application/json"
    if text is not None and not inside:
        yield text.encode(), "text.txt", "text/plain"


def _waits() -> Iterator[float]:
    return (min(0.5 * 2**n, FARTHEST) for n in count())


def _inline(artifact: Artifact) -> bool:
    return artifact.url is not None and is_inline(artifact.url)


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
