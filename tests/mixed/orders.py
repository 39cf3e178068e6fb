"""Orders of every kind, for every provider."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from support.crash.orders import Order, Orders, prediction

from agentflow.types import Json

Kind: TypeAlias = Callable[[int, random.Random], Order]

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


def batch(number: int, dice: random.Random) -> Order:
    outcome = dice.choice(["completed"] * 5 + ["failed", "expired"])
    script = {"seconds": dice.choice([0.0, 0.2, 1.0]), "outcome": outcome}
    items = [{"custom_id": f"n{n}", "request": _asked(number)} for n in range(3)]
    return Order("openai.batch", {"items": items, "metadata": {"simulate": json.dumps(script)}})


def streamed(number: int, dice: random.Random) -> Order:
    if dice.random() < 0.4:
        return Order("openai.chat", {**_asked(number), "stream": True})
    script = {"seconds": dice.choice([0.0, 0.5, 1.5])}
    return Order("openai.respond", {**_asked(number, simulate=script), "stream": True})


def drawing(number: int, dice: random.Random) -> Order:
    """A declared service's; some webhooks are thin."""
    script = {
        "seconds": dice.choice([0.0, 0.2, 1.0]),
        "ends": dice.choice(["OK"] * 6 + ["ERROR"]),
        "thin": dice.random() < 0.3,
    }
    return Order("queue.draw", {"prompt": f"hen {number}", "script": script})


def read(shop: str) -> Kind:
    def order(number: int, dice: random.Random) -> Order:
        return Order("http.get", {"url": f"{shop}/orders/c{number}", "auth": "shop"})

    return order


def bought(shop: str) -> Kind:
    """What must not be done twice; the shop counts by the item, which is the job's entity."""

    def order(number: int, dice: random.Random) -> Order:
        item = f"item:{number}"
        asked = {"url": f"{shop}/orders/c{number}", "auth": "shop", "json": {"item": item}}
        return Order("http.request", asked, {"entity": item})

    return order


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


def kinds(shop: str) -> tuple[Kind, ...]:
    """As often as they are there."""
    return (
        *(prediction,) * 3, *(respond,) * 4, *(send,) * 3, chat, chat, embed, image, speech,
        *(batch,) * 2, *(streamed,) * 2, *(drawing,) * 3, read(shop), *(bought(shop),) * 2,
    )  # fmt: skip


def orders(callback_url: str, shop: str) -> Orders:
    """One in five is to be told of by a callback."""
    every = kinds(shop)

    def order(number: int, dice: random.Random) -> Order:
        made = dice.choice(every)(number, dice)
        more = {"callback_url": callback_url} if number % 5 == 0 else {}
        return Order(made.task, made.input, {**made.more, **more})

    return order
