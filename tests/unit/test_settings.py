"""Settings as they are written in environment files."""

from __future__ import annotations

import pytest

from agentflow.errors import SettingsError
from agentflow.settings import load_settings


@pytest.mark.parametrize(
    "written", ["a,b", "a, b", " a  b ", '["a", "b"]', ' ["b","a"]', "a,,b,", "b,a,a"]
)
def test_names_are_written_with_commas_spaces_or_as_json(
    monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    monkeypatch.setenv("AGENTFLOW_QUEUES", written)
    assert load_settings().queues == {"a", "b"}


def test_no_names_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTFLOW_ALLOW_DOWNLOADS", "")
    monkeypatch.setenv("AGENTFLOW_CALLBACK_ALLOW", "[]")
    settings = load_settings()
    assert settings.allow_downloads == settings.callback_allow == frozenset()


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("QUEUES", "[a, b]"),
        ("ALLOW_DOWNLOADS", '["127.0.0.1:1"'),
        ("PORT", "many"),
        ("REDIS_URL", "localhost"),
        ("DATABASE_URL", "s3cret"),
    ],
)
def test_what_cannot_be_read_is_an_error_that_names_the_variable_alone(
    monkeypatch: pytest.MonkeyPatch, name: str, written: str
) -> None:
    monkeypatch.setenv(f"AGENTFLOW_{name}", written)
    with pytest.raises(SettingsError, match=f"AGENTFLOW_{name}: ") as raised:
        load_settings()
    assert written not in str(raised.value)
