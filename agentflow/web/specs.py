"""What requests ask for, as jobs to submit."""

from __future__ import annotations

from agentflow.core.submission import CALLBACK_TASK, JobSpec
from agentflow.store.rows import Row, loads
from agentflow.web.context import invalid
from agentflow.web.schemas import NewJobBody


def new_spec(said: NewJobBody, key: str | None) -> JobSpec:
    """A job as a client described it, under its idempotency key. Raises `InvalidInput` for a task
    that only agentflow itself may start: what it posts is signed in our name."""
    if said.task == CALLBACK_TASK:
        raise invalid("task", "made by agentflow itself, for a job with a callback_url")
    return JobSpec(
        said.task,
        said.input,
        entity=said.entity,
        priority=said.priority,
        delay=said.delay,
        run_at=said.run_at,
        deadline=said.deadline,
        max_attempts=said.max_attempts,
        tags=said.tags,
        metadata=said.metadata,
        idempotency_key=key,
        callback_url=said.callback_url,
    )


def again(old: Row, key: str | None) -> JobSpec:
    """The job of this row of `queries.AGAIN` once more; its times were its own."""
    return JobSpec(
        old["task"],
        loads(old["input"]),
        entity=old["entity"],
        priority=old["priority"],
        tags=loads(old["tags"]),
        metadata=loads(old["metadata"]),
        max_attempts=old["max_attempts"],
        retry_of=old["id"],
        callback_url=old["callback_url"],
        idempotency_key=key,
    )
