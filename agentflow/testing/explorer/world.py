"""The world round one job: what kind of provider, how hostile, and what its states are."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, NamedTuple, TypeAlias

from agentflow.core.policy import Abilities, Policy
from agentflow.core.providers import WebhookFamily

OnUnknown: TypeAlias = Literal["fail", "retry", "ask"]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What kind of task and provider, and how hostile."""

    name: str
    webhooks: WebhookFamily = "per_request"
    fetch: bool = True
    find: bool = False
    cancel: bool = True
    repeatable: bool = False
    on_unknown: OnUnknown = "fail"
    askings: tuple[int, ...] = (1, 1)
    """For each attempt there may be, how many workers ask for it."""
    adopted: bool = False
    """The call was made elsewhere: the job waits for the provider from the start."""
    files: int = 0
    expiring: bool = False
    """The provider tells when it deletes the files: before the deadline."""
    thin: bool = False
    """Webhooks say only that something changed."""
    bare: bool = False
    """Webhooks carry no external id."""
    synchronous: bool = False
    """The call itself answers with the result."""
    contradictory: bool = False
    """The provider may tell several ends of the same work."""

    @property
    def policy(self) -> Policy:
        return Policy(
            repeatable=self.repeatable,
            on_unknown=self.on_unknown,
            unknown_checks=2,
            cancel_checks=2,
            collect_checks=2,
            backoff=0.0,
        )

    @property
    def abilities(self) -> Abilities:
        return Abilities(
            webhooks=self.webhooks != "none",
            fetch=self.fetch,
            find=self.find,
            cancel=self.cancel,
        )


class Run(IntEnum):
    """Where one worker's handling of one message stands."""

    IDLE = 0
    ASKED = 1
    GHOST = 2
    """Dead, its claim still on the way."""
    GRANTED = 3
    CALLING = 4
    ACCEPTED = 5
    """From here to `GAVE_UP` the outcome lies in the spool until it is confirmed."""
    REFUSED = 6
    UNSURE = 7
    DELIVERED = 8
    HANDED_BACK = 9
    GAVE_UP = 10
    OVER = 11


class Work:
    """Bits: what became of one run's call at the provider, and what was said about it."""

    CALLED = 1
    CREATED = 2
    SUCCEEDED = 4
    FAILED = 8
    CANCELED = 16
    ENDED = SUCCEEDED | FAILED | CANCELED
    ASKED = 32
    """The provider was asked to cancel it."""
    TOLD = 64
    """A fact with its external id was heard."""
    REFUSED = 128
    """The call surely had no effect."""


ENDS = ((Work.SUCCEEDED, "succeeded"), (Work.FAILED, "failed"), (Work.CANCELED, "canceled"))


class State(NamedTuple):
    """A moment of the world. Jobs are numbered as the search meets them."""

    job: int
    late: bool
    """The deadline has passed."""
    rung: int
    """A bit for each attempt whose message is in the broker."""
    runs: tuple[int, ...]
    works: tuple[int, ...]
    """For each run the bits of `Work`."""


def external_id(run: int) -> str:
    return f"work{run}"


def nonce(run: int) -> str:
    return f"nonce{run}"
