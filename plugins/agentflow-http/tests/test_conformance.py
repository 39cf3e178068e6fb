"""The plugin against the suite: `http` itself, and services that are declared, each as a provider
of its own that the settings make."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from agentflow_http import Service, agentflow_providers, http_provider, service_provider
from agentflow_http.simulator import QueueSimulator, ShopSimulator, SpeechSimulator
from agentflow_http.simulator.declared import DeclaredSimulator

from agentflow import Provider
from agentflow.testing import HERE, Ends, Order, PluginConformance

KEY = "a-key-of-the-conformance-suite"
UNSAFE: tuple[dict[str, Any], ...] = (
    {"path": "/../admin"},
    {"path": "/a%2fb"},
    {"path": "/a", "method": "PATCH"},
    {"path": "/a", "headers": {"authorization": "x"}},
)


def example(sim: DeclaredSimulator) -> Provider:
    """The provider as it is where none of its secrets is known."""
    sim.url = HERE
    declared = json.loads(sim.env()["AGENTFLOW_HTTP_SERVICES"])[sim.name]
    return service_provider(sim.name, Service.model_validate(declared))


class Declared(PluginConformance):
    """Not collected by itself."""

    __test__ = False

    def provided(self) -> Provider:
        made = {each.name: each for each in agentflow_providers()}
        return made.get(self.provider.name, self.provider)

    def secrets(self, sim: Any) -> dict[str, str]:
        return dict(sim.secrets())


class TestHttp(Declared):
    __test__ = True
    provider = http_provider({})
    simulator = staticmethod(lambda: ShopSimulator(key=KEY))
    orders = (
        Order(
            "get",
            {"url": f"{HERE}/orders/ada", "auth": "shop", "output": "/orders"},
            result={"output": []},
            ends=(
                Ends({"url": f"{HERE}/orders/ada"}, error="authentication"),
                Ends({"url": "http://127.0.0.1:1/"}, error="permission"),
                Ends({"url": f"{HERE}/answer/png"}, "succeeded", result={"artifacts": [{}]}),
                Ends({"url": f"{HERE}/answer/latin"}, "succeeded", result={"text": "Grüße"}),
            ),
            refused=(
                {"url": "ftp://example.com"},
                {"url": "http://u:p@example.com"},
                {"url": HERE, "method": "POST"},
                {"url": HERE, "headers": {"Authorization": "x"}},
            ),
        ),
        Order(
            "request",
            {"url": f"{HERE}/orders/ada", "auth": "shop", "json": {"item": "hen"}},
            result={"output": {"order": {"item": "hen", "customer": "ada"}}},
            ends=(
                Ends({"url": f"{HERE}/answer/422", "auth": "shop"}, error="invalid_input"),
                Ends({"url": f"{HERE}/answer/504", "auth": "shop"}, error="outcome_unknown"),
                Ends({"url": f"{HERE}/x", "auth": "shop", "method": "PATCH"}, error="permission"),
            ),
            refused=({"url": HERE, "json": 1, "text": "x"}, {"url": HERE, "method": "TRACE"}),
        ),
    )


class TestShop(Declared):
    """Answers at once."""

    __test__ = True
    provider = example(ShopSimulator(key=KEY))
    simulator = staticmethod(lambda: ShopSimulator(key=KEY))
    orders = (
        Order("get", {"path": "/orders/ada"}, result={"output": {"orders": []}}, refused=UNSAFE),
        Order(
            "request",
            {"path": "/orders/ada", "json": {"item": "hen"}},
            result={"output": {"order": {"item": "hen"}}},
            refused=UNSAFE,
        ),
        Order(
            "order",
            {"customer": "a/b", "item": "hen"},
            result={"output": {"item": "hen", "amount": 1, "customer": "a/b"}},
            refused=({"item": "hen"}, {"customer": "..", "item": "hen"}),
        ),
    )


class TestSpeech(Declared):
    """A thin webhook that shows a secret."""

    __test__ = True
    provider = example(SpeechSimulator(key=KEY))
    simulator = staticmethod(lambda: SpeechSimulator(key=KEY))
    webhook_setting = "SPEECH_WEBHOOK_SECRET"
    tolerance = None
    signs_body = False
    sound: ClassVar[dict[str, Any]] = {"audio_url": "https://files.example.com/a.mp3"}
    orders = (
        Order("get", {"path": "/v2/transcript"}, result={"output": {"transcripts": []}}),
        Order(
            "request",
            {"path": "/v2/transcript", "json": sound},
            result={"output": {"status": "queued"}},
            refused=({"path": "/v1/other", "json": sound},),
        ),
        Order(
            "transcribe",
            sound,
            later=True,
            result={"output": {"text": "well, hello"}},
            slow={**sound, "script": {"seconds": 20}},
            ends=(Ends({**sound, "script": {"ends": "error"}}, error="provider_error"),),
        ),
    )


class TestQueue(Declared):
    """A whole webhook, signed with a key of a JWKS."""

    __test__ = True
    provider = example(QueueSimulator(key=KEY))
    simulator = staticmethod(lambda: QueueSimulator(key=KEY))
    drawing: ClassVar[dict[str, Any]] = {
        "output": {"seed": 7},
        "artifacts": [{"media_type": "image/png", "status": "stored"}],
    }
    orders = (
        Order("get", {"path": "/models"}, result={"output": {"models": [str]}}),
        Order(
            "request",
            {"path": "/acme/draw", "json": {"prompt": "a hen"}},
            result={"output": {"status": "IN_QUEUE"}},
        ),
        Order(
            "draw",
            {"prompt": "a hen"},
            later=True,
            result=drawing,
            slow={"prompt": "a hen", "script": {"seconds": 20}},
            ends=(
                Ends({"prompt": "odd", "script": {"ends": "ERROR"}}, error="provider_error"),
                Ends({"prompt": "big", "script": {"thin": True}}, "succeeded", result=drawing),
            ),
        ),
    )
