"""What must hold when all is over, whatever happened before. Each check yields what is wrong."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path

from agentflow_replicate.simulator import ReplicateSimulator

from agentflow.core.job import FINAL, fold
from support.crash.books import Books


def wrong(
    books: Books, accepted: Collection[str], sim: ReplicateSimulator, files: Path
) -> list[str]:
    """Sentences; none if all is right. `accepted` are the ids of jobs that somebody was told."""
    return [
        *any_wrong(books, accepted, files),
        *_rows(books),
        *_inbox(books, sim),
        *_provider(books, sim),
    ]


def any_wrong(books: Books, accepted: Collection[str], files: Path) -> list[str]:
    """What holds whoever the providers are."""
    return [*_jobs(books, accepted), *_histories(books), *_files(books, files), *_unread(books)]


def _jobs(books: Books, accepted: Collection[str]) -> Iterator[str]:
    for id in sorted(set(accepted) - books.by_id.keys()):
        yield f"{id} was accepted and is lost"
    for job in books.jobs:
        if job["status"] not in FINAL:
            yield f"{job['id']} is {job['status']} ({job['reason']})\n{books.told(job['id'])}"


def _rows(books: Books) -> Iterator[str]:
    """The application's rows: each end of a job reached its row once."""
    jobs: defaultdict[str, list[str]] = defaultdict(list)
    for job in books.jobs:
        if job["task"] == "replicate.predict":
            jobs[job["entity"]].append(job["id"])
    shots = {f"shot:{shot['id']}": shot for shot in books.shots}
    if jobs.keys() != shots.keys():
        yield f"rows without a job, or the reverse: {sorted(jobs.keys() ^ shots.keys())[:20]}"
    for entity in jobs.keys() & shots.keys():
        shot, ids = shots[entity], jobs[entity]
        job = books.by_id[shot["job"]]
        if shot["handled"] != len(ids):
            yield f"{entity} of {len(ids)} jobs was told {shot['handled']} ends"
        if shot["status"] != job["status"]:
            yield f"{entity} says {shot['status']}, its job {job['id']} {job['status']}"
        elif job["status"] == "succeeded" and shot["file"] != job["result"]["artifacts"][0]["id"]:
            yield f"{entity} has not the file of {job['id']}"


def _histories(books: Books) -> Iterator[str]:
    """They fold to the rows, end once, and grant each attempt once."""
    for job in books.jobs:
        history = books.entries[job["id"]]
        if [e["seq"] for e in history] != list(range(job["version"])):
            yield f"the history of {job['id']} has gaps"
            continue
        folded = fold([e["patch"] for e in history])
        if (folded["status"], folded["result"]) != (job["status"], job["result"]):
            yield f"the history of {job['id']} gives another row"
        applied = [e for e in history if e["disposition"] == "applied"]
        if sum(e["status"] in FINAL for e in applied) != 1:
            yield f"{job['id']} ended more than once\n{books.told(job['id'])}"
        grants = Counter(e["fields"]["attempt"] for e in applied if e["event"] == "started")
        if any(n > 1 for n in grants.values()):
            yield f"an attempt of {job['id']} was granted twice\n{books.told(job['id'])}"


def _files(books: Books, files: Path) -> Iterator[str]:
    for job in books.jobs:
        if job["status"] != "succeeded":
            continue
        for artifact in job["result"]["artifacts"]:
            if artifact["status"] != "stored":
                yield f"a file of {job['id']} is {artifact['status']}\n{books.told(job['id'])}"
                continue
            body = (files / artifact["key"]).read_bytes()
            if (len(body), hashlib.sha256(body).hexdigest()) != (
                artifact["size"],
                artifact["sha256"],
            ):
                yield f"the file {artifact['key']} is damaged"


def _unread(books: Books) -> Iterator[str]:
    for row in books.inbox:
        if row["status"] in ("received", "failed"):
            yield f"{row['kind']} {row['id']} is {row['status']}: {row['error']}"


def _inbox(books: Books, sim: ReplicateSimulator) -> Iterator[str]:
    """What was answered with 2xx is there."""
    stored = {row["dedup_key"] for row in books.inbox}
    for id in sorted(sim.stats.acknowledged):
        if f"id:{id}" not in stored:
            yield f"the delivery {id} was answered 2xx and is lost"


def _provider(books: Books, sim: ReplicateSimulator) -> Iterator[str]:
    """No attempt's call was made twice, and none that took effect was given up as unknown."""
    for token, times in sim.stats.created.items():
        if times > 1:
            yield f"the call of one attempt was made {times} times: {token}"
    tokens = {(a["job_id"], a["number"]): a["token"] for a in books.attempts}
    for job in books.jobs:
        token = tokens[job["id"], job["attempt"]]
        if job["reason"] == "failed:outcome_unknown" and token in sim.stats.created:
            yield f"the prediction of {job['id']} was not found\n{books.told(job['id'])}"


def counted(books: Books) -> Counter[str]:
    """What there was of the unusual."""
    reasons = Counter(e["reason"] for e in books.history)
    return Counter(
        {
            "deliveries": len(books.inbox),
            "abandoned": sum(e["event"] == "abandoned" for e in books.history),
            "found": reasons["found"],
            "lease_lost": reasons["lease_lost"],
        }
    )
