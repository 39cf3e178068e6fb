"""Whether a request is sent again, and when."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

import httpx

from agentflow.client.errors import TooManyRequests, Unavailable

PAUSE = 0.25
"""Seconds before the first retry; each later pause is up to twice as long, until five seconds."""

LONGEST_PAUSE = 5.0

_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
_OURS = (httpx.LocalProtocolError, httpx.UnsupportedProtocol)


def passing(error: Exception, repeatable: bool) -> bool:
    """Whether trying again may help and cannot harm. What is not `repeatable` is sent again only
    if it surely did not arrive."""
    if isinstance(error, httpx.TransportError):
        return isinstance(error, _UNSENT) or (repeatable and not isinstance(error, _OURS))
    return repeatable and isinstance(error, (TooManyRequests, Unavailable))


@dataclass(frozen=True, slots=True)
class Limits:
    """No try begins later than `seconds` after the first failure, nor after `times` retries."""

    seconds: float = 30.0
    times: int | None = None

    def pause(self, tried: int, elapsed: float, asked: float | None, share: float) -> float | None:
        """Seconds until the next try; None to give up.

        `tried` counts the failures, `elapsed` the seconds since the first. `asked` is the
        server's `Retry-After`, which is never undercut: where it reaches beyond the limit, waiting
        is of no use. `share` in 0..1 spreads those who failed together.
        """
        if self.times is not None and tried > self.times:
            return None
        longest = min(PAUSE * 2.0 ** min(tried - 1, 16), LONGEST_PAUSE)
        wait = longest * (1 + share) / 2
        if asked is not None:
            wait = asked + longest * share / 2
        return wait if elapsed + wait <= self.seconds else None


class Tries:
    """The tries of one request, or of one stream between two pieces of news.

    None begins after the instant `until` of the monotonic clock.
    """

    def __init__(self, limits: Limits, until: float = float("inf")) -> None:
        self._limits, self._until = limits, until
        self.renew()

    def renew(self) -> None:
        """There was progress: count from zero."""
        self._failed, self._since = 0, 0.0

    def pause(self, error: Exception, repeatable: bool = True) -> float | None:
        """Seconds until the next try after this failure; None to give up."""
        if not passing(error, repeatable):
            return None
        now = time.monotonic()
        self._since = self._since if self._failed else now
        self._failed += 1
        asked = error.retry_after if isinstance(error, (TooManyRequests, Unavailable)) else None
        wait = self._limits.pause(self._failed, now - self._since, asked, random.random())
        return None if wait is None or now + wait > self._until else wait
