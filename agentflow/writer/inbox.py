"""The inbox on its way into the batch: deliveries are read and matched, commands understood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TypeAlias

from agentflow.core.cleaning import clean, cleaned
from agentflow.core.events import Accepted, CancelRequested, Envelope, Event, Source
from agentflow.core.providers import Fact
from agentflow.plugins.catalogue import Catalogue
from agentflow.store.rows import Row, instant
from agentflow.store.sql import Sql
from agentflow.types import JobId
from agentflow.webhooks.reading import delivery_of, facts_of, type_of
from agentflow.writer.commands import Cancel, Replay, command_of
from agentflow.writer.handlers import WebhookEvent
from agentflow.writer.letter import Letter
from agentflow.writer.loading import attempts_by_external_id, attempts_by_token

COLUMNS = (
    '"id", "tenant", "kind", "provider", "dedup_key", "token", "type", "headers", "body",'
    ' "status", "job_id", "received_at", "wake_at"'
)


MOST_STRAYS = 20

Places: TypeAlias = dict[tuple[str, str], tuple[JobId, int]]
"""(provider, external id) → (job, attempt)."""


async def received(sql: Sql, most: int) -> list[Letter]:
    """The rows nobody has applied yet, oldest first."""
    rows = await sql.rows(
        f'SELECT {COLUMNS} FROM "agentflow_inbox" WHERE "status" = \'received\''
        f' ORDER BY "id" LIMIT {most}{sql.locking}'
    )
    return [Letter(row) for row in rows]


async def rows_of(sql: Sql, ids: Sequence[str]) -> dict[str, Row]:
    if not ids:
        return {}
    rows = await sql.rows(
        f'SELECT {COLUMNS} FROM "agentflow_inbox" WHERE {sql.among("id", 1)}', [sql.array(ids)]
    )
    return {row["id"]: row for row in rows}


async def understand(
    sql: Sql, letters: Sequence[Letter], catalogue: Catalogue, now: datetime
) -> list[Letter]:
    """Read commands and deliveries; a replay adds the letter it asks for. Nothing is raised."""
    for letter in letters:
        if letter.row["kind"] == "command":
            _obey(letter, now)
    replays = [(x, x.command.delivery) for x in letters if isinstance(x.command, Replay)]
    targets = await rows_of(sql, [delivery for _, delivery in replays])
    again = []
    for letter, delivery in replays:
        row = targets.get(delivery)
        if row is None or not row["body"]:
            letter.fail("there is no such delivery any more, or not its body")
        else:
            again.append(Letter(row, run=letter.id))
    deliveries = [*(x for x in letters if x.row["kind"] == "webhook"), *again]
    await match(sql, deliveries, catalogue, now)
    return again


async def match(
    sql: Sql,
    letters: Sequence[Letter],
    catalogue: Catalogue,
    now: datetime,
    known: Places | None = None,
) -> None:
    """Find the attempt of each fact: by its token or that in the URL, else by the external id.

    With `known`, only facts about its external ids are looked at: they were unmatched before.
    """
    facts = [(letter, _facts(letter, catalogue, now)) for letter in letters]
    tokens = {fact.token or x.row["token"] for x, found in facts for fact in found}
    by_token = await attempts_by_token(sql, tokens - {None, ""})
    by_id = await _by_external_id(sql, facts) if known is None else known
    for letter, found in facts:
        for index, fact in enumerate(found):
            external = _external_id(fact)
            if known is not None and (letter.row["provider"], external) not in known:
                continue
            place = by_token.get((letter.provider, fact.token or letter.row["token"] or ""))
            place = place or by_id.get((letter.row["provider"], external or ""))
            if place is not None:
                letter.envelopes.append(_envelope(letter, index, fact, place))
                letter.unmatched.discard(external or "")
            elif external is not None:
                letter.unmatched.add(external)
        letter.judge(bool(found))


async def _by_external_id(sql: Sql, facts: Sequence[tuple[Letter, list[Fact]]]) -> Places:
    """Where the external ids of these facts are at home."""
    named = {(letter.provider, _external_id(fact)) for letter, found in facts for fact in found}
    return await places_of(sql, {(provider, id) for provider, id in named if id is not None})


async def places_of(sql: Sql, pairs: set[tuple[str, str]]) -> Places:
    """The attempts that have these (provider, external id) pairs."""
    asked: dict[str, set[str]] = {}
    for provider, id in pairs:
        asked.setdefault(provider, set()).add(id)
    places: Places = {}
    for provider, ids in asked.items():
        for external, place in (await attempts_by_external_id(sql, provider, ids)).items():
            places[provider, external] = place
    return places


def _obey(letter: Letter, now: datetime) -> None:
    """Understand a command; one about a job becomes an event of it."""
    try:
        letter.command = command_of(letter.row["body"])
    except (ValueError, TypeError) as error:
        letter.fail(error)
        return
    match letter.command:
        case None:
            letter.fail("this version knows no such command")
        case Cancel(job):
            id = f"cmd:{letter.id}"
            letter.envelopes.append(Envelope(id, Source.API, now, job, CancelRequested()))


def _facts(letter: Letter, catalogue: Catalogue, now: datetime) -> list[Fact]:
    """The plugin's reading of a delivery; what it raises is kept with the row."""
    ready = catalogue.providers.get(letter.row["provider"])
    if ready is None:
        letter.fail(f"the plugin of {letter.row['provider']} is not installed")
        return []
    delivery = delivery_of(letter.row)
    letter.event = WebhookEvent(delivery, type_of(ready.provider, delivery), now)
    try:
        facts = facts_of(ready.provider, delivery)
        return [_storable(fact) for fact in facts]
    except Exception as error:  # a stranger's code on a stranger's bytes
        letter.fail(error)
        return []


def _storable(fact: Fact) -> Fact:
    names = clean({"external_id": fact.external_id, "token": fact.token, "id": fact.id})
    return replace(fact, event=cleaned(fact.event), **names)


def _external_id(fact: Fact) -> str | None:
    return fact.external_id or getattr(fact.event, "external_id", None)


def _envelope(letter: Letter, index: int, fact: Fact, place: tuple[JobId, int]) -> Envelope:
    job, attempt = place
    event: Event
    if isinstance(fact.event, Accepted):
        event = replace(fact.event, attempt=attempt)
    else:
        event = replace(fact.event, attempt=attempt, external_id=_external_id(fact))
    id = f"wh:{letter.id}:{index}" if fact.id is None else f"wh:id:{fact.id}"
    id += f":{letter.run}" if letter.run else ""
    return Envelope(id, Source.WEBHOOK, letter.row["received_at"], job, event)


async def settle(sql: Sql, letters: Sequence[Letter], now: datetime, park_for: float) -> None:
    """Write what became of each row; unmatched ids are parked until their attempt shows up."""
    letters = sorted(letters, key=lambda letter: letter.id)  # the order in which rows are locked
    until = now + timedelta(seconds=park_for)
    await sql.update(
        "agentflow_inbox",
        ("status", "reason", "error", "type", "tenant", "job_id", "applied_at", "wake_at"),
        ("id",),
        [
            [
                x.status,
                x.reason,
                x.error,
                x.event.type[:128] if x.event and x.event.type else None,
                *x.owner(),
                now,
                until if x.unmatched else instant(x.row["wake_at"]) if x.unparked else None,
                x.id,
            ]
            for x in letters
        ],
    )
    await sql.insert(
        "agentflow_parked",
        ("inbox_id", "provider", "external_id"),
        [(x.id, x.row["provider"], e) for x in letters for e in sorted(x.unmatched)],
        'ON CONFLICT ("provider", "external_id", "inbox_id") DO NOTHING',
    )
    answered = [id for x in letters for id in x.unparked]
    if answered:
        await sql.rows(
            f'DELETE FROM "agentflow_parked" WHERE {sql.among("id", 1, "bigint")}',
            [sql.array(answered)],
        )
        await sql.rows(  # whose last id that was
            f'UPDATE "agentflow_inbox" SET "wake_at" = NULL WHERE {sql.among("id", 1)} AND "id" NOT'
            f' IN (SELECT "inbox_id" FROM "agentflow_parked" WHERE {sql.among("inbox_id", 2)})',
            [ids := sql.array(x.id for x in letters if x.unparked), ids],
        )


async def unpark(sql: Sql, external_ids: set[tuple[str, str]]) -> list[Letter]:
    """The deliveries parked under these (provider, external id) pairs."""
    if not external_ids:
        return []
    rows = await sql.rows(
        'SELECT "id", "inbox_id", "provider", "external_id" FROM "agentflow_parked"'
        f" WHERE {sql.among('provider', 1)} AND {sql.among('external_id', 2)}"
        f' ORDER BY "id"{sql.locking}',
        [sql.array({p for p, _ in external_ids}), sql.array({e for _, e in external_ids})],
    )
    chosen = [r for r in rows if (r["provider"], r["external_id"]) in external_ids]
    found = await rows_of(sql, [r["inbox_id"] for r in chosen])
    letters = {id: Letter(row) for id, row in found.items()}
    for row in chosen:
        if row["inbox_id"] in letters:
            letters[row["inbox_id"]].unparked.append(row["id"])
    return list(letters.values())


async def strays_of(sql: Sql, provider: str) -> list[str]:
    """The external ids that parked deliveries of the provider name, the newest first."""
    rows = await sql.rows(
        f'SELECT "external_id" FROM "agentflow_parked" WHERE "provider" = {sql.mark(1)}'
        f' ORDER BY "id" DESC LIMIT {MOST_STRAYS}',
        [provider],
    )
    return list(dict.fromkeys(row["external_id"] for row in rows))


async def expire_parked(sql: Sql, now: datetime) -> None:
    """Deliveries for nobody, kept long enough."""
    late = await sql.rows(
        f'SELECT "id" FROM "agentflow_inbox" WHERE "wake_at" <= {sql.mark(1)}'
        f' ORDER BY "id" LIMIT 200{sql.locking}',
        [now],
    )
    if not late:
        return
    ids = sql.array(row["id"] for row in late)
    await sql.rows(f'DELETE FROM "agentflow_parked" WHERE {sql.among("inbox_id", 1)}', [ids])
    await sql.rows(
        'UPDATE "agentflow_inbox" SET "status" = CASE WHEN "status" = \'parked\' THEN \'expired\''
        f' ELSE "status" END, "wake_at" = NULL WHERE {sql.among("id", 1)}',
        [ids],
    )
