"""What plugins and operators declare, and what follows for one call."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from agentflow import AgentFlow, Limit, Provider, Settings, SettingsError
from agentflow.core.limits import Demand, demand, depth, parsed
from agentflow.errors import PluginError, UsageError
from agentflow.plugins.catalogue import Catalogue, fingerprint
from agentflow.plugins.limiting import Limits
from agentflow.worker.outcomes import redacted


class Keys(BaseModel):
    api_key: SecretStr = SecretStr("sk-first-key, sk-second-key")
    region: str = "eu"


def acme(limits: Any = (), of_task: Any = (), keys: str | None = "api_key") -> Provider:
    provider = Provider("acme", settings=Keys, keys=keys, limits=limits)

    @provider.task("draw", limits=of_task)
    async def draw(call: Any, input: Any) -> Any: ...

    return provider


def limits_of(*given: Any, **declared: Any) -> Limits:
    return Limits(Catalogue([], [acme(**declared)]), *given)


def names(demand: Demand) -> list[list[str]]:
    return [[bound.name for bound in option.bounds] for option in demand.options]


FIRST, SECOND = (fingerprint("acme", key) for key in ("sk-first-key", "sk-second-key"))


# -- declaring -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", [{}, {"concurrent": 0}, {"rate": "5/second", "of": "gpt"}], ids=str
)
def test_a_limit_that_says_nothing_or_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Limit(**wrong)


def test_a_rate_is_amounts_and_seconds() -> None:
    assert parsed("50/second;2000/minute") == ((50, 1.0), (2000, 60.0))
    assert parsed("10 per 2 hour") == ((10, 7200.0),)
    for wrong in ("", "many", "0/second"):
        with pytest.raises(ValueError):
            parsed(wrong)


def test_a_plugin_with_a_rate_that_is_none_is_left_out() -> None:
    broken = acme(of_task=Limit(rate="often"))
    with pytest.raises(PluginError, match=r"acme.draw.*often"):
        Catalogue([]).add(broken)


def test_keys_in_no_setting_or_in_one_that_is_no_secret_are_refused() -> None:
    with pytest.raises(PluginError, match="token"):
        acme(keys="token")
    with pytest.raises(PluginError, match="no secret"):
        Catalogue([], []).add(acme(keys="region"))


# -- one call's demand -----------------------------------------------------------------------------


def test_each_key_is_an_option_with_bounds_of_its_own() -> None:
    limits = limits_of(limits=Limit(concurrent=3), of_task=Limit(rate="5/second"))
    made = limits.for_call("acme.draw", {})
    assert [option.account for option in made.options] == [FIRST, SECOND]
    assert names(made)[0] == [f"acme/{FIRST}/0/", f"acme.draw/{FIRST}/0/"]
    assert not set(names(made)[0]) & set(names(made)[1])


def test_a_limit_across_keys_is_one_for_all_of_them() -> None:
    made = limits_of(limits=Limit(concurrent=3, across_keys=True)).for_call("acme.draw", {})
    assert names(made) == [["acme/*/0/"]] * 2


def test_each_model_has_a_limit_by_model_to_itself() -> None:
    limits = limits_of(keys=None, limits=Limit(by="model", concurrent=1))
    one, same, other = (
        limits.for_call("acme.draw", {"model": model}) for model in ("a/b", "a/b", "c")
    )
    assert names(one) == names(same) != names(other)
    assert one is same, "kept"
    assert one.name != other.name, "they do not wait for each other"
    assert limits.for_call("acme.draw", ["no model"]).limited


def test_a_limit_of_one_model_leaves_the_others_alone() -> None:
    limits = limits_of(keys=None, limits=Limit(by=lambda input: input["m"], of="big", concurrent=1))
    assert limits.for_call("acme.draw", {"m": "big"}).limited
    assert not limits.for_call("acme.draw", {"m": "small"}).limited
    assert not limits.for_call("acme.draw", {}).limited, "the function raised"


def test_a_pause_is_of_the_model_where_there_is_one() -> None:
    limits = limits_of(keys=None, limits=Limit(by="model"))
    assert not limits.for_call("acme.draw", {"model": "a"}).limited
    (option,) = limits.for_call("acme.draw", {"model": "a"}).options
    assert option.pauses == ("acme/-", "acme/-/a")
    (option,) = limits.for_call("acme.draw", {}).options
    assert option.pauses == ("acme/-",)


@pytest.mark.parametrize("strange", ["a b", "x" * 200, "{}|*", "a\n", "ü", "\ud800"], ids=ascii)
def test_what_a_client_calls_a_model_becomes_a_short_plain_word(strange: str) -> None:
    made = limits_of(keys=None, limits=Limit(by="model", concurrent=1)).for_call(
        "acme.draw", {"model": strange}
    )
    assert names(made)[0][0].startswith("acme/-/0/#")
    assert len(made.name) < 80
    assert made.name.isascii()


def test_the_name_of_a_limit_for_metrics_holds_no_key_and_no_model() -> None:
    limits = limits_of(limits=[Limit(by="model", concurrent=1), Limit(rate="9/second")])
    made = limits.for_call("acme.draw", {"model": "gpt"})
    assert {b.label for o in made.options for b in o.bounds} == {"acme/model", "acme"}
    assert limits.labels() == ["acme", "acme/model"]


# -- overriding ------------------------------------------------------------------------------------


def test_what_is_given_takes_the_place_of_what_is_declared() -> None:
    application = {"acme": Limit(concurrent=5), "acme.draw": Limit(concurrent=2)}
    operator = {"acme": {"rate": "7/second", "across_keys": True}, "acme.draw": None}
    limits = limits_of(application, operator, limits=Limit(concurrent=100))
    assert limits.of("acme") == (Limit(rate="7/second", across_keys=True),)
    assert limits.of("acme.draw") == ()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"acne": {"concurrent": 1}}, "acne"),
        ({"acme": {"concurrency": 1}}, "concurrency"),
        ({"acme": {"concurrent": "3"}}, "concurrent is no '3'"),
        ({"acme": {"concurrent": True}}, "concurrent"),
        ({"acme": {"rate": "often"}}, "often"),
        ({"acme": {}}, "rate, concurrent or by"),
        ({"acme": 5}, "a limit or a list"),
        ({"acme": [5]}, "5 is no limit"),
    ],
    ids=str,
)
def test_an_operator_is_told_what_is_wrong(given: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        limits_of(given)


def test_the_setting_is_checked_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTFLOW_LIMITS", '{"acme": {"rate": "often"}}')
    settings, app = Settings(), AgentFlow(plugins=[], providers=[])
    with pytest.raises(SettingsError, match=r"AGENTFLOW_LIMITS.*often"):
        app.assemble(settings, Catalogue([], [acme()]))


def test_a_provider_whose_plugin_is_left_out_may_have_limits() -> None:
    catalogue = Catalogue([])
    catalogue.problems["acme"] = "it cannot be imported"
    Limits(catalogue, {"acme": Limit(concurrent=1)})


# -- keys ------------------------------------------------------------------------------------------


def test_settings_carry_the_one_key_a_call_is_made_with() -> None:
    ready = Catalogue([], [acme()]).provider("acme")
    keys = [ready.settings_of(account).api_key.get_secret_value() for account in (FIRST, SECOND)]
    assert keys == ["sk-first-key", "sk-second-key"]
    assert ready.settings_of(SECOND).region == "eu"


def test_work_of_a_key_that_is_gone_is_asked_after_with_the_first() -> None:
    ready = Catalogue([], [acme()]).provider("acme")
    for account in ("gone", None):
        assert ready.settings_of(account).api_key.get_secret_value() == "sk-first-key"


def test_a_fingerprint_does_not_show_the_key() -> None:
    assert len(FIRST) == 12
    assert "first" not in FIRST
    assert fingerprint("other", "sk-first-key") != FIRST


def test_none_of_several_keys_leaves_in_a_message() -> None:
    said = redacted("with sk-second-key and sk-first-key", Keys())
    assert "sk-" not in said


# -- how much lies in the broker -------------------------------------------------------------------


def test_of_a_limited_provider_only_some_seconds_of_work_lie_in_the_broker() -> None:
    assert depth([], 1, 1000) == 1000
    assert depth([Limit(rate="50/second")], 1, 1000) == 208
    assert depth([Limit(rate="50/second")], 2, 1000) == 408
    assert depth([Limit(rate="6/minute", across_keys=True)], 9, 1000) == 8
    assert depth([Limit(rate="9/second"), Limit(concurrent=2)], 1, 1000) == 28
    assert depth([Limit(concurrent=10_000)], 1, 1000) == 1000


def test_a_demand_without_keys_has_one_option() -> None:
    made = demand("acme", [("acme", ()), ("acme.draw", ())], [], [])
    assert [(o.account, o.bounds) for o in made.options] == [(None, ())]
    assert made.name == "acme"
