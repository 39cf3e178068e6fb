"""One job in full, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentflow.cli.showing import local, percent, summary, write_fields

if TYPE_CHECKING:
    from agentflow.client import Job


def write_job(job: Job, url: str) -> None:
    """What a person wants to know of a job; `--json` has all of it."""
    data = job.data
    fields = {
        "job": data["id"],
        "task": data["task"],
        "status": data["status"],
        "why": summary(data),
        "progress": "" if job.final else percent(data["progress"]),
        "attempt": f"{data['attempt']} of {data['max_attempts']}",
        "entity": data["entity"],
        "tags": " ".join(data["tags"]),
        "metadata": data["metadata"],
        "external id": data["external_id"],
        "retry of": data["retry_of"],
        "created": local(data["created_at"]),
        "started": local(data["started_at"]),
        "finished": local(data["finished_at"]),
        "next look": local(data["wake_at"]),
        "deadline": None if job.final else local(data["deadline"]),
    }
    write_fields({**fields, **_outcome(data, url)})


def _outcome(data: dict[str, Any], url: str) -> dict[str, Any]:
    result, cost = data["result"] or {}, data["cost"]
    files = result.get("artifacts", [])
    text = result.get("text")
    shown = {
        "text": text,
        "output": None if text or files else result.get("output"),
        "usage": result.get("usage"),
        "cost": f"{cost['amount']} {cost['currency']}" if cost else None,
    }
    for number, file in enumerate(files, 1):
        shown[f"file {number}"] = f"{file['name']}  {file['status']}  {_place(file, url)}"
    return shown


def _place(file: dict[str, Any], url: str) -> str:
    """Where the file can be had, why it cannot, or how long there is to copy it."""
    if file["status"] == "stored":
        return f"{url}/v1/artifacts/{file['id']}"
    if file["status"] == "pending" and file["expires_at"]:
        return f"expires {local(file['expires_at'])}"
    return str(file["note"] or "")
