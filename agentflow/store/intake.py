"""Group commit for what comes in: submits and inbox rows of one moment share one transaction.

Flushed at once when idle; while a commit is under way the next group gathers. A 2xx is given
only after `add_job` or `add_inbox` returned (design rule 5).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import structlog
from tortoise.backends.base.client import BaseDBAsyncClient
from tortoise.exceptions import IntegrityError
from tortoise.transactions import in_transaction

from agentflow.core.job import Status
from agentflow.core.submission import NewJob
from agentflow.core.transition import RING_EVERY
from agentflow.errors import Conflict, StoreUnavailable, UsageError
from agentflow.store.inserts import InboxEntry, insert_inbox, insert_jobs
from agentflow.store.sql import Sql
from agentflow.store.transactions import (
    crossed,
    current_transaction,
    detached,
    hold_limit,
    passing,
)

log = structlog.get_logger(__name__)

GROUP = 200


@dataclass(frozen=True, slots=True)
class Stored:
    """`new` is false when the row was there already (idempotent repeat, duplicate delivery)."""

    id: str
    new: bool


class Doorbell:
    """Who is told after the commit. Losing a ring loses nothing."""

    def room(self, queue: str) -> bool:  # noqa: ARG002 - of the provider's calls
        """Whether the broker takes a new job's message now, or the writer shall refill later."""
        return False

    def new_job(self, new: NewJob) -> None:
        """A job was stored; its message may be sent if `room()` said so before."""

    def inbox(self) -> None:
        """Something lies in the inbox."""


@dataclass(slots=True, eq=False)
class _Wanted:
    item: NewJob | InboxEntry
    answer: asyncio.Future[Stored]


class Intake:
    """The web role's only way to write."""

    def __init__(self, doorbell: Doorbell) -> None:
        self._doorbell = doorbell
        self._waiting: list[_Wanted] = []
        self._flusher: asyncio.Task[None] | None = None

    async def add_job(self, new: NewJob) -> Stored:
        """Store a job. Under a known idempotency key: the job that is there, or `Conflict` if it
        was asked for with another body. Raises `StoreUnavailable`."""
        return await self._add(new)

    async def add_inbox(self, entry: InboxEntry) -> Stored:
        """Store a delivery or a command. Raises `StoreUnavailable`."""
        return await self._add(entry)

    async def add_all(self, items: Sequence[NewJob | InboxEntry]) -> list[Stored | BaseException]:
        """Store many, and say of each in turn what `add_job` or `add_inbox` would have returned
        or raised."""
        return await asyncio.gather(*map(self._queued, items), return_exceptions=True)

    async def add_job_in(self, tx: BaseDBAsyncClient, new: NewJob) -> Stored:
        """Store a job in the caller's own transaction; the bell rings after its commit."""
        sql = Sql(tx)
        known = await _known_keys(sql, [new])
        if known:
            return _repeat(new, known[(new.job.tenant, new.idempotency_key or "")])
        rung = self._ring_now(new)
        try:
            async with tx._in_transaction() as inner:
                await insert_jobs(Sql(inner), [rung])
        except IntegrityError:  # another process stored the same key meanwhile
            known = await _known_keys(sql, [new])
            if not known:
                raise
            return _repeat(new, known[(new.job.tenant, new.idempotency_key or "")])
        after_commit: Callable[[Callable[[], None]], None] | None
        after_commit = getattr(tx, "after_commit", None)
        if after_commit is not None:
            after_commit(lambda: self._doorbell.new_job(rung))
        return Stored(rung.job.id, True)

    async def close(self) -> None:
        """Wait for what is under way."""
        while self._flusher is not None and not self._flusher.done():
            await asyncio.wait([self._flusher])

    async def _add(self, item: NewJob | InboxEntry) -> Stored:
        return await self._queued(item)

    def _queued(self, item: NewJob | InboxEntry) -> asyncio.Future[Stored]:
        if current_transaction() is not None:
            raise UsageError(
                "A transaction is open in this task: give it to `submit` as `using_db=tx`, or do"
                " this after its end; waiting for another transaction here would never end."
            )
        answer: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Wanted(item, answer))
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(
                self._flush(), name="agentflow-intake", context=detached()
            )
        return answer

    async def _flush(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting[:GROUP], self._waiting[GROUP:]
            try:
                await self._commit(group)
            except Exception as error:  # each caller is told; the loop goes on
                # Another process may have stored the same key meanwhile, which is seen now.
                alone = len(group) > 1 or isinstance(error, IntegrityError)
                if alone and (crossed(error) or not passing(error)):
                    await self._singly(group)
                    continue
                for wanted in group:
                    _refuse(wanted, error)

    async def _singly(self, group: Sequence[_Wanted]) -> None:
        """One bad row must not fail its neighbours."""
        for wanted in group:
            try:
                await self._commit([wanted])
            except Exception as error:
                _refuse(wanted, error)

    async def _commit(self, group: Sequence[_Wanted]) -> None:
        jobs = [(w, self._ring_now(w.item)) for w in group if isinstance(w.item, NewJob)]
        entries = [(w, w.item) for w in group if isinstance(w.item, InboxEntry)]
        answers: list[tuple[_Wanted, Stored | Exception]] = []
        with hold_limit(None):
            async with in_transaction() as tx:
                fresh = await self._store(Sql(tx), jobs, entries, answers)
        for wanted, said in answers:
            if wanted.answer.done():
                continue
            if isinstance(said, Exception):
                wanted.answer.set_exception(said)
            else:
                wanted.answer.set_result(said)
        for job in fresh:
            self._doorbell.new_job(job)
        if entries:
            self._doorbell.inbox()

    async def _store(
        self,
        sql: Sql,
        jobs: Sequence[tuple[_Wanted, NewJob]],
        entries: Sequence[tuple[_Wanted, InboxEntry]],
        answers: list[tuple[_Wanted, Stored | Exception]],
    ) -> list[NewJob]:
        fresh = await self._fresh(sql, jobs, answers)
        await insert_jobs(sql, fresh)
        if entries:
            ids = await insert_inbox(sql, [e for _, e in entries])
            answers += [(w, Stored(ids[e.id], ids[e.id] == e.id)) for w, e in entries]
        return fresh

    async def _fresh(
        self,
        sql: Sql,
        jobs: Sequence[tuple[_Wanted, NewJob]],
        answers: list[tuple[_Wanted, Stored | Exception]],
    ) -> list[NewJob]:
        """The jobs to insert; those under a known key are answered instead."""
        known = await _known_keys(sql, [new for _, new in jobs])
        fresh: list[NewJob] = []
        for wanted, new in jobs:
            key = (new.job.tenant, new.idempotency_key or "")
            if new.idempotency_key is not None and key in known:
                try:
                    answers.append((wanted, _repeat(new, known[key])))
                except Conflict as conflict:
                    answers.append((wanted, conflict))
                continue
            if new.idempotency_key is not None:
                known[key] = (new.job.id, new.request_hash)
            fresh.append(new)
            answers.append((wanted, Stored(new.job.id, True)))
        return fresh

    def _ring_now(self, new: NewJob) -> NewJob:
        """A queued job whose message goes out at once need not be rung for again so soon."""
        job = new.job
        if job.status is not Status.QUEUED or not self._doorbell.room(job.provider):
            return new
        again = job.created_at + timedelta(seconds=RING_EVERY)
        return replace(new, job=replace(job, check_at=again))


async def insert_new_jobs(sql: Sql, jobs: Sequence[NewJob]) -> list[NewJob]:
    """Store the jobs whose idempotency key is not known yet, and return these. Raises `Conflict`
    for a key that belongs to another request."""
    known = await _known_keys(sql, jobs)
    fresh: list[NewJob] = []
    for new in jobs:
        if new.idempotency_key is not None:
            key = (new.job.tenant, new.idempotency_key)
            if key in known:
                _repeat(new, known[key])
                continue
            known[key] = (new.job.id, new.request_hash)
        fresh.append(new)
    await insert_jobs(sql, fresh)
    return fresh


async def _known_keys(
    sql: Sql, jobs: Sequence[NewJob]
) -> dict[tuple[str, str], tuple[str, str | None]]:
    """Jobs already stored under the idempotency keys of these."""
    keys = {new.idempotency_key for new in jobs if new.idempotency_key is not None}
    if not keys:
        return {}
    found = await sql.rows(
        'SELECT "id", "tenant", "idempotency_key", "request_hash" FROM "agentflow_jobs"'
        f" WHERE {sql.among('tenant', 1)} AND {sql.among('idempotency_key', 2)}",
        [sql.array({n.job.tenant for n in jobs}), sql.array(keys)],
    )
    return {(r["tenant"], r["idempotency_key"]): (r["id"], r["request_hash"]) for r in found}


def _repeat(new: NewJob, known: tuple[str, str | None]) -> Stored:
    job_id, asked = known
    if asked != new.request_hash:
        raise Conflict(f"The idempotency key belongs to {job_id}, which was asked for differently.")
    return Stored(job_id, False)


def _refuse(wanted: _Wanted, error: Exception) -> None:
    if isinstance(error, Conflict):
        refusal: Exception = error
    else:
        log.error("Storing failed", error=str(error), kind=type(error).__name__)
        refusal = StoreUnavailable()
    if not wanted.answer.done():
        wanted.answer.set_exception(refusal)
