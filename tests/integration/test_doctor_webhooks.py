"""`agentflow doctor --set-up` and `--test`: webhooks are made, keys stored, samples seen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from agentflow_openai import simulator as openai_simulator
from agentflow_openai.simulator import OpenAISimulator
from agentflow_replicate import simulator as replicate_simulator
from agentflow_sendgrid import simulator as sendgrid_simulator
from support.cli import Ran, agentflow
from support.openai import HELLO, World
from support.servers import free_port
from support.serving import http_server

from agentflow import AgentFlow, Settings
from agentflow.app import standalone
from agentflow.cli.env_file import EnvFile
from agentflow.webhooks.signatures import new_secret

KEY = "sk-a-very-secret-key"


class Shop:
    """A simulated OpenAI, and where agentflow is or shall be."""

    def __init__(self, sim: OpenAISimulator, tmp: Path) -> None:
        self.sim, self.tmp, self.port = sim, tmp, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.env = openai_simulator.env(sim) | {
            "OPENAI_WEBHOOK_SECRET": "",
            "AGENTFLOW_PUBLIC_URL": self.url,
            "AGENTFLOW_PORT": str(self.port),
        }
        self.file = tmp / "keys.env"

    async def doctor(self, *args: str, **env: str) -> Ran:
        return await asyncio.to_thread(
            agentflow, "doctor", *args, "--json", env=self.env | env, cwd=self.tmp
        )

    @property
    def stored(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.file.read_text().splitlines() if line)

    @asynccontextmanager
    async def server(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
        """agentflow, with the variables that were stored."""
        for name, value in (self.env | self.stored).items():
            if name.startswith("OPENAI_"):
                monkeypatch.setenv(name, value)
        app = AgentFlow()
        app._settings = Settings(data_dir=self.tmp / "data", port=self.port, public_url=self.url)
        async with http_server(standalone(app), self.port):
            yield


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    async with openai_simulator.simulator(new_secret(), KEY).serve() as sim:
        yield Shop(sim, tmp_path)


async def test_an_endpoint_is_made_and_its_secret_stored_where_told(shop: Shop) -> None:
    shop.file.write_text("# mine\nOPENAI_WEBHOOK_SECRET=whsec_old\nexport OTHER=1\n")
    shop.file.chmod(0o644)
    ran = await shop.doctor("--set-up", "openai", "--store", "keys.env")
    assert ran.code == 0, ran.out + ran.err
    (endpoint,) = shop.sim.endpoints.all.values()
    assert endpoint.url == f"{shop.url}/webhooks/openai"
    assert {"response.completed", "batch.expired"} <= set(endpoint.event_types)
    secret = endpoint.secrets[0]
    text = f"# mine\nOPENAI_WEBHOOK_SECRET={secret}\nexport OTHER=1\n"
    assert shop.file.read_text() == text
    assert shop.file.stat().st_mode & 0o777 == 0o600
    assert secret not in ran.out + ran.err
    assert KEY not in ran.out + ran.err


async def test_a_sample_is_sent_and_seen_to_arrive(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shop.doctor("--set-up", "openai", "--store", "keys.env")
    async with shop.server(monkeypatch):
        ran = await shop.doctor("--test", "openai")
        (found,) = ran.json["items"]
        assert (ran.code, found["state"]) == (0, "ok")
        assert "it arrived" in found["said"]
        shop.sim.faults.update(wrong_signature=1)
        ran = await shop.doctor("--test", "openai")
    (found,) = ran.json["items"]
    assert (ran.code, found["state"]) == (1, "fail")
    assert "401: the key there is another" in found["said"]


async def test_a_sample_to_a_server_that_is_not_there_says_so(shop: Shop) -> None:
    await shop.doctor("--set-up", "openai", "--store", "keys.env")
    ran = await shop.doctor("--test", "openai")
    assert ran.code == 1
    assert "No answer" in ran.json["items"][0]["said"]


async def test_to_set_up_twice_makes_one_endpoint_and_adds_what_it_lacks(shop: Shop) -> None:
    await shop.doctor("--set-up", "openai", "--store", "keys.env")
    (endpoint,) = shop.sim.endpoints.all.values()
    endpoint.event_types = ["response.completed", "eval.run.failed"]
    again = await shop.doctor("--set-up", "openai", "--store", "keys.env", **shop.stored)
    assert again.code == 0, again.out
    assert len(shop.sim.endpoints.all) == 1
    assert {"batch.completed", "eval.run.failed"} <= set(endpoint.event_types)
    lost = await shop.doctor("--set-up", "openai", "--store", "keys.env")
    assert lost.code == 1, "the secret is in no variable, and is shown no more"
    assert "--rotate" in lost.out


async def test_a_rotation_keeps_the_old_secret_beside_the_new(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shop.doctor("--set-up", "openai", "--store", "keys.env")
    old = shop.stored["OPENAI_WEBHOOK_SECRET"]
    async with shop.server(monkeypatch):  # it goes on with the old one
        args = ("--set-up", "openai", "--rotate", "--store", "keys.env", "--test", "openai")
        ran = await shop.doctor(*args, **shop.stored)
    assert ran.code == 0, ran.out
    (endpoint,) = shop.sim.endpoints.all.values()
    assert endpoint.secrets[1] == old
    assert shop.stored["OPENAI_WEBHOOK_SECRET"] == f"{endpoint.secrets[0]},{old}"


async def test_a_key_is_shown_only_where_asked(shop: Shop) -> None:
    ran = await shop.doctor("--set-up", "openai", "--show-key")
    (endpoint,) = shop.sim.endpoints.all.values()
    assert ran.err.strip() == f"OPENAI_WEBHOOK_SECRET={endpoint.secrets[0]}"
    assert not shop.file.exists()


@pytest.mark.parametrize(
    ("args", "env", "said"),
    [
        (("--set-up", "openai"), {}, "--store .env or --show-key"),
        (("--set-up", "openai", "--store", "."), {}, "is no file"),
        (("--set-up", "openai", "--store", "no/where"), {}, "cannot be written"),
        (("--set-up", "acme", "--show-key"), {}, "There is no provider 'acme'"),
        (("--test", "replicate"), {}, "cannot have a sample sent"),
        (("--set-up", "openai", "--show-key"), {"AGENTFLOW_PUBLIC_URL": ""}, "where shall"),
    ],
)
async def test_what_cannot_be_is_said_before_anything_is_made(
    shop: Shop, args: tuple[str, ...], env: dict[str, str], said: str
) -> None:
    ran = await shop.doctor(*args, **env)
    assert ran.code == 2, ran.out + ran.err
    assert said in ran.err
    assert shop.sim.endpoints.all == {}


async def test_a_refusal_is_a_sentence_without_the_key(shop: Shop) -> None:
    shop.sim.key = "sk-another"
    ran = await shop.doctor("--set-up", "openai", "--show-key")
    assert ran.code == 1
    assert "OpenAI answered 401" in ran.json["items"][0]["said"]
    assert KEY not in ran.out + ran.err


async def test_the_endpoint_made_is_the_one_that_tells_of_the_end(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shop.doctor("--set-up", "openai", "--store", "keys.env")
    async with shop.server(monkeypatch):
        async with httpx.AsyncClient() as http:
            asked = {"task": "openai.respond", "input": {**HELLO, "background": True}}
            made = await http.post(f"{shop.url}/v1/jobs", json=asked)
            id = made.json()["id"]
        job = await World(None, shop.sim, shop.url, []).end_of(id)  # type: ignore[arg-type]
    assert job["status"] == "succeeded"
    assert shop.sim.stats.counts["webhooks_delivered"] == 1


async def test_replicate_s_secret_is_fetched(tmp_path: Path) -> None:
    async with replicate_simulator.simulator(new_secret(), "r8_test").serve() as sim:
        env = replicate_simulator.env(sim) | {"AGENTFLOW_PUBLIC_URL": "http://127.0.0.1:9"}
        env["REPLICATE_WEBHOOK_SECRET"] = ""
        args = ("doctor", "--set-up", "replicate", "--store", str(tmp_path / "env"))
        ran = await asyncio.to_thread(agentflow, *args, env=env)
        assert ran.code == 0, ran.out + ran.err
        assert (tmp_path / "env").read_text() == f"REPLICATE_WEBHOOK_SECRET={sim.secret}\n"


async def test_sendgrid_s_webhook_is_made_signed_and_tried(tmp_path: Path) -> None:
    async with sendgrid_simulator.simulator("SG.key").serve() as sim:
        env = sendgrid_simulator.env(sim) | {"AGENTFLOW_PUBLIC_URL": "http://127.0.0.1:9"}
        env["SENDGRID_WEBHOOK_PUBLIC_KEY"] = ""
        args = ("doctor", "--set-up", "sendgrid", "--store", str(tmp_path / "env"))
        for _ in range(2):
            ran = await asyncio.to_thread(agentflow, *args, env=env)
            assert ran.code == 0, ran.out + ran.err
        (made,) = sim.webhooks.all.values()
        assert made["enabled"] is made["delivered"] is made["spam_report"] is True
        key = f"SENDGRID_WEBHOOK_PUBLIC_KEY={sim.public_key}\n"
        assert (tmp_path / "env").read_text() == key
        ran = await asyncio.to_thread(agentflow, "doctor", "--test", "sendgrid", env=env)
        assert "the server cannot be asked" in " ".join(ran.out.split())


def test_a_value_that_needs_quotes_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="quoting"):
        EnvFile(tmp_path / "env").set("A", "b\nC=d")
    assert not (tmp_path / "env").exists()


def test_a_link_is_followed_and_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("A=1")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    EnvFile(tmp_path / "link").set("B", "2")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "A=1\nB=2\n"
