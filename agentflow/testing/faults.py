"""What a simulated provider can be told to do wrong, and what it remembers having done."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from random import Random
from typing import Any, TypeAlias

Hit: TypeAlias = Callable[[str], bool]
"""Whether the fault of this name happens now; asking uses it up."""


@dataclass(slots=True)
class Fault:
    """Happens `next` times for sure, and after that each time with `probability`."""

    next: int = 0
    probability: float = 0.0

    @classmethod
    def of(cls, value: object) -> Fault:
        """From JSON: a whole number is a count, a fraction a probability, true means always.

        `{"next": 2, "probability": 0.1}` gives both. Raises `ValueError` for anything else.
        """
        match value:
            case Fault():
                return value
            case bool():
                return cls(probability=float(value))
            case int() if value >= 0:
                return cls(next=value)
            case float() if 0 <= value <= 1:
                return cls(probability=value)
            case {"next": int() as count, "probability": int() | float() as share}:
                return cls(cls.of(count).next, cls.of(float(share)).probability)
        raise ValueError(f"{value!r} is no fault: 2 (the next two), 0.1 (one in ten), true, false")

    def hit(self, random: Random) -> bool:
        if self.next:
            self.next -= 1
            return True
        return self.probability > 0 and random.random() < self.probability


@dataclass(slots=True)
class Faults:
    """The faults of one simulator; none happens until it is set. Durations are in seconds."""

    rate_limit: Fault = field(default_factory=Fault)
    """429, with the seconds until the limit resets. The work is not created."""
    error_before: Fault = field(default_factory=Fault)
    """A 5xx before the work is created."""
    error_after: Fault = field(default_factory=Fault)
    """A 5xx after the work is created."""
    reset: Fault = field(default_factory=Fault)
    """The connection closes without an answer after the work is created."""
    hang: Fault = field(default_factory=Fault)
    """No answer for `hang_seconds` after the work is created, then a reset."""
    slow_body: Fault = field(default_factory=Fault)
    """The answer trickles in over `slow_seconds`."""
    cut_body: Fault = field(default_factory=Fault)
    """The connection closes in the middle of the answer after the work is created."""
    webhook_before_response: Fault = field(default_factory=Fault)
    """The answer to the create is held back until the work's last webhook was sent."""
    duplicate: Fault = field(default_factory=Fault)
    """A webhook is sent twice at the same time, under one id."""
    reorder: Fault = field(default_factory=Fault)
    """A webhook about work in progress is sent after the last one."""
    delay: Fault = field(default_factory=Fault)
    """A webhook is sent `delay_seconds` late; others overtake it."""
    drop: Fault = field(default_factory=Fault)
    """A webhook is never sent, not even by a retry."""
    wrong_signature: Fault = field(default_factory=Fault)
    """One try of a webhook is signed with another key."""
    fail: Fault = field(default_factory=Fault)
    """The work fails."""
    abort: Fault = field(default_factory=Fault)
    """The work is given up before it starts."""

    rate_limit_seconds: float = 1.0
    error_status: int = 502
    hang_seconds: float = 600.0
    slow_seconds: float = 2.0
    delay_seconds: float = 1.0
    seed: int = 0

    random: Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)

    def hit(self, name: str) -> bool:
        happens: bool = getattr(self, name).hit(self.random)
        return happens

    def update(self, changes: Mapping[str, object] | None = None, /, **more: object) -> None:
        """Set faults (see `Fault.of`) and numbers by name. All or nothing: raises `ValueError`."""
        wanted = {**(changes or {}), **more}
        read = {name: self._read(name, value) for name, value in wanted.items()}
        for name, value in read.items():
            setattr(self, name, value)
        if "seed" in read:
            self.random.seed(self.seed)

    def _read(self, name: str, value: object) -> object:
        if name in FAULTS:
            return Fault.of(value)
        if name not in NUMBERS:
            raise ValueError(f"no fault is called {name!r}; there are {', '.join(FAULTS)}")
        whole = isinstance(getattr(self, name), int)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise ValueError(f"{name} is a {'whole ' * whole}number")
        if value < 0:
            raise ValueError(f"{name} is not below 0")
        return value

    def clear(self) -> None:
        """No faults from now on."""
        for name in FAULTS:
            setattr(self, name, Fault())

    def dump(self) -> dict[str, Any]:
        faults = {name: asdict(getattr(self, name)) for name in FAULTS}
        return faults | {name: getattr(self, name) for name in NUMBERS}


FAULTS = tuple(f.name for f in fields(Faults) if f.type == "Fault")
NUMBERS = tuple(f.name for f in fields(Faults) if f.type in ("int", "float"))


@dataclass(slots=True)
class Stats:
    """What a simulator saw and did since it started."""

    counts: Counter[str] = field(default_factory=Counter)
    """Requests by what they asked for, webhooks by what became of them."""
    created: Counter[str] = field(default_factory=Counter)
    """Works created, by the last segment of their webhook's path: above 1 is paid twice."""
    answers: Counter[str] = field(default_factory=Counter)
    """What receivers of webhooks answered: a status code, or `error`."""
    faults: Counter[str] = field(default_factory=Counter)
    """How often each fault was played."""
    targets: deque[str] = field(default_factory=lambda: deque(maxlen=1000))
    """The newest requests: path and query as they were written."""
    acknowledged: set[str] = field(default_factory=set)
    """Ids of the webhooks that somebody answered with 2xx: these must not be lost."""

    def dump(self) -> dict[str, dict[str, int]]:
        counters = (f.name for f in fields(self) if f.type == "Counter[str]")
        return {name: dict(getattr(self, name)) for name in counters}
