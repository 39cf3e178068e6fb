"""Pauses and bulk commands against a running `agentflow dev --simulate`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.cli import Dev, dev

ORDER = '{"model": "acme/painter", "input": {"prompt": "a fox", "simulate": {"seconds": 0.1}}}'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    with dev(tmp_path_factory.mktemp("cli"), "--simulate") as running:
        yield running


def submitted(server: Dev, tag: str, *more: str) -> str:
    ran = server("submit", "replicate.predict", ORDER, "--no-wait", "--tag", tag, *more)
    assert ran.code == 0
    return ran.out.strip()


def test_a_paused_task_starts_nothing(server: Dev) -> None:
    assert server("pause").err == "Nothing is paused.\n"
    paused = server("pause", "replicate.predict", "--note", "no credit")
    assert (paused.code, paused.out.split()[0]) == (0, "replicate.predict")
    assert [(p["target"], p["note"]) for p in server("pause", "--json").json["items"]] == [
        ("replicate.predict", "no credit")
    ]
    assert "no credit" in server("pause").out
    job = submitted(server, "held")
    assert server("jobs", "wait", job, "--timeout", "0.5").code == 4
    assert server("jobs", "show", job, "--json").json["status"] == "queued"
    assert server("resume", "replicate.predict").out == "replicate.predict goes on\n"
    assert server("pause", "--json").json == {"items": []}
    assert server("submit", "replicate.predict", ORDER).code == 0


def test_a_pause_of_nothing_and_the_end_of_none_are_told(server: Dev) -> None:
    unknown = server("pause", "acme")
    assert unknown.code == 2
    assert "There is no task or provider 'acme'" in unknown.err
    none = server("resume", "replicate")
    assert none.code == 1
    assert "Traceback" not in none.err


def test_bulk_commands_rehearse_until_told_to_do_it(server: Dev) -> None:
    jobs = [submitted(server, "later", "--delay", "3600") for _ in range(3)]
    counted = server("jobs", "cancel-all", "--tag", "later")
    assert counted.out.split() == jobs
    assert counted.err == "3 jobs fit; --yes will cancel them\n"
    first = server("jobs", "cancel-all", "--tag", "later", "--yes", "-n", "2", "--json").json
    assert (first["done"], first["ids"], first["more"]) == (2, jobs[:2], True)
    assert server("jobs", "cancel-all", "--tag", "later", "--yes").err == "1 of 1 done\n"
    for job in jobs:
        assert server("jobs", "wait", job, "--timeout", "10", "--json").json["status"] == "canceled"
    again = server("jobs", "retry-all", "--tag", "later", "--yes", "--json").json
    assert again["ids"] == jobs
    for _ in range(2):  # what was retried is done, and so is what came of it
        found = server("jobs", "retry-all", "--tag", "later", "--yes", "--json").json
        assert found["matched"] == 0


@pytest.mark.parametrize("verb", ["cancel-all", "retry-all"])
def test_a_bulk_command_without_a_condition_is_refused(server: Dev, verb: str) -> None:
    ran = server("jobs", verb, "--yes")
    assert ran.code == 2
    assert "at least one condition" in ran.err
    assert server("jobs", verb, "--since", "yesterday").code == 2


def test_usage_is_summed_and_a_budget_ends_what_it_has_no_room_for(server: Dev) -> None:
    assert server("budgets", "list").err == "There are no budgets.\n"
    made = server("budgets", "set", "5", "--per-call", "0.5", "--tag", "poor", "--period", "day")
    assert made.code == 0, made.err
    (budget,) = server("budgets", "list", "--json").json["items"]
    assert (budget["tag"], budget["cap"], budget["per_call"]) == ("poor", "5", "0.5")
    assert server("submit", "replicate.predict", ORDER, "--tag", "poor").code == 0
    (group,) = server("usage", "--by", "task", "--tag", "poor", "--json").json["items"]
    assert (group["group"], group["calls"], group["unknown"]) == (
        {"task": "replicate.predict"}, 1, 1,
    )  # fmt: skip
    assert "predict_seconds" in server("usage", "--by", "tag,day").out
    server("budgets", "set", "0.5", "--per-call", "0.5", "--tag", "poor", "--period", "day")
    refused = server("submit", "replicate.predict", ORDER, "--tag", "poor")
    assert refused.code == 1
    assert "has no room: 0.5 USD is spent" in refused.out + refused.err
    assert server("budgets", "remove", budget["id"]).code == 0
    assert server("budgets", "remove", budget["id"]).code == 1
    assert server("budgets", "set", "much", "--per-call", "1").code == 2
    assert server("usage", "--since", "soon").code == 2
