"""The audit on real databases: silent on what the writer wrote, loud on what anybody else did."""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from support.cli import agentflow
from support.fakes import Fake, deliver, running, tell, until

from agentflow import Accepted, AgentFlow, Artifact, Policy, Progressed, Provider, Result, Succeeded
from agentflow.audit.auditor import Audit
from agentflow.audit.embedded import snapshots_of
from agentflow.audit.finding import Finding, Kind
from agentflow.core.events import EVENTS as EVENT_NAMES
from agentflow.core.events import (
    Abandoned,
    Canceled,
    CancelRequested,
    Changed,
    Collected,
    Envelope,
    Event,
    Failed,
    OverBudget,
    Source,
    Started,
    Woke,
)
from agentflow.core.job import Job, Phase, Status
from agentflow.core.results import Custody
from agentflow.core.submission import JobSpec, NewJob, prepare, prepare_adopted
from agentflow.errors import OutcomeUnknown, ProviderError, Unavailable
from agentflow.store.inserts import insert_jobs
from agentflow.store.sql import Sql
from agentflow.store.sqlite import EmbeddedClient
from agentflow.types import utcnow
from agentflow.writer.batch import Batch
from agentflow.writer.loading import load_jobs

DATABASES = ("sqlite",)  # what is audited, and tampered with, is the file
EVENTS = 100_000
JOBS = 4_000


@dataclass(frozen=True)
class Audited:
    audit: Audit
    findings: list[Finding]

    @property
    def kinds(self) -> set[Kind]:
        return {finding.kind for finding in self.findings}


def audited(file: Path, **options: Any) -> Audited:
    return asyncio.run(look(file, **options))


async def look(file: Path, **options: Any) -> Audited:
    async with snapshots_of(file) as snapshots:
        audit = Audit(snapshots, **{"now": utcnow(), **options})
        return Audited(audit, [f async for page in audit.pages() for f in page])


# A long clean history


def tasks() -> list[Any]:
    """Every sort of task there is a decision for."""
    made = []
    for index, policy in enumerate(
        (
            Policy(),
            Policy(repeatable=True, backoff=0.0),
            Policy(on_unknown="retry", unknown_checks=2),
            Policy(on_unknown="ask", cancel_checks=2, collect_checks=2),
        )
    ):
        provider = Provider(f"p{index}")
        task = provider.task("any", policy=policy)(lambda call, input: input)
        if index != 1:
            task.fetch(lambda call, id: None)
            task.cancel(lambda call, id: None)
        if index > 1:
            task.find(lambda call, token, since: None)
        made.append(task)
    return made


def new_jobs(count: int, now: datetime, dice: random.Random) -> list[NewJob]:
    kinds = tasks()
    made = []
    for n in range(count):
        task = dice.choice(kinds)
        spec = JobSpec(
            task.name,
            {"n": n},
            delay=dice.choice((None, None, 5.0)),
            deadline=dice.choice((None, None, 150.0)),
            tags=dice.sample(("a", "b", "c"), dice.randrange(3)),
            idempotency_key=f"key{n}" if n % 3 else None,
            max_attempts=dice.choice((None, 1, 6)),
        )
        if n % 20 == 0:
            spec = JobSpec(task.name, {"n": n})
            made.append(
                prepare_adopted(spec, task, f"x{n}", now=now, tenant="default", webhooks=True)
            )
        else:
            made.append(prepare(spec, task, now=now, webhooks=bool(n % 2)))
    return made


def told(job: Job, dice: random.Random) -> Event:
    """Something that could be said about the job, sensible or not."""
    a = job.attempt if dice.random() < 0.9 else dice.randint(1, len(job.attempts))
    attempt = job.attempts[a - 1]
    id = attempt.external_id or f"x-{job.id[-6:]}-{a}"
    files = [
        Artifact(f"https://files.test/{i}", expires_at=job.deadline if i else None)
        for i in range(dice.choice((0, 0, 1, 2)))
    ]
    result = Result(output={"n": [1, 2.5, None, "é"]}, artifacts=files, usage={"seconds": 2})
    collected = [
        Artifact(f.url, id=f.id, status=s, sha256="0" * 64, size=3, key=f"k/{f.id}")
        for f in (job.result.artifacts if job.result else ())
        for s in [dice.choice((Custody.STORED, Custody.STORED, Custody.LOST))]
    ]
    claim = Started(f"n{dice.randrange(9)}", "w", attempt=a)
    if job.status in (Status.QUEUED, Status.SCHEDULED):
        over = OverBudget("no room", attempt=a)
        return dice.choices([claim, Woke(), CancelRequested(), over], [6, 5, 0.1, 0.1])[0]
    if job.phase is Phase.COLLECTING:
        return dice.choice([Collected(collected, attempt=a), Woke()])
    said: list[tuple[Event, float]] = [
        (claim, 1),
        (Accepted(id, poll_after=dice.choice((None, 2.0)), attempt=a), 3),
        (Progressed(round(dice.random(), 3), f"step {dice.randrange(9)}", attempt=a), 9),
        (Changed(attempt=a, external_id=dice.choice((id, None))), 1),
        (Succeeded(result=result, attempt=a, external_id=id), 0.7),
        (Failed(Unavailable(retry_after=1.5), attempt=a), 1.5),
        (Failed(ProviderError("no", detail={"code": 3}), attempt=a, external_id=id), 0.2),
        (Failed(OutcomeUnknown(), attempt=a), 1),
        (Canceled(attempt=a, external_id=id), 0.2),
        (Abandoned(called=dice.random() < 0.5, attempt=a), 1),
        (CancelRequested(), 0.2),
        (Woke(), 2),
    ]
    return dice.choices([e for e, _ in said], [w for _, w in said])[0]


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of 100 000 events, decided by the machine and written by the writer's batches."""
    data = tmp_path_factory.mktemp("long")
    asyncio.run(live(data))
    return data


async def live(data: Path) -> None:
    dice, now = random.Random(7), utcnow() - timedelta(days=1)
    async with running(data, Fake()):
        pass  # makes the tables
    client = EmbeddedClient(str(data / "agentflow.db"), connection_name="long", synchronous="OFF")
    try:
        sql = Sql(client)
        new = new_jobs(JOBS, now, dice)
        await insert_jobs(sql, new)
        count = len(new)
        while count < EVENTS:
            now += timedelta(seconds=20)
            batch = Batch(now)
            batch.hold(await load_jobs(sql, [n.job.id for n in new]))
            for held in batch.held.values():
                for n in range(dice.choice((1, 2, 3))):
                    event, source = told(held.job, dice), dice.choice([*Source])
                    id = f"e{held.job.version}:{now.timestamp()}:{n}"
                    batch.apply(Envelope(id, source, now, held.job.id, event))
                batch.beat(held.job.id, held.job.attempt)
                count += len(held.entries)
            await batch.write(sql, [*batch.held])
    finally:
        await client.close()


def test_a_clean_history_of_100_000_events_is_met_with_silence(long: Path) -> None:
    done = audited(long / "agentflow.db")
    wrong = [f for f in done.findings if f.kind is not Kind.OVERDUE]  # its server stopped long ago
    assert wrong == []
    assert done.audit.entries >= EVENTS
    assert done.audit.jobs == JOBS
    assert done.audit.decided_again == done.audit.entries - JOBS


def test_the_long_history_has_every_event_status_and_disposition(long: Path) -> None:
    with closing(sqlite3.connect(long / "agentflow.db")) as db:
        told = db.execute("SELECT DISTINCT event FROM agentflow_history").fetchall()
        stood = db.execute("SELECT DISTINCT status FROM agentflow_history").fetchall()
        ways = db.execute("SELECT DISTINCT disposition FROM agentflow_history").fetchall()
    assert {event for (event,) in told} == {*EVENT_NAMES}
    assert {status for (status,) in stood} == {*Status}
    assert {way for (way,) in ways} == {"applied", "ignored"}


# A small database of a real server, with something of everything


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("small")
    asyncio.run(serve(data))
    return data


async def serve(data: Path) -> None:
    fake = Fake(Policy(backoff=0.0), webhooks="account")
    hello = Artifact("data:text/plain,hello", "hello.txt")
    fake.answers = {1: Result(output={"a": 1}, artifacts=[hello]), 2: Unavailable()}
    app = AgentFlow(providers=[fake.provider], plugins=[])

    @app.on("fake.work", "succeeded")
    async def broken(event: Any, tx: Any) -> None:
        raise ZeroDivisionError

    @app.on("fake.work", "failed", after_commit=True)
    async def later(event: Any) -> None: ...

    async with running(data, fake, app=app) as app:
        ended = [
            await app.submit("fake.work", {"n": n}, tags=["x", "y"], idempotency_key=f"key{n}")
            for n in (1, 2)
        ]
        live = [await app.submit("fake.work", {"n": n}, entity=f"live:{n}") for n in (3, 4, 5)]
        await until(app, ended[0].id, "succeeded")
        await until(app, ended[1].id, "failed")
        for job in live:
            await until(app, job.id, "waiting")
        await tell(app, live[0].id, Progressed(fraction=0.4, attempt=1))
        said = {"id": f"ext-{live[0].id}-1", "event": "progressed", "fields": {"fraction": 0.5}}
        await deliver(app, orjson.dumps([said]), id="heard")
        await deliver(app, orjson.dumps([said]), id="again")
        await tell(app, live[0].id, Progressed(fraction=0.3, attempt=1))
        await deliver(app, orjson.dumps([{"id": "nobody", "event": "succeeded"}]), id="parked")
        await live[1].cancel()
        await app.runtime.writer.settled()


def test_what_a_server_wrote_is_right(small: Path) -> None:
    done = audited(small / "agentflow.db")
    assert done.findings == []
    assert (done.audit.jobs, done.audit.deliveries) == (5, 4)


async def test_a_running_server_is_audited_beside_its_work(tmp_path: Path) -> None:
    fake = Fake()
    fake.answers = {1: Result(output=1)}
    async with running(tmp_path, fake) as app:
        async with asyncio.TaskGroup() as group:
            jobs = [group.create_task(app.submit("fake.work", {"n": n % 2})) for n in range(300)]
            for _ in range(5):
                assert (await look(tmp_path / "agentflow.db")).findings == []
                await asyncio.sleep(0)
        assert len(jobs) == 300
        assert (await look(tmp_path / "agentflow.db")).findings == []


# What is planted is found


DONE = "(SELECT id FROM agentflow_jobs WHERE status = 'succeeded')"
FAILED = "(SELECT id FROM agentflow_jobs WHERE status = 'failed')"
LIVE = "(SELECT id FROM agentflow_jobs WHERE entity = 'live:3')"
IDLE = "(SELECT id FROM agentflow_jobs WHERE entity = 'live:5')"


def job(change: str, where: str = LIVE) -> str:
    return f"UPDATE agentflow_jobs SET {change} WHERE id = {where}"


def entry(change: str, where: str, of: str = LIVE) -> str:
    return f"UPDATE agentflow_history SET {change} WHERE job_id = {of} AND {where}"


def delete(table: str, where: str) -> str:
    return f"DELETE FROM agentflow_{table} WHERE {where}"


def copy(table: str, where: str, **changes: str) -> list[str]:
    """One row of a table once more, with other values."""
    sets = ", ".join(f"{column} = {value}" for column, value in changes.items())
    return [
        f"CREATE TEMP TABLE copied AS SELECT * FROM agentflow_{table} WHERE {where} LIMIT 1",
        f"UPDATE copied SET {sets}",
        f"INSERT INTO agentflow_{table} SELECT * FROM copied",
    ]


def put(column: str, path: str, value: str) -> str:
    return f"{column} = json_set({column}, '$.{path}', {value})"


LAST = f"seq = (SELECT MAX(seq) FROM agentflow_history WHERE job_id = {LIVE})"
"""Of the live job: its progress was stale, so that it was ignored."""
PROGRESSED = "event = 'progressed' AND disposition = 'applied' AND source = 'worker'"
STARTED = "event = 'started'"
AGO = "'2020-01-01 00:00:00+00:00'"
AHEAD = "'2099-01-01 00:00:00+00:00'"
EVERY = (
    ("status", [job("status = 'queued'")], {Kind.ROW_CHANGED, Kind.STATE}),
    (
        "status of an end",
        [job("status = 'succeeded', wake_at = NULL")],
        {Kind.ROW_CHANGED, Kind.STATE, Kind.FINISHED},
    ),
    ("a status there is not", [job("status = 'done'")], {Kind.ROW_CHANGED, Kind.UNREADABLE}),
    ("reason", [job("reason = 'because'")], {Kind.ROW_CHANGED}),
    ("phase", [job("phase = NULL")], {Kind.ROW_CHANGED, Kind.STATE}),
    ("attempt in charge", [job("attempt = 9")], {Kind.ROW_CHANGED, Kind.STATE}),
    ("more tries", [job("max_attempts = 50")], {Kind.ROW_CHANGED}),
    ("result", [job(put("result", "output", "7"), DONE)], {Kind.ROW_CHANGED}),
    ("result gone", [job("result = NULL", DONE)], {Kind.ROW_CHANGED, Kind.STATE}),
    ("error", [job(put("error", "message", "'x'"), FAILED)], {Kind.ROW_CHANGED}),
    ("progress", [job(put("progress", "fraction", "0.9"))], {Kind.ROW_CHANGED}),
    ("policy", [job(put("policy", "max_attempts", "9"))], {Kind.ROW_CHANGED}),
    ("deadline", [job(f"deadline = {AHEAD}")], {Kind.ROW_CHANGED}),
    (
        "deadline in the past",
        [job(f"deadline = {AGO}")],
        {Kind.ROW_CHANGED, Kind.TIMES, Kind.OVERDUE},
    ),
    ("no end", [job("finished_at = NULL", DONE)], {Kind.ROW_CHANGED, Kind.FINISHED}),
    ("another end", [job(f"finished_at = {AGO}", DONE)], {Kind.ROW_CHANGED, Kind.TIMES}),
    ("another start", [job(f"started_at = {AHEAD}", DONE)], {Kind.ROW_CHANGED, Kind.TIMES}),
    ("another alarm", [job(f"wake_at = {AHEAD}")], {Kind.ALARM}),
    ("no alarm", [job("wake_at = NULL")], {Kind.ALARM}),
    ("an alarm after the end", [job(f"wake_at = {AHEAD}", DONE)], {Kind.ALARM}),
    ("a timer after the end", [job("checks = 3", DONE)], {Kind.TIMERS}),
    ("overdue work", [job(f"check_at = {AGO}, wake_at = {AGO}")], {Kind.OVERDUE}),
    ("a version too many", [job("version = version + 1")], {Kind.VERSION}),
    (
        "the tenant of a job",
        [job("tenant = 'other'")],
        {Kind.TENANT, Kind.ROW_CHANGED},
    ),
    ("the tenant of an entry", [entry("tenant = 'other'", LAST)], {Kind.TENANT}),
    ("a key without a digest", [job("request_hash = NULL", DONE)], {Kind.KEY}),
    (
        "one key for two jobs",
        [job("idempotency_key = 'key1'", FAILED)],
        {Kind.SAME_KEY},
    ),
    ("no entry at all", [delete("history", f"job_id = {LIVE}")], {Kind.NO_HISTORY, Kind.DELIVERY}),
    (
        "the first entry gone",
        [delete("history", f"job_id = {LIVE} AND seq = 0")],
        {Kind.NOT_SUBMITTED, Kind.VERSION},
    ),
    (
        "the last entry gone",
        [delete("history", f"job_id = {LIVE} AND {LAST}")],
        {Kind.VERSION},
    ),
    (
        "an entry gone",
        [delete("history", f"job_id = {LIVE} AND {PROGRESSED}")],
        {Kind.GAP, Kind.VERSION},
    ),
    ("the numbers moved", [entry("seq = seq + 100", LAST)], {Kind.GAP}),
    (
        "an entry twice",
        [
            *copy("history", f"job_id = {LIVE} AND {LAST}", id="NULL", seq="seq + 1"),
            job("version = version + 1"),
        ],
        {Kind.REPEATED},
    ),
    (
        "an entry nobody wrote",
        [
            *copy(
                "history",
                f"job_id = {LIVE} AND {PROGRESSED}",
                id="NULL",
                envelope_id="'new'",
                seq=f"(SELECT version FROM agentflow_jobs WHERE id = {LIVE})",
            ),
            job("version = version + 1"),
        ],
        {Kind.DECIDED_OTHERWISE, Kind.ROW_CHANGED},
    ),
    (
        "an entry after the end",
        [
            *copy(
                "history",
                f"job_id = {DONE} AND {STARTED}",
                id="NULL",
                envelope_id="'new'",
                seq=f"(SELECT version FROM agentflow_jobs WHERE id = {DONE})",
            ),
            job("version = version + 1", DONE),
        ],
        {Kind.AFTER_END, Kind.GRANTED_TWICE, Kind.TIMERS, Kind.DECIDED_OTHERWISE, Kind.ROW_CHANGED},
    ),
    ("an event", [entry("event = 'accepted'", PROGRESSED)], {Kind.UNREADABLE}),
    ("an event there is not", [entry("event = 'finished'", PROGRESSED)], {Kind.UNREADABLE}),
    (
        "what was said",
        [entry(put("fields", "fraction", "0.8"), PROGRESSED)],
        {Kind.DECIDED_OTHERWISE},
    ),
    (
        "a patch",
        [entry(put("patch", "progress.fraction", "0.8"), PROGRESSED)],
        {Kind.DECIDED_OTHERWISE},
    ),
    ("a patch that is none", [entry("patch = 'x'", PROGRESSED)], {Kind.UNREADABLE}),
    (
        "an ignored entry with a patch",
        [entry('patch = \'{"reason": "x"}\'', LAST)],
        {Kind.MISLABELED, Kind.DECIDED_OTHERWISE, Kind.ROW_CHANGED},
    ),
    (
        "a disposition",
        [entry("disposition = 'ignored'", PROGRESSED)],
        {Kind.MISLABELED, Kind.DECIDED_OTHERWISE},
    ),
    ("the reason of an entry", [entry("reason = 'because'", LAST)], {Kind.DECIDED_OTHERWISE}),
    ("the status of an entry", [entry("status = 'queued'", LAST)], {Kind.MISLABELED}),
    (
        "the time of a decision",
        [entry(f"decided_at = {AGO}", STARTED)],
        {Kind.CLOCK, Kind.DECIDED_OTHERWISE},
    ),
    (
        "a token in the history",
        [entry(put("patch", "attempts.1.token", "'mine'"), "reason = 'accepted'")],
        {Kind.IDENTITY, Kind.DECIDED_OTHERWISE, Kind.ATTEMPT_CHANGED},
    ),
    ("randomness", [entry("random = ''", STARTED)], {Kind.RANDOM}),
    (
        "other randomness",
        [entry(f"random = '{'A' * 43}='", "reason LIKE 'retry:%'", FAILED)],
        {Kind.DECIDED_OTHERWISE},
    ),
    ("a newer machine", [entry("machine = 99", LAST)], {Kind.NEWER_MACHINE}),
    ("timers of an entry", [entry(put("timers", "checks", "-1"), LAST)], {Kind.TIMERS}),
    (
        "an attempt's token",
        [f"UPDATE agentflow_attempts SET token = 'mine' WHERE job_id = {LIVE}"],
        {Kind.ATTEMPT_CHANGED},
    ),
    (
        "an external id",
        [f"UPDATE agentflow_attempts SET external_id = 'mine' WHERE job_id = {LIVE}"],
        {Kind.ATTEMPT_CHANGED},
    ),
    (
        "a nonce",
        [f"UPDATE agentflow_attempts SET nonce = NULL WHERE job_id = {LIVE}"],
        {Kind.ATTEMPT_CHANGED},
    ),
    (
        "a provider",
        [f"UPDATE agentflow_attempts SET provider = 'evil' WHERE job_id = {LIVE}"],
        {Kind.ATTEMPT_CHANGED},
    ),
    ("no attempts", [delete("attempts", f"job_id = {LIVE}")], {Kind.ATTEMPTS}),
    (
        "an attempt gone",
        [delete("attempts", f"job_id = {FAILED} AND number = 2")],
        {Kind.ATTEMPTS, Kind.STATE},
    ),
    (
        "an attempt too many",
        copy("attempts", f"job_id = {LIVE}", id="NULL", number="2", token="'new'"),
        {Kind.ATTEMPTS},
    ),
    (
        "a token twice",
        [f"UPDATE agentflow_attempts SET token = 'one' WHERE job_id IN ({LIVE}, {IDLE})"],
        {Kind.SAME_TOKEN, Kind.ATTEMPT_CHANGED},
    ),
    ("a tag gone", [delete("tags", f"job_id = {DONE} AND tag = 'x'")], {Kind.TAGS}),
    ("a tag too many", copy("tags", f"job_id = {DONE}", id="NULL", tag="'z'"), {Kind.TAGS}),
    ("a job gone", [delete("jobs", f"id = {DONE}")], {Kind.ORPHAN}),
    (
        "a digest gone",
        [job(put("result", "artifacts[0].sha256", "NULL"), DONE)],
        {Kind.ROW_CHANGED, Kind.ARTIFACT},
    ),
    (
        "a delivery made up",
        [
            "UPDATE agentflow_inbox SET id = 'dlv_00000000000000000000000000000000'"
            " WHERE status = 'applied' AND reason = 'progressed'"
        ],
        {Kind.DELIVERY},
    ),
    (
        "a cancel made up",
        [f"UPDATE agentflow_inbox SET job_id = {IDLE} WHERE kind = 'command'"],
        {Kind.DELIVERY},
    ),
    (
        "a delivery's status",
        ["UPDATE agentflow_inbox SET status = 'lost' WHERE kind = 'webhook'"],
        {Kind.INBOX},
    ),
    (
        "a delivery unread again",
        ["UPDATE agentflow_inbox SET status = 'received' WHERE kind = 'command'"],
        {Kind.INBOX},
    ),
    ("a parked delivery asleep", ["UPDATE agentflow_inbox SET wake_at = NULL"], {Kind.PARKED}),
    ("a parked delivery for nobody", [delete("parked", "1")], {Kind.PARKED}),
    ("a match for nobody", [delete("inbox", "status = 'parked'")], {Kind.PARKED}),
    (
        "a handler's run",
        ["UPDATE agentflow_handler_runs SET status = 'pending' WHERE status = 'parked'"],
        {Kind.RUN},
    ),
    (
        "a run too late",
        [
            f"UPDATE agentflow_handler_runs SET status = 'pending', wake_at = {AGO},"
            " done_at = NULL WHERE status = 'done'"
        ],
        {Kind.OVERDUE},
    ),
    (
        "a call that another paid for",
        [f"UPDATE agentflow_usage SET tenant = 'other' WHERE job_id = {DONE}"],
        {Kind.LEDGER},
    ),
    (
        "money kept for a job that has ended",
        [
            "INSERT INTO agentflow_reservations (job_id, attempt, budget_id, since, amount)"
            f" VALUES ({DONE}, 1, 'bud_1', '2026-11-01', 5)"
        ],
        {Kind.BUDGET},
    ),
)


@pytest.mark.parametrize(("changes", "kinds"), [p[1:] for p in EVERY], ids=[p[0] for p in EVERY])
def test_what_is_planted_is_found(
    small: Path, tmp_path: Path, changes: Sequence[str], kinds: set[Kind]
) -> None:
    done = audited(planted(small, tmp_path, changes))
    assert done.kinds == kinds, done.findings


def planted(data: Path, folder: Path, changes: Sequence[str]) -> Path:
    """A copy of the database after somebody's changes. No key and no check hinders them."""
    file = folder / "agentflow.db"
    shutil.copy(data / "agentflow.db", file)
    with closing(sqlite3.connect(file)) as db:
        for table in ("jobs", "history", "attempts", "tags", "inbox"):
            db.execute(f"CREATE TABLE loose AS SELECT * FROM agentflow_{table}")
            db.execute(f"DROP TABLE agentflow_{table}")
            db.execute(f"ALTER TABLE loose RENAME TO agentflow_{table}")
        db.commit()
        assert audited(file).findings == []
        before = db.total_changes
        for change in changes:
            db.execute(change)
        assert db.total_changes > before
        db.commit()
    return file


def test_every_kind_is_planted() -> None:
    assert {kind for _, _, kinds in EVERY for kind in kinds} == {*Kind}


# The command


def command(file: Path, *args: str) -> Any:
    return agentflow("audit", "--data", str(file.parent), *args)


def test_the_command_is_content_with_what_is_right(small: Path) -> None:
    ran = command(small / "agentflow.db", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert (ran.json["clean"], ran.json["jobs"], ran.json["items"]) == (True, 5, [])
    said = command(small / "agentflow.db")
    assert (said.code, said.out) == (0, "")
    assert said.err.startswith("5 jobs, ")
    assert said.err.endswith(": all is right\n")


def test_the_command_names_what_is_wrong_and_exits_with_1(small: Path, tmp_path: Path) -> None:
    file = planted(small, tmp_path, [job("reason = 'because'")])
    ran = command(file, "--json")
    assert (ran.code, ran.json["clean"]) == (1, False)
    assert ran.json["counts"] == {"row_changed": 1}
    (item,) = ran.json["items"]
    assert item["detail"] == "reason is because, its history says accepted"
    shown = command(file)
    assert (shown.code, shown.out.splitlines()[1].split()[:2]) == (1, ["row_changed", item["id"]])
    assert command(file, "--job", item["id"]).code == 1
    assert command(file, "--since", "2099-01-01").code == 0


def test_warnings_are_shown_and_leave_the_exit_code_alone(small: Path, tmp_path: Path) -> None:
    file = planted(small, tmp_path, [job(f"check_at = {AGO}, wake_at = {AGO}")])
    ran = command(file, "--json")
    assert (ran.code, ran.json["counts"]) == (0, {"overdue": 1})


def test_one_job_is_looked_at_alone(small: Path, tmp_path: Path) -> None:
    file = planted(small, tmp_path, [job("reason = 'because'"), delete("parked", "1")])
    assert audited(file).kinds == {Kind.ROW_CHANGED, Kind.PARKED}
    (wrong,) = (f for f in audited(file).findings if f.kind is Kind.ROW_CHANGED)
    assert audited(file, job=wrong.id).kinds == {Kind.ROW_CHANGED}
    assert command(file, "--job", "job_0").code == 1


def test_what_cannot_be_audited_exits_with_2(tmp_path: Path) -> None:
    file = tmp_path / "agentflow.db"
    for content, said in ((None, "There is no database"), (b"", "agentflow migrate"),
                          (b"no database" * 99, "is no database of this version")):  # fmt: skip
        if content is not None:
            file.write_bytes(content)
        ran = command(file)
        assert ran.code == 2
        assert said in ran.err
        assert "Traceback" not in ran.err


def test_an_audit_changes_nothing(small: Path, tmp_path: Path) -> None:
    file = shutil.copy(small / "agentflow.db", tmp_path / "agentflow.db")
    before = file.read_bytes()
    assert audited(file).findings == []
    assert file.read_bytes() == before


def test_ids_begin_with_their_time(small: Path) -> None:
    now = utcnow()
    file = small / "agentflow.db"
    assert audited(file, since=now + timedelta(seconds=1)).audit.jobs == 0
    assert audited(file, since=now - timedelta(hours=1)).audit.jobs == 5
