"""The declared tasks of a service, and work that goes on after the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentflow import (
    Accepted,
    Changed,
    Failed,
    OutcomeUnknown,
    Policy,
    Provider,
    ProviderError,
    ResultLost,
    Succeeded,
)
from agentflow_http.answers import document, is_json, result_of
from agentflow_http.asking import Ask, OperationInput, bound_operation, of_operation
from agentflow_http.failures import LONGEST, reason
from agentflow_http.pointer import at, put
from agentflow_http.service import Operation, Service, Work
from agentflow_http.session import Session
from agentflow_http.wire import Answer
from agentflow_http.work import State, identity, result, state

if TYPE_CHECKING:
    from agentflow import Call

GONE = (404, 410)


def add_operation(
    provider: Provider, session: Session, name: str, operation: Operation, policy: Policy
) -> None:
    """A declared task; its work is followed where it goes on after the answer."""
    service, work, safe = session.service, operation.work, operation.safe

    async def run(call: Call, input: OperationInput) -> Any:
        ask = of_operation(input, service, operation, _carried(call, service, operation), put)
        if work is None:
            return await session.result(call, ask, repeatable=safe)
        return await _begun(call, session, ask, work, safe=safe)

    task = provider.task(
        name,
        input=bound_operation(f"{session.name}_{name}", operation),
        policy=policy,
        description=operation.description or f"{operation.method} {operation.path}",
    )(run)
    if work is None:
        return
    if work.status_path is not None:
        task.fetch(_fetcher(session, work))
    if work.cancel is not None:
        task.cancel(_canceler(session, work))


def _carried(call: Call, service: Service, operation: Operation) -> dict[str, dict[str, str]]:
    """What makes the webhook find us; nothing where none can come."""
    hook = service.webhook
    if hook is None or operation.work is None:
        return {}
    if hook.send.per_request and call.webhook_url is None:
        return {}
    secret = hook.secret.get_secret_value().replace(",", " ").split() if hook.secret else []
    values = {
        "{url}": call.webhook_url or "",
        "{token}": call.token,
        "{secret}": secret[0] if secret else "",
    }

    def filled(template: str) -> str:
        for name, value in values.items():
            template = template.replace(name, value)
        return template

    given = {"query": hook.send.query, "headers": hook.send.headers, "body": hook.send.body}
    return {where: {n: filled(t) for n, t in each.items()} for where, each in given.items()}


async def _begun(call: Call, session: Session, ask: Ask, work: Work, *, safe: bool) -> Any:
    answer = await session.answer(call, ask, repeatable=safe)
    if not answer.good:
        raise session.failure(answer, ask, repeatable=safe)
    said = document(answer)
    found = identity(said, work.id) if is_json(said) else None
    if found is None:
        raise OutcomeUnknown(f"HTTP {answer.status}, and nothing at {work.id} to follow it by.")
    now = state(said, work, session.redaction)
    if isinstance(now, Failed) or (isinstance(now, Succeeded) and work.result_path is None):
        return now
    return Accepted(found, poll_after=work.poll_after)


def _fetcher(session: Session, work: Work) -> Any:
    assert work.status_path is not None, "else there is nothing to ask"
    path = work.status_path

    async def fetch(call: Call, external_id: str) -> State | None:
        """How the work stands; what cannot be told is no news."""
        ask = Ask("GET", session.url(path, external_id), expect="json")
        answer = await session.answer(call, ask, repeatable=True)
        if answer.status in GONE:
            return Failed(ResultLost("The service knows no such work (any more)."))
        if not answer.good:
            raise session.failure(answer, ask, repeatable=True)
        said = document(answer)
        now = state(said, work, session.redaction) if is_json(said) else None
        if isinstance(now, Succeeded) and work.result_path is not None:
            return await _collected(call, session, work, external_id)
        # To look again at once would tell nothing more than an unknown status.
        return None if isinstance(now, Changed) else now

    return fetch


async def _collected(call: Call, session: Session, work: Work, id: str) -> State | None:
    """The result, where it has a path of its own. A 4xx there is how work fails, unless it is about
    us: it comes to what the webhook says of it, or to what the service is declared to mean."""
    assert work.result_path is not None, "asked for such work alone"
    ask = Ask("GET", session.url(work.result_path, id))
    answer = await session.answer(call, ask, repeatable=True)
    if answer.status in GONE:
        return Failed(ResultLost("The service has no result of it (any more)."))
    if not answer.good:
        failed = session.failure(answer, ask, repeatable=True)
        if failed.retryable or answer.status >= 500 or answer.status in (401, 402, 403):
            raise failed
        named = str(answer.status) in session.service.errors
        return Failed(failed if named else _sad(answer, session))
    said = document(answer)
    if not is_json(said):
        return Succeeded(result_of(answer, ask, session.redaction))
    found = said if work.result is None else at(said, work.result)
    return Succeeded(result(found, work, session.redaction))


def _sad(answer: Answer, session: Session) -> ProviderError:
    """As the webhook of the same failure has it."""
    why = reason(answer.body, session.service.error_message)
    return ProviderError(session.redaction.text(why[:LONGEST]) or f"HTTP {answer.status}.")


def _canceler(session: Session, work: Work) -> Any:
    assert work.cancel is not None, "asked for such work alone"
    method, path = work.cancel.method, work.cancel.path

    async def cancel(call: Call, external_id: str) -> None:
        """Ask for the end; what came of it is then looked at."""
        ask = Ask(method, session.url(path, external_id))
        answer = await session.answer(call, ask, repeatable=True)
        if answer.status >= 500 or answer.status == 429:
            raise session.failure(answer, ask, repeatable=True)

    return cancel
