"""Bugs of the plugin for HTTP, seen through the services it is told of."""

from __future__ import annotations

from tests.mutation.mutant import Mutant, of

HTTP: list[Mutant] = of(
    "http",
    (
        "work.py",
        "            return Canceled()",
        "            return Changed()",
        "a canceled work is looked after for ever",
        "canceled_job",
    ),
    (
        "work.py",
        "        case _:\n            return Changed()",
        "        case _:\n            return Succeeded(result(document, reading, redaction))",
        "an undeclared status is a success",
        "unknown_yet",
    ),
    (
        "work.py",
        "return found if brought else Changed()",
        "return found",
        "a thin webhook is an empty success",
        "as_it_says",
    ),
    (
        "work.py",
        "artifacts=files(found, reading.artifacts)",
        "artifacts=files(found, [])",
        "the files of declared work are lost",
        "as_it_says",
    ),
    (
        "failures.py",
        "return OutcomeUnknown if unsure and not turned_away else Unavailable",
        "return Unavailable",
        "a call answered by 502 is made again",
        "status_comes",
    ),
    (
        "wire.py",
        "return OutcomeUnknown(said) if unsure else sure(said)",
        "return sure(said)",
        "a call whose answer is lost is made again",
        "without_an_answer",
    ),
    (
        "failures.py",
        "said, retry_after=wait, detail",
        "said, retry_after=None, detail",
        "a rate limit does not say when to come back",
        "come_back",
    ),
    (
        "session.py",
        "        said.message = self.redaction.text(said.message)\n",
        "",
        "an error that repeats the key is shown as it is",
        "shows_no_key",
    ),
    (
        "session.py",
        "if auth is not None and not is_set(auth):",
        'if auth is None and call.webhook_url == "":',
        "without its key a service is asked all the same",
        "missing_key",
    ),
    (
        "session.py",
        'quote(id, safe="")',
        "id",
        "an id leads to another path of the service",
        "never_was",
    ),
    (
        "following.py",
        "if hook.send.per_request and call.webhook_url is None:",
        "if hook.send.per_request:",
        "a create does not say where its webhook goes",
        "told_by_webhook",
    ),
    (
        "following.py",
        "GONE = (404, 410)",
        "GONE = (410,)",
        "work that is gone is asked after for ever",
        "dropped_is_lost",
    ),
    (
        "following.py",
        "return Failed(failed if named else _sad(answer, session))",
        "return Failed(failed)",
        "a failure is another by poll than by webhook",
        "fetch_agrees or without_webhooks",
    ),
)
