"""What a log line may hold."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest
import structlog

from agentflow import logs


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level, config = root.handlers[:], root.level, structlog.get_config()
    levels = {name: logging.getLogger(name).level for name in logs.CHATTY}
    stream = io.StringIO()
    logs.configure("INFO", stream=stream)
    yield stream
    structlog.configure(**config)
    root.handlers[:] = before
    root.setLevel(level)
    for name, old in levels.items():
        logging.getLogger(name).setLevel(old)


def test_a_line_is_a_sentence_and_its_fields(out: io.StringIO) -> None:
    structlog.get_logger("x").warning("Webhook refused", provider="acme", why="no key", odd=None)
    structlog.get_logger("x").info("Job failed", job_id="job_1", seconds=1.5)
    first, second = (line[9:] for line in out.getvalue().splitlines())
    assert first == "WARNING Webhook refused  provider=acme why='no key'"
    assert second == "Job failed  job_1 seconds=1.5"


def test_secrets_inputs_and_bodies_are_not_written(out: io.StringIO) -> None:
    hidden = ("token", "webhook_secret", "API_KEY", "signature", "input", "body", "authorization")
    structlog.get_logger("x").info("Said", **dict.fromkeys(hidden, "hush"), output_hosts="seen")
    assert "hush" not in out.getvalue()
    assert "seen" in out.getvalue()


def test_nobody_breaks_a_line_or_paints_the_terminal(out: io.StringIO) -> None:
    structlog.get_logger("x").info("Said", why="a\n12:00:00 forged\x1b[31m", long="x" * 10_000)
    [line] = out.getvalue().splitlines()
    assert "\x1b" not in line
    assert len(line) < 1000


def test_libraries_speak_through_it_from_warning_on(out: io.StringIO) -> None:
    for name in ("taskiq.receiver", "uvicorn.error", "httpx", "httpx2"):
        logging.getLogger(name).info("chatter %s", name)
        logging.getLogger(name).warning("trouble in %s", name)
    logging.getLogger("shop").info("sold %d", 2)
    said = [line[9:] for line in out.getvalue().splitlines()]
    assert said == [
        "WARNING trouble in taskiq.receiver",
        "WARNING trouble in uvicorn.error",
        "WARNING trouble in httpx",
        "WARNING trouble in httpx2",
        "sold 2",
    ]


def test_an_exception_is_shown_without_its_variables(out: io.StringIO) -> None:
    secret = "hush" + "hush"
    try:
        raise ValueError("odd")
    except ValueError:
        structlog.get_logger("x").exception("Broke")
    assert "ValueError: odd" in out.getvalue()
    assert secret not in out.getvalue()
