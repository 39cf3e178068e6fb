"""`agentflow dev` as a process: how it starts, whom it lets in, how it stops."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from support.cli import PATIENCE, PROGRAM, agentflow, clean, dev

APP = """
from agentflow import AgentFlow

app = AgentFlow()
broken = True

@app.task("shop.greet")
def greet(call, input):
    return f"hello {input['name']}"

@app.on("shop.greet", "succeeded")
async def note(event, tx):
    from pathlib import Path
    if not Path("mended").exists():
        raise RuntimeError("not yet")
    Path("noted").write_text(event.result.output)
"""


def test_a_second_process_on_the_same_data_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with dev(tmp_path) as first:
        data = str(tmp_path / "data")
        port = first.url.rpartition(":")[2]
        for args in (["dev", "--port", port], ["migrate"], ["demo"]):
            ran = agentflow(*args, "--data", data)
            assert ran.code == 2, args
            assert f"in use by process {first.process.pid}" in ran.err
            assert "--data" in ran.err
            assert "Traceback" not in ran.err


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ran = agentflow("dev", "--port", port, "--data", str(tmp_path))
    assert ran.code == 2
    assert "--port" in ran.err


@pytest.mark.parametrize(
    ("args", "env", "said"),
    [
        (["--host", "0.0.0.0"], {}, "without API keys"),
        ([], {"AGENTFLOW_LOG_LEVEL": "LOUD"}, "AGENTFLOW_LOG_LEVEL"),
        (["--app", "nowhere:app"], {}, "there is no module 'nowhere'"),
        (["--app", "shop:broken"], {}, "a bool, not an AgentFlow"),
        (["--app", "wrong:app"], {}, "ZeroDivisionError"),
    ],
)
def test_wrong_settings_refuse_to_start(
    tmp_path: Path, args: list[str], env: dict[str, str], said: str
) -> None:
    (tmp_path / "shop.py").write_text(APP)
    (tmp_path / "wrong.py").write_text("1 / 0")
    ran = agentflow("dev", "--port", "0", "--data", "data", *args, env=env, cwd=tmp_path)
    assert ran.code == 2
    assert said in ran.err


def test_sigterm_ends_it_in_order_though_clients_listen(tmp_path: Path) -> None:
    with dev(tmp_path, "--simulate") as running:
        id = running.submit("--no-wait", seconds=60).out.strip()
        watch = [PROGRAM, "jobs", "events", id, "--follow", "--url", running.url]
        with subprocess.Popen(
            watch, env=clean(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as watching:
            assert watching.stdout
            assert b"submitted" in watching.stdout.readline()
            began = time.monotonic()
            assert running.stop(signal.SIGTERM) == 0
            assert time.monotonic() - began < PATIENCE / 2
            watching.kill()
        assert "Traceback" not in running.log
    with dev(tmp_path, "--simulate") as again:
        assert again("jobs", "show", id, "--json").json["status"] in ("waiting", "failed")


def test_every_simulated_provider_works_and_tells_by_webhook(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "hens"}]
    mail = {"to": "a@example.com", "sender": "b@example.com", "subject": "Hi", "text": "Hi"}
    with dev(tmp_path, "--simulate") as running:
        ask = {"model": "m", "messages": said}
        streamed = running("submit", "openai.chat", "--stream", json.dumps({**ask, "stream": True}))
        assert (streamed.code, streamed.out.strip()) == (0, "You said: hens")
        thinking = running("submit", "openai.respond", json.dumps({**ask, "background": True}))
        assert "You said: hens" in thinking.out
        assert "delivered" in running("submit", "sendgrid.send", json.dumps(mail)).out
        told = running("deliveries", "--json").json["items"]
        assert {"openai", "sendgrid"} <= {each["provider"] for each in told}


def test_simulated_providers_can_be_polled_only(tmp_path: Path) -> None:
    ask = {"model": "m", "messages": [{"role": "user", "content": "hens"}], "background": True}
    with dev(tmp_path, "--simulate", AGENTFLOW_PUBLIC_URL="") as running:
        assert "polling only" in running.log
        assert "You said: hens" in running("submit", "openai.respond", json.dumps(ask)).out
        assert running("deliveries", "--json").json["items"] == []


SIMULATED = """
from agentflow.testing.simulator import Json, Simulator
from starlette.routing import Route

class Sim(Simulator):
    def env(self):
        return {"ACME_URL": self.url}

    def routes(self):
        async def said(request):
            return Json({"said": "hello"})
        return [Route("/", said)]

def simulator():
    return Sim()
"""
PLUGIN = """
import os
from agentflow import Provider, hookimpl

provider = Provider("acme")

@provider.task("ask")
async def ask(call, input):
    return (await call.http.get(os.environ["ACME_URL"])).json()

@hookimpl
def agentflow_providers():
    return [provider]
"""


def test_a_strangers_simulator_is_brought_too_and_a_broken_one_left_out(tmp_path: Path) -> None:
    for name, simulator in (("acme", SIMULATED), ("broken", "1 / 0"), ("none", "")):
        package, info = tmp_path / f"their_{name}", tmp_path / f"their_{name}-1.0.dist-info"
        package.mkdir()
        info.mkdir()
        (package / "__init__.py").write_text(PLUGIN.replace("acme", name))
        (package / "simulator.py").write_text(simulator)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: their-{name}\nVersion: 1.0")
        (info / "entry_points.txt").write_text(f"[agentflow]\n{name} = their_{name}\n")
    with dev(tmp_path, "--simulate", PYTHONPATH=str(tmp_path)) as running:
        assert "acme (simulated), broken, http, none, openai (simulated)" in running.log
        assert re.search("Simulator left out.*broken.*ZeroDivisionError", running.log)
        assert "hello" in running("submit", "acme.ask", "{}").out


STAYS = """
import asyncio
from agentflow import AgentFlow

app = AgentFlow()

@app.task("shop.stay")
async def stay(call, input):
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass
"""


def test_it_ends_though_a_function_goes_on_when_it_is_canceled(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(STAYS)
    with dev(tmp_path, "--app", "shop:app", AGENTFLOW_GRACE="0.1") as running:
        id = running("submit", "shop.stay", "null", "--no-wait").out.strip()
        while running("jobs", "show", id, "--json").json["status"] != "running":
            time.sleep(0.1)
        assert running.stop(signal.SIGTERM) == 0
        assert "A function does not end when it is canceled" in running.log
        assert "shop.py:" in running.log


def test_the_application_runs_in_it_and_its_handlers_are_retried(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APP)
    with dev(tmp_path, "--app", "shop:app") as running:
        ran = running("submit", "shop.greet", '{"name": "you"}')
        assert ran.code == 0
        assert "hello you" in ran.out
        [run] = running("handlers", "--status", "parked", "--json").json["items"]
        assert run["error"].endswith("RuntimeError: not yet\n")
        assert "RuntimeError: not yet" in running("handlers").out
        (tmp_path / "mended").touch()
        assert running("handlers", "retry", run["id"]).code == 0
        assert (tmp_path / "noted").read_text() == "hello you"
        assert running("handlers", "--status", "parked").out == ""


def test_only_webhooks_and_health_are_open_to_others_than_this_machine(tmp_path: Path) -> None:
    strangers = [
        {"Host": "abc.ngrok.app"},
        {"Host": "evil.example", "Origin": "http://evil.example"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"X-Forwarded-For": "203.0.113.7"},
        {"X-Forwarded-Host": "abc.ngrok.app"},
        {"Via": "1.1 tunnel"},
    ]
    with dev(tmp_path, "--simulate") as running, httpx.Client(base_url=running.url) as http:
        for headers in strangers:
            for path in ("/v1/jobs", "/openapi.json", "/readyz", "/webhooksx", "/", "//v1/jobs"):
                answer = http.get(path, headers=headers)
                assert answer.status_code == 403, (headers, path)
                assert answer.headers["content-type"] == "application/problem+json"
                assert "API keys" in answer.json()["detail"]
            assert http.post("/v1/jobs", headers=headers, content=b"{}").status_code == 403
            assert http.get("/healthz", headers=headers).status_code == 200
            assert http.post("/webhooks/replicate", headers=headers).status_code == 401
        local = running.url.replace("127.0.0.1", "localhost")
        for headers in ({}, {"Host": "[::1]:80"}, {"Origin": local}):
            assert http.get("/v1/jobs", headers=headers).status_code == 200
        assert httpx.get(f"{local}/v1/jobs").status_code == 200
        assert running.stop(signal.SIGINT) == 0


def test_migrate_says_what_it_applied(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    first = agentflow("migrate", "--data", data, "--json")
    assert (first.code, "agentflow.0001_initial" in first.json["applied"]) == (0, True)
    assert agentflow("migrate", "--data", data).out.endswith("is up to date\n")
