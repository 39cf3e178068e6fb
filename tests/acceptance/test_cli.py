"""The commands against a running `agentflow dev --simulate`."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from support.cli import Dev, agentflow, dev
from support.servers import free_port

ORDER = '{"model": "acme/painter", "input": {"prompt": "a fox", "simulate": {"seconds": 0.2}}}'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    with dev(tmp_path_factory.mktemp("cli"), "--simulate") as running:
        yield running


def test_submit_waits_and_shows_the_files(server: Dev) -> None:
    ran = server("submit", "replicate.predict", ORDER)
    assert ran.code == 0
    assert "succeeded" in ran.out
    assert f"out-0.png  stored  {server.url}/v1/artifacts/art_" in ran.out
    assert "\x1b" not in ran.out + ran.err


def test_submit_reads_its_input_from_a_file_or_a_pipe(server: Dev, tmp_path) -> None:
    file = tmp_path / "order.json"
    file.write_text(ORDER)
    assert server("submit", "replicate.predict", f"@{file}", "--json").json["status"] == "succeeded"
    piped = server("submit", "replicate.predict", "-", "--json", input=ORDER)
    assert piped.json["result"]["artifacts"][0]["status"] == "stored"


def test_a_failed_job_exits_with_1(server: Dev) -> None:
    ran = server.submit("--json", seconds=0.1, outcome="failed", error="NSFW content")
    assert ran.code == 1
    assert ran.json["error"]["kind"] == "content_rejected"


def test_waiting_too_long_exits_with_4_and_the_job_goes_on(server: Dev) -> None:
    ran = server.submit("--timeout", "0.5", "--json", seconds=60)
    assert ran.code == 4
    assert f"agentflow jobs wait {ran.json['id']}" in ran.err
    canceled = server("jobs", "cancel", ran.json["id"])
    assert canceled.code == 0
    assert server("jobs", "wait", ran.json["id"], "--timeout", "10").code == 1
    again = server("jobs", "cancel", ran.json["id"])
    assert (again.code, again.err) == (1, f"{ran.json['id']} is canceled already\n")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["submit", "replicate.predict", '{"mo'], "The input is no JSON"),
        (["submit", "replicate.predict", "@nowhere.json"], "The input cannot be read"),
        (["submit", "replicate.predict", '{"model": "a/b"}'], "input.input: Field required"),
        (["submit", "acme.upscale", "{}"], "There is no task 'acme.upscale'"),
        (["submit", "replicate.predict", ORDER, "--entity", "x"], "entity: type:id"),
        (["jobs", "--status", "odd"], "status: Input should be"),
        (["jobs", "--since", "yesterday"], "--since yesterday"),
        (["jobs", "--url", "nowhere"], "'nowhere' is no address"),
        (["frobnicate"], "No such command"),
    ],
)
def test_wrong_use_exits_with_2_and_says_what_is_wrong(
    server: Dev, args: list[str], said: str
) -> None:
    ran = server(*args)
    assert ran.code == 2
    assert said in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("command", [["jobs"], ["submit", "replicate.predict", ORDER]])
def test_no_server_exits_with_3_and_says_how_to_start_one(command: list[str]) -> None:
    ran = agentflow(*command, "--url", "http://127.0.0.1:9")
    assert ran.code == 3
    assert "agentflow dev" in ran.err


def test_what_is_not_there_exits_with_1(server: Dev) -> None:
    for args in (
        ["jobs", "show", "job_0"],
        ["deliveries", "replay", "dlv_0"],
        ["handlers", "retry", "run_0"],
    ):
        ran = server(*args)
        assert (ran.code, ran.err.splitlines()[0]) == (1, "Not found"), args


def test_a_key_used_again_gives_the_same_job(server: Dev) -> None:
    args = ("submit", "replicate.predict", ORDER, "--key", "once", "--no-wait")
    assert server(*args).out == server(*args).out
    other = server("submit", "replicate.predict", ORDER, "--key", "once", "--priority", "1")
    assert (other.code, other.err.splitlines()[0]) == (1, "Conflict")


def test_jobs_are_listed_by_what_they_are(server: Dev) -> None:
    options = ("--entity", "shot:7", "--tag", "night", "--metadata", '{"by": "me"}')
    made = server("submit", "replicate.predict", ORDER, *options, "--json").json
    for wanted in (["--entity", "shot:7"], ["--tag", "night"]):
        found = server("jobs", *wanted, "--status", "succeeded", "--json").json
        assert [job["id"] for job in found["items"]] == [made["id"]]
    assert server("jobs", "show", made["id"], "--json").json["metadata"] == {"by": "me"}
    assert server("jobs", "--entity", "shot:8", "--json").json == {"items": []}
    header, line = server("jobs", "--tag", "night").out.splitlines()
    assert header.split() == ["id", "status", "age", "task", "entity"]
    assert line.split()[:2] == [made["id"], "succeeded"]


def test_history_is_followed_to_the_end(server: Dev) -> None:
    id = server.submit("--no-wait", seconds=1.0).out.strip()
    ran = server("jobs", "events", id, "--follow", "--json")
    entries = [json.loads(line) for line in ran.out.splitlines()]
    assert [entry["seq"] for entry in entries] == list(range(len(entries)))
    assert entries[-1]["status"] == "succeeded"
    assert server("jobs", "events", id).out.splitlines()[1].split()[2:4] == ["submitted", "api"]


def test_a_job_retried_is_another_one(server: Dev) -> None:
    id = server.submit("--no-wait", seconds=60).out.strip()
    early = server("jobs", "retry", id)
    assert (early.code, early.err.splitlines()[0]) == (1, "Conflict")
    server("jobs", "cancel", id)
    again = server("jobs", "retry", id, "--json").json
    assert again["retry_of"] == id


def test_deliveries_are_listed_shown_and_read_again(server: Dev) -> None:
    job = server("submit", "replicate.predict", ORDER, "--json").json
    listed = server("deliveries", "--provider", "replicate", "--json").json["items"]
    mine = [d for d in listed if d["job_id"] == job["id"]]
    assert {d["status"] for d in mine} == {"applied"}
    shown = server("deliveries", "show", mine[0]["id"], "--json").json
    assert json.loads(shown["body"])["id"] == job["external_id"]
    assert server("deliveries", "--status", "applied", "-n", "1").out.count("dlv_") == 1
    ran = server("deliveries", "replay", mine[0]["id"])
    assert (ran.code, ran.out.split(":")[0]) == (0, f"{mine[0]['id']} was read again")
    assert server("jobs", "show", job["id"], "--json").json["status"] == "succeeded"


def test_doctor_finds_the_server(server: Dev, tmp_path) -> None:
    ran = server("doctor", "--data", str(tmp_path / "data"), "--json")
    found = {each["check"]: each["state"] for each in ran.json["items"]}
    assert ran.code == 0
    assert (found["server"], found["data"], found["public URL"]) == ("ok", "ok", "warn")


def test_doctor_fails_where_something_cannot_work(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    ran = agentflow("doctor", "--offline", "--data", str(tmp_path / "file" / "data"))
    assert ran.code == 1
    assert "cannot be written" in ran.out
    wrong = agentflow("doctor", "--offline", env={"AGENTFLOW_PORT": "many"})
    assert wrong.code == 1
    assert "AGENTFLOW_PORT" in wrong.out


def test_doctor_finds_nothing_wrong_before_the_first_start(tmp_path) -> None:
    """Neither with a server that is still to be started, nor with a plugin nobody uses."""
    env = {
        "AGENTFLOW_PUBLIC_URL": f"http://127.0.0.1:{free_port()}",
        "AGENTFLOW_PORT": str(free_port()),
        "AGENTFLOW_DATA_DIR": str(tmp_path),
    }
    ran = agentflow("doctor", "--json", env=env)
    found = {each["check"]: each["state"] for each in ran.json["items"]}
    assert (ran.code, found["public URL"], found["server"]) == (0, "warn", "warn")
    assert found["replicate webhooks"] == "warn"
    used = agentflow("doctor", "--json", env={**env, "REPLICATE_API_TOKEN": "r8_token"})
    found = {each["check"]: each["state"] for each in used.json["items"]}
    assert (used.code, found["replicate webhooks"]) == (1, "fail")


def test_doctor_misses_a_public_url_that_leads_nowhere(server: Dev, tmp_path) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    data = str(tmp_path / "data")
    ran = server("doctor", "--data", data, "--json", AGENTFLOW_PUBLIC_URL=nowhere)
    found = {each["check"]: each["state"] for each in ran.json["items"]}
    assert (ran.code, found["server"], found["public URL"]) == (1, "ok", "fail")


def test_plugins_are_listed_without_a_server() -> None:
    found = agentflow("plugins", "--json").json["items"]
    mine = next(each for each in found if each["name"] == "replicate")
    assert mine["tasks"] == ["replicate.predict"]
    assert mine["usable"]
    assert mine["problem"].startswith("webhooks: ")


def test_of_several_services_each_is_said_what_is_wrong_with_it(tmp_path) -> None:
    hook = {"scheme": {"kind": "github"}, "id": "/id", "status": "/s", "succeeded": ["done"]}
    services = {
        "good": {"base_url": "https://a.example.com"},
        "wrong": {"base_url": "http://b.example.com"},
        "keyless": {"base_url": "https://c.example.com", "webhook": {**hook, "secret": ""}},
        "weak": {"base_url": "https://d.example.com", "webhook": {**hook, "secret": "short"}},
    }
    env = {
        "AGENTFLOW_HTTP_SERVICES": json.dumps(services),
        "AGENTFLOW_DATA_DIR": str(tmp_path),
        "AGENTFLOW_PORT": str(free_port()),
    }
    found = agentflow("plugins", "--json", env=env).json["items"]
    mine = next(each for each in found if each["name"] == "http")
    assert mine["problem"].split("; ") == [
        "AGENTFLOW_HTTP_SERVICES: wrong: base_url: http is for private services (private = true)",
        "webhooks of keyless: No webhook key is set: copy the signing secret from the provider",
        "webhooks of weak: Webhook key 1 of 1 is not of 16 to 512 bytes",
    ]
    doctor = agentflow("doctor", "--json", "--offline", env=env)
    said = [(each["check"], each["state"]) for each in doctor.json["items"]]
    assert ("plugin http", "fail") in said
    assert [each for each in said if each[0].startswith(("good", "keyless", "weak"))] == [
        ("keyless key", "warn"),
        ("keyless webhooks", "warn"),
        ("weak key", "ok"),
        ("weak webhooks", "warn"),
    ]


def test_the_log_holds_no_input_and_no_secret(server: Dev) -> None:
    order = ORDER.replace("a fox", "a very private fox")
    assert server("submit", "replicate.predict", order).code == 0
    assert "Job succeeded" in server.log
    for secret in ("private fox", "whsec_", "r8_simulated", "Traceback"):
        assert secret not in server.log
