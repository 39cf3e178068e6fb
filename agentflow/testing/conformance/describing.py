"""Checks of what the plugin says about itself. Nothing is called."""

from __future__ import annotations

import inspect
import re
from typing import Any

import orjson
import pytest
from pydantic import SecretStr, ValidationError

from agentflow.core.providers import NAME, takes_input
from agentflow.testing.conformance.order import Order
from agentflow.testing.conformance.subject import Subject

_SECRET = re.compile(r"(key|token|secret|password)s?$")


class Describing(Subject):
    def test_the_provider_says_who_it_is(self) -> None:
        """A name, one line for the catalogue, at least one task."""
        assert NAME.fullmatch(self.provider.name)
        assert self.provider.description, "give Provider(description=...) one line"
        assert "\n" not in self.provider.description, "the description is one line"
        assert self.provider.tasks, "the provider has no task"

    def test_every_task_is_described(self) -> None:
        """By its function's docstring, or by `description=`."""
        silent = [name for name, task in self.provider.tasks.items() if not task.description]
        assert not silent, f"no docstring: {', '.join(silent)}"

    def test_every_task_has_an_order(self) -> None:
        """What the suite does not ask for, it does not check."""
        ordered = {f"{self.provider.name}.{order.task}" for order in self.orders}
        missing = self.provider.tasks.keys() - ordered
        assert not missing, f"orders: there is none for {', '.join(sorted(missing))}"

    def test_every_input_has_a_json_schema(self) -> None:
        """Clients and agents read it at `/v1/tasks`."""
        for name, task in self.provider.tasks.items():
            assert task.input is not None, f"{name}: give it input=, a pydantic model"
            schema = task.schema
            orjson.dumps(schema)
            assert schema.get("type") == "object", f"{name}: the input is no JSON object"
            fields = schema.get("properties") or schema.get("additionalProperties")
            assert fields, f"{name}: the input has no fields, and admits none"

    def test_a_misspelled_input_is_refused(self, order: Order) -> None:
        """A field that is dropped silently costs money for something nobody asked for."""
        task, given = self.task(order), _plain(order.input)
        try:
            read = task.validate({**given, "no_such_field_": 1})
        except ValidationError:
            return
        kept = read.model_dump()
        assert "no_such_field_" in kept, (
            f"{task.name}: unknown fields are dropped; say extra='forbid' in the model_config"
        )

    def test_every_order_fits_its_model(self, order: Order) -> None:
        """The inputs the suite uses are admitted, and those in `refused` are not."""
        task = self.task(order)
        task.validate(_plain(order.input))
        for other in order.ends:
            task.validate(_plain(other.input))
        for bad in order.refused:
            try:
                task.validate(_plain(bad))
            except ValidationError:
                continue
            raise AssertionError(f"{task.name}: the model admits {bad}, which is in refused")

    def test_keys_are_kept_as_secrets(self) -> None:
        """A `SecretStr` is cut out of error messages and never shown."""
        for name, field in _fields(self.provider.settings).items():
            if _SECRET.search(name) and "public" not in name:
                assert SecretStr.__name__ in str(field.annotation), (
                    f"settings: {name} is a secret; annotate it with SecretStr"
                )

    def test_the_settings_show_no_secret(self) -> None:
        sim = self.make()
        with self.settings(sim) as ready:
            shown = f"{ready.settings!r} {ready.settings}"
        leaked = [name for name, value in self.secrets(sim).items() if value in shown]
        assert not leaked, f"repr(settings) shows {', '.join(leaked)}"

    def test_it_loads_without_any_variable_set(self) -> None:
        """A process that only takes webhooks has no use for an API key, and the other way round:
        give every setting a default, and let the call say that the key is missing."""
        with self.bare():
            self.ready()

    def test_work_that_ends_later_can_be_heard_of(self, late: Order) -> None:
        """By webhook, or by `fetch`; else its job ends at the deadline."""
        task = self.task(late)
        assert self.takes_webhooks or task.fetcher, f"{task.name}: give it a fetch"

    def test_the_questions_take_what_they_are_given(self, order: Order) -> None:
        """`fetch(call, external_id)`, `find(call, token, since)`, `cancel(call, external_id)`; each
        of them the job's input as well, if that is how a parameter is called."""
        task = self.task(order)
        for function, given in (
            (task.fetcher, ("call", "external_id")),
            (task.finder, ("call", "token", "since")),
            (task.canceler, ("call", "external_id")),
        ):
            if function is None:
                continue
            more = {"input": "input"} if takes_input(function) else {}
            try:
                inspect.signature(function).bind(*given, **more)
            except TypeError as error:
                said = ", ".join([*given, *more])
                raise AssertionError(f"{task.name}: {error}: a function is given {said}") from None

    def test_the_policy_leaves_time_to_end(self, order: Order) -> None:
        task = self.task(order)
        policy = task.policy
        assert policy.deadline > policy.timeout, f"{task.name}: deadline is within timeout"
        assert policy.poll_after <= policy.poll_max, f"{task.name}: poll_after is above poll_max"

    def test_webhooks_have_a_scheme_and_a_parser(self) -> None:
        self.needs_webhooks()
        assert self.provider.scheme is not None, "webhooks without a signature scheme"
        assert self.provider.parser is not None, "webhooks without @provider.parse"
        with self.settings(self.make()) as ready:
            problem = ready.webhook_problem
        assert problem is None, f"with the simulator's env(), webhooks are refused: {problem}"

    def test_a_setting_for_the_webhook_keys_is_named(self) -> None:
        """So that the suite can rotate and remove the keys."""
        if self.webhook_setting is None:
            pytest.skip("webhook_setting is not set: the keys are not in the environment")
        assert self.webhook_setting in self.make().env(), "env() lacks webhook_setting"


def _fields(settings: Any) -> dict[str, Any]:
    return dict(settings.model_fields) if settings is not None else {}


def _plain(input: Any) -> Any:
    """The input with an id for every file."""
    match input:
        case bytes():
            return f"art_{'0' * 32}_0"
        case dict():
            return {name: _plain(value) for name, value in input.items()}
        case list():
            return [_plain(value) for value in input]
        case _:
            return input
