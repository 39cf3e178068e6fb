"""What is said between processes, as JSON: claims, envelopes, heartbeats and their answers.

A later version may add fields; unknown ones are left out. What cannot be read raises `ValueError`
or `KeyError`: nobody answers it, and its sender keeps it for somebody who understands.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import orjson

from agentflow.core.events import Envelope, Source, dump_event, load_event, name_of
from agentflow.transport.conversation import Beat, Claim, Denied, Granted
from agentflow.types import JobId, JsonObject


def dump_envelope(envelope: Envelope) -> JsonObject:
    return {
        "id": envelope.id,
        "source": envelope.source,
        "at": envelope.at,
        "job": envelope.job_id,
        "event": name_of(envelope.event),
        "fields": orjson.Fragment(dump_event(envelope.event)),
    }


def load_envelope(said: JsonObject) -> Envelope:
    return Envelope(
        said["id"],
        Source(said["source"]),
        datetime.fromisoformat(said["at"]),
        JobId(said["job"]),
        load_event(said["event"], said["fields"]),
    )


def dump_said(said: Claim | Envelope | Beat) -> JsonObject:
    match said:
        case Claim():
            return {
                "kind": "claim",
                "job": said.job_id,
                "attempt": said.attempt,
                "nonce": said.nonce,
                "worker": said.worker,
                "task": said.task,
                "account": said.account,
            }
        case Envelope():
            return {"kind": "report", **dump_envelope(said)}
        case Beat():
            return {"kind": "beat", "worker": said.worker, "attempts": list(said.attempts)}


def load_said(said: JsonObject) -> Claim | Envelope | Beat:
    match said["kind"]:
        case "claim":
            claim = said["attempt"], said["nonce"], said["worker"], said["task"]
            return Claim(JobId(said["job"]), *claim, said.get("account"))
        case "report":
            return load_envelope(said)
        case "beat":
            return Beat(said["worker"], [(JobId(job), number) for job, number in said["attempts"]])
        case kind:
            raise ValueError(f"nobody here knows what a {kind} is")


def key_of(said: Claim | Envelope) -> str:
    """What an answer is known by: the same for the same thing said again."""
    if isinstance(said, Claim):
        return f"{said.job_id}/claim/{said.nonce}"
    return f"{said.job_id}/{said.id}"


def dump_answer(answer: Granted | Denied | None) -> JsonObject:
    match answer:
        case Granted():
            return {"granted": [answer.timeout, answer.deadline, answer.webhooks]}
        case Denied():
            return {"denied": answer.reason}
        case None:
            return {}


def load_answer(said: dict[str, Any]) -> Granted | Denied | None:
    if "granted" in said:
        timeout, deadline, webhooks, *_ = said["granted"]
        return Granted(timeout, datetime.fromisoformat(deadline), webhooks)
    return Denied(said["denied"]) if "denied" in said else None
