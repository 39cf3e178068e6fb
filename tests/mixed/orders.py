"""Orders of every kind, for every provider."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Mapping
from typing import Any

from support.crash.orders import Order, Orders, prediction

from agentflow.types import Json

DEADLINE = 25.0
"""Seconds, where a lost webhook leaves nothing to ask."""


def respond(number: int, dice: random.Random) -> Order:
    outcome = dice.choice(["completed"] * 6 + ["failed", "incomplete"])
    script = {"seconds": dice.choice([0.0, 0.2, 1.0]), "outcome": outcome, "code": "invalid_prompt"}
    return Order("openai.respond", _asked(number, simulate=script, background=dice.random() < 0.7))


def chat(number: int, dice: random.Random) -> Order:
    return Order("openai.chat", _asked(number))


def embed(number: int, dice: random.Random) -> Order:
    return Order("openai.embed", {"model": "small", "input": [f"text {number}", "more"]})


def image(number: int, dice: random.Random) -> Order:
    return Order("openai.image", {"prompt": f"hen {number}", "model": "gpt-image-1", "n": 2})


def speech(number: int, dice: random.Random) -> Order:
    return Order("openai.speech", {"input": f"Word {number}", "voice": "alloy", "model": "tts-1"})


def send(number: int, dice: random.Random) -> Order:
    script = {
        "seconds": dice.choice([0.0, 0.3]),
        "ends": dice.choice(["delivered"] * 5 + ["bounce", "dropped"]),
        "deferred": dice.choice([0, 0, 2]),
        "later": ["open", "click"],
        "junk": dice.random() < 0.2,
        "twice": dice.random() < 0.2,
    }
    mail = {
        "to": f"p{number}@example.com",
        "sender": "shop@example.com",
        "subject": "Hello",
        "text": "Hi",
        "custom_args": {"simulate": json.dumps(script)},
        "attachments": [{"filename": "a.txt", "content": base64.b64encode(b"hi").decode()}],
    }
    return Order("sendgrid.send", mail, {"deadline": DEADLINE})


def _asked(
    number: int, *, simulate: Mapping[str, Any] | None = None, background: bool = False
) -> dict[str, Json]:
    asked: dict[str, Json] = {
        "model": "gpt-5-mini",
        "messages": [{"role": "user", "content": f"say {number}"}],
    }
    if simulate is not None:
        asked |= {"background": background, "metadata": {"simulate": json.dumps(simulate)}}
    return asked


KINDS: tuple[Callable[[int, random.Random], Order], ...] = (
    *(prediction,) * 3, *(respond,) * 4, *(send,) * 3, chat, chat, embed, image, speech,
)  # fmt: skip


def orders(callback_url: str) -> Orders:
    """One in five is to be told of by a callback."""

    def order(number: int, dice: random.Random) -> Order:
        made = dice.choice(KINDS)(number, dice)
        more = {"callback_url": callback_url} if number % 5 == 0 else {}
        return Order(made.task, made.input, {**made.more, **more})

    return order
