"""Where a file's row is: in the result of its job."""

from __future__ import annotations

from agentflow.core.results import artifact_place
from agentflow.errors import NotFound
from agentflow.store.queries import Reader
from agentflow.store.rows import loads
from agentflow.types import JsonObject


async def stored_artifact(tenant: str, id: str) -> JsonObject:
    """The artifact as recorded. Raises `NotFound` unless it is in custody and the tenant's."""
    place = artifact_place(id)
    if place is None:
        raise NotFound(f"There is no file {id}")
    job, index = place
    sql = Reader()
    rows = await sql.rows(
        'SELECT "result" FROM "agentflow_jobs"'
        f' WHERE "tenant" = {sql.mark(1)} AND "id" = {sql.mark(2)}',
        [tenant, job],
    )
    artifacts = (loads(rows[0]["result"]) or {}).get("artifacts", []) if rows else []
    if index >= len(artifacts) or artifacts[index]["status"] != "stored":
        raise NotFound(f"There is no file {id} in custody")
    found: JsonObject = artifacts[index]
    return found
