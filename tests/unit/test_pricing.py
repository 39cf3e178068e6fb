"""Prices: exact, dated, and silent where something is not known."""

from __future__ import annotations

import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from agentflow_openai.prices import billed_as, most_of_request, most_of_texts
from agentflow_openai.prices import prices as openai_prices
from agentflow_openai.settings import OpenAISettings

from agentflow import AgentFlow, Cost, Price, Provider, Result, Settings, SettingsError
from agentflow.core.pricing import Prices, amount_from, from_steps, reported, steps, written
from agentflow.plugins.catalogue import Catalogue
from agentflow.plugins.pricelist import read_prices

DAY = date(2026, 11, 27)
TOKENS = {"input_tokens": "2.00", "cached_input_tokens": "0.50", "output_tokens": "8.00"}
WITHIN = {"cached_input_tokens": "input_tokens"}


def tokens(**more: Any) -> Price:
    return Price(**{"since": DAY, "units": TOKENS, "per": 1_000_000, "within": WITHIN, **more})


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        ({"input_tokens": 1000, "output_tokens": 10}, "0.00208"),
        ({"input_tokens": 1000, "cached_input_tokens": 400, "output_tokens": 10}, "0.00148"),
        ({"input_tokens": 3, "output_tokens": 0}, "0.000006"),
        ({"input_tokens": 0, "output_tokens": 0}, "0"),
    ],
)
def test_tokens_cost_what_the_table_says_to_the_last_digit(
    usage: dict[str, float], cost: str
) -> None:
    amount = tokens().amount(usage)
    assert amount is not None
    assert written(amount) == cost


@pytest.mark.parametrize(
    "usage",
    [
        {},
        {"input_tokens": 5},
        {"input_tokens": 5, "output_tokens": None},
        {"input_tokens": 5, "output_tokens": float("nan")},
        {"input_tokens": -5, "output_tokens": 1},
        {"input_tokens": True, "output_tokens": 1},
        {"input_tokens": "5", "output_tokens": 1},
        {"input_tokens": 5, "cached_input_tokens": 6, "output_tokens": 1},
        {"input_tokens": 5, "cached_input_tokens": None, "output_tokens": 1},
        {"input_tokens": 1e300, "output_tokens": 1},
    ],
)
def test_usage_that_does_not_say_all_that_counts_has_no_known_cost(usage: dict[str, Any]) -> None:
    assert tokens().amount(usage) is None


def test_a_sum_of_tenths_is_no_float() -> None:
    price = Price(DAY, {"predict_seconds": "0.1"})
    amounts = [price.amount({"predict_seconds": 0.1}) for _ in range(3)]
    assert sum(filter(None, amounts)) == Decimal("0.03")
    assert price.amount({"predict_seconds": 2.675}) == Decimal("0.2675")


def test_a_price_per_call_asks_for_no_usage() -> None:
    prices = Prices([Price(DAY, call="0.01")])
    assert prices.cost("a.b", [], Result(), DAY) == Cost("0.01", "USD", "price_table:2026-11-27")


def test_the_price_of_the_day_counts() -> None:
    old, new = (Price(date(2026, m, 1), call=str(m)) for m in (3, 9))
    prices = Prices([new, old])
    found = [prices.find("a.b", [], date(2026, m, 2)) for m in (2, 3, 8, 9, 12)]
    assert found == [None, old, old, new, new]


def test_the_more_exact_pattern_counts_however_old() -> None:
    broad = tokens(model="gpt-4o*", since=date(2026, 9, 1))
    exact = tokens(model="gpt-4o-mini*", since=date(2026, 1, 1))
    prices = Prices([exact, broad])
    assert prices.find("a.b", ["gpt-4o-mini-2024-07-18"], DAY) is exact
    assert prices.find("a.b", ["gpt-4o"], DAY) is broad
    assert prices.find("a.b", ["gpt-5"], DAY) is None
    assert prices.find("a.b", [], DAY) is None, "a model without a name"


def test_the_operator_comes_before_the_plugin() -> None:
    prices = Prices([tokens(model="m-exactly")], own=[tokens(model="m*", call="1")])
    cost = prices.cost("a.b", ["m-exactly"], Result(usage=dict.fromkeys(TOKENS, 0)), DAY)
    assert cost == Cost("1", "USD", "operator:2026-11-27")


def test_a_plugin_prices_its_own_tasks_alone() -> None:
    known = Catalogue([], [Provider("one", prices=[Price(DAY, call="1")]), Provider("two")])
    assert known.prices.has("one.any")
    assert not known.prices.has("two.any")


def test_what_the_provider_says_counts_if_it_is_money() -> None:
    prices = Prices([Price(DAY, call="1")])
    said = Result(cost=Cost("0.00420", "EUR"))
    assert prices.cost("a.b", [], said, DAY) == Cost("0.0042", "EUR", "provider")
    for bad in ("-1", "NaN", "1e99", "free", "1" * 50):
        cost = prices.cost("a.b", [], Result(cost=Cost(bad)), DAY)
        assert cost == Cost("1", "USD", "price_table:2026-11-27"), bad
    assert reported(Cost("1", "dollars")) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"currency": "usd"},
        {"per": 0},
        {"units": {"x": "cheap"}},
        {"units": {"x": "-1"}},
        {"units": {"x": 0.1}},
        {"call": "NaN"},
        {},
        {"units": {"x": "1"}, "within": {"x": "y"}},
    ],
)
def test_what_is_no_price_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"price|ISO|units"):
        Price(DAY, **wrong)


def test_a_bound_is_never_below_what_is_paid() -> None:
    dear = tokens(units={**TOKENS, "cached_input_tokens": "3.00"})
    most = dear.most({"input_tokens": 1000, "output_tokens": 10})
    paid = dear.amount({"input_tokens": 1000, "cached_input_tokens": 1000, "output_tokens": 10})
    assert most is not None
    assert paid is not None
    assert most >= paid
    assert dear.most({"input_tokens": 1000}) is None


def test_amounts_survive_the_database() -> None:
    for text in ("0", "0.0000000001", "12.5", "900000000"):
        amount = amount_from(text)
        assert amount is not None
        assert written(from_steps(steps(amount))) == text


# The operator's file

FREE = {"since": "2026-01-01", "call": "0"}


def file(folder: Path, said: Any) -> Path:
    path = folder / "prices.json"
    path.write_text(said if isinstance(said, str) else json.dumps(said))
    return path


def test_numbers_of_the_file_are_read_as_they_are_written(tmp_path: Path) -> None:
    path = file(
        tmp_path,
        '{"prices": [{"since": "2026-11-05", "task": "a.*", "per": 1000, "units": {"x": 0.15}}]}',
    )
    (price,) = read_prices(path)
    assert price.units == {"x": Decimal("0.15")}
    assert (price.since, price.task, price.per) == (date(2026, 11, 5), "a.*", 1000)


@pytest.mark.parametrize(
    ("said", "because"),
    [
        ("{", "cannot be read"),
        ([], "prices"),
        ({"prices": [{"call": "1"}]}, "entry 1: .*since"),
        ({"prices": [{"since": "soon", "call": "1"}]}, "entry 1: since is a day"),
        ({"prices": [{"since": 20260101, "call": "1"}]}, "entry 1: since is a day"),
        ({"prices": [FREE, {**FREE, "cal": "1"}]}, "entry 2.*cal"),
        ({"prices": [{"since": "2026-01-01"}]}, "entry 1: .*units or call"),
        ({"prices": [{"since": "2026-01-01", "per": 1.5}]}, "entry 1: per"),
        ({"prices": [{"since": "2026-01-01", "model": 4}]}, "entry 1: model"),
        ({"prices": [{"since": "2026-01-01", "units": [1]}]}, "entry 1: units"),
        ({"prices": [{"since": "2026-01-01", "units": {"x": "?"}}]}, "entry 1: x"),
    ],
)
def test_a_faulty_file_stops_the_start_and_says_where(
    tmp_path: Path, said: Any, because: str
) -> None:
    settings = Settings(data_dir=tmp_path, prices=file(tmp_path, said))
    with pytest.raises(SettingsError, match=because):
        AgentFlow().assemble(settings, Catalogue([]))


# OpenAI


def test_openais_own_prices_are_for_openai_alone() -> None:
    assert openai_prices(OpenAISettings(api_key="x"))  # type: ignore[arg-type]
    assert not openai_prices(OpenAISettings(api_key="x", base_url="https://other/v1"))  # type: ignore[arg-type]


def test_a_dated_snapshot_costs_what_its_model_costs_and_a_voice_does_not() -> None:
    prices = Prices(openai_prices(OpenAISettings(api_key="x")))  # type: ignore[arg-type]
    for name in ("gpt-4o-mini", "gpt-4o-mini-2024-07-18"):
        found = prices.find("openai.chat", [name], DAY)
        assert found is not None
        assert found.units["output_tokens"] == Decimal("0.60")
    assert prices.find("openai.speech", ["gpt-4o-mini-tts"], DAY) is None


def test_another_tier_is_billed_under_another_name() -> None:
    assert billed_as({"model": "m"}, Result(output={"model": "m-2026"})) == ["m-2026", "m"]
    assert billed_as({"model": "m", "options": {"service_tier": "flex"}}, None) == ["m (flex)"]
    assert billed_as({"model": "m", "options": {"service_tier": "auto"}}, None) == ["m"]
    batch = Result(output={"model": "m", "counts": {"total": 1}})
    assert billed_as({"items": []}, batch) == ["m (batch)"]
    assert billed_as({"model": "m", "hosted_tools": [{}]}, None) == ["m (hosted tools)"]


def test_the_most_a_request_uses_is_known_only_with_a_limit() -> None:
    said = {"model": "m", "messages": [{"role": "user", "content": "äöü" * 100}]}
    assert most_of_request(said) is None
    limited = {**said, "max_output_tokens": 50}
    most = most_of_request(limited)
    assert most is not None
    assert most["output_tokens"] == 50
    assert most["input_tokens"] >= 600
    assert most_of_request({**limited, "options": {"previous_response_id": "r"}}) is None
    picture = [{"role": "user", "content": [{"type": "image", "url": "https://x"}]}]
    assert most_of_request({**limited, "messages": picture}) is None
    assert most_of_texts({"input": ["ab", "c"]})["input_tokens"] >= 3
