"""What a client may ask for."""

from __future__ import annotations

import pytest

from agentflow.core.submission import CALLBACK_TASK
from agentflow.errors import InvalidInput
from agentflow.web.schemas import BatchJob, NewJobBody
from agentflow.web.specs import new_spec


@pytest.mark.parametrize("body", [NewJobBody, BatchJob])
def test_nobody_has_events_of_their_own_signed_in_our_name(body: type[NewJobBody]) -> None:
    event = {"url": "https://example.com/", "event": {"id": "evt_1", "type": "job.succeeded"}}
    with pytest.raises(InvalidInput, match="made by agentflow itself"):
        new_spec(body(task=CALLBACK_TASK, input=event), None)
    assert new_spec(body(task="acme.do", input=event), None).task == "acme.do"
