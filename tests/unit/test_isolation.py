"""Plugins that do what they must not at the start: each is named with its reason, the rest runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from agentflow.cli.doctor import _plugins
from agentflow.cli.plugins import plugin_view
from agentflow.plugins import patience
from agentflow.plugins.catalogue import Catalogue
from agentflow.plugins.discovery import discover
from agentflow.settings import Settings

HEAD = """
    from pydantic import BaseModel
    from pydantic_settings import BaseSettings
    from agentflow import Policy, Provider, hookimpl

    provider = Provider("{name}")

    @provider.task("work")
    async def work(call, input):
        "Work."

    @hookimpl
    def agentflow_providers():
        return [provider]
"""

BROKEN: dict[str, tuple[str, str]] = {
    "raises": ("raise ValueError('not today')", "ValueError: not today"),
    "exits": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "custom": ("class Odd(BaseException): ...\nraise Odd('x')", "Odd: x"),
    "speechless": (
        "class Odd(Exception):\n    def __str__(self): raise ValueError\nraise Odd",
        "Odd",
    ),
    "syntax": ("def (", "SyntaxError"),
    "absent": ("import no_such_module_at_all", "No module named"),
    "hookless": ("x = 1", "contributes no provider"),
    "hook_raises": (HEAD + "\n    def broken(): raise KeyError('k')\n"
                    "    agentflow_providers = hookimpl(lambda: broken())", "KeyError: 'k'"),
    "hook_async": (HEAD + "\n    @hookimpl\n    async def agentflow_providers(): return [provider]",
                   "is async"),
    "hook_single": (HEAD + "\n    agentflow_providers = hookimpl(lambda: provider)", "no list"),
    "hook_other": (HEAD + "\n    agentflow_providers = hookimpl(lambda: [7])", "gave a int"),
    "twice": (HEAD + "\n    provider.task('work')(work.function)", "no task name, or taken"),
    "named_badly": (HEAD + "\n    provider.task('Big Work')(work.function)", "no task name"),
    "foreign_task": (HEAD + "\n    provider.tasks['other.work'] = work", "use @provider.task"),
    "bad_policy": (HEAD + "\n    work.policy = Policy(timeout=-1)", "timeout is in seconds"),
    "no_policy": (HEAD + "\n    work.policy = {'timeout': 5}", "policy is a dict"),
    "endless_policy": (HEAD + "\n    work.policy = Policy(timeout=float('inf'))", "timeout is inf"),
    "odd_policy": (HEAD + "\n    work.policy = Policy(max_attempts=2.5)", "policy: max_attempts"),
    "no_function": (HEAD + "\n    work.fetcher = 'fetch'", "fetcher is a str"),
    "no_model": (HEAD + "\n    work.input = dict", "input is no pydantic model"),
    "no_schema": (
        HEAD + "\n    from collections.abc import Callable"
        "\n    class Odd(BaseModel):\n        f: Callable[[], int]"
        "\n    work.input = Odd",
        "has no JSON Schema",
    ),
    "async_parse": (HEAD + "\n    @provider.parse\n    async def parse(delivery): return []",
                    "parser is no plain function"),
    "async_translate": (HEAD + "\n    @provider.translate\n    async def translate(error): ...",
                        "translator is no plain function"),
    "needs_settings": (HEAD + "\n    class S(BaseSettings):\n        key_nobody_sets: str"
                       "\n    provider.settings = S", "key_nobody_sets: Field required"),
    "settings_raise": (HEAD + "\n    class S(BaseSettings):\n        def __init__(self): 1 / 0"
                       "\n    provider.settings = S", "ZeroDivisionError"),
    "reserved": (HEAD.replace('"{name}"', '"agentflow"'), "no name for a provider"),
    "odd_webhooks": (HEAD.replace('"{name}"', '"{name}", webhooks="per-request", scheme=1'),
                     "webhooks is 'per-request', not one of per_request, account, none"),
    "prices_raise": (HEAD + "\n    provider.prices = lambda settings: 1 / 0", "ZeroDivisionError"),
    "prices_other": (HEAD + "\n    provider.prices = [{'call': '1'}]", "which is no Price"),
    "hosts_text": (HEAD + "\n    provider.artifact_hosts = '*.acme.com'", "is no list of hosts"),
    "hosts_raise": (HEAD + "\n    provider.artifact_hosts = lambda settings: 1 / 0",
                    "ZeroDivisionError"),
    "limits_other": (HEAD + "\n    provider.limits = ('50/second',)", "'50/second' is no Limit"),
    "limits_odd": (HEAD + "\n    work.limits = 5", "is not iterable"),
    "clashes": (HEAD.replace('"{name}"', '"good"'),
                "provider good is there already, from the plugin good (plugged-good 1.0)"),
}  # fmt: skip


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a distribution with this module into the path, as pip would."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(name: str, source: str, point: str | None = None) -> None:
        code = textwrap.dedent(source.replace("{name}", point or name))
        (tmp_path / f"plugged_{name}.py").write_text(code, encoding="utf-8")
        info = tmp_path / f"plugged_{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: plugged-{name}\nVersion: 1.0")
        (info / "entry_points.txt").write_text(f"[agentflow]\n{point or name} = plugged_{name}\n")

    return install


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_left_out_with_its_reason(
    name: str, install: Callable[[str, str], None]
) -> None:
    source, reason = BROKEN[name]
    install("good", HEAD)
    install(name, source)
    known = Catalogue(discover(["good", name]))
    assert list(known.tasks) == ["good.work"]
    assert list(known.problems) == [name]
    assert reason in known.problems[name]


def test_of_two_plugins_of_one_name_the_second_is_named_with_its_distribution(
    install: Callable[..., None],
) -> None:
    """What the first does is not what is wrong with the second."""
    install("one", HEAD, "acme")
    install("two", HEAD, "acme")
    install("six", "1 / 0", "acme")
    known = Catalogue(discover(["acme"]))
    assert list(known.tasks) == ["acme.work"]
    assert list(known.problems) == ["acme (plugged-six)", "acme (plugged-two)"]
    assert "from the plugin acme (plugged-one 1.0)" in known.problems["acme (plugged-two)"]
    usable = {p.distribution: plugin_view(p, known)["usable"] for p in known.plugins}
    assert usable == {"plugged-one": True, "plugged-six": False, "plugged-two": False}


def test_the_doctor_says_of_each_of_two_plugins_of_one_name_what_is_wrong_with_it(
    install: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    install("one", HEAD, "acme")
    install("six", "1 / 0", "acme")
    known = Catalogue(discover(["acme"]))
    monkeypatch.setattr("agentflow.cli.plugins.installed", lambda _: known)
    found = [each for each in _plugins(Settings()) if each.check == "plugin acme"]
    assert [each.state for each in found] == ["ok", "fail"]
    assert "ZeroDivisionError" in found[1].said


@pytest.mark.parametrize("where", ["import", "hook", "settings"])
def test_a_plugin_that_does_not_come_back_is_left_out(
    where: str, install: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = "import threading; threading.Event().wait(30)"
    source = {
        "import": wait,
        "hook": HEAD + f"\n    @hookimpl\n    def agentflow_providers(): {wait}",
        "settings": HEAD + f"\n    class S(BaseSettings):\n        def __init__(self): {wait}"
        "\n    provider.settings = S",
    }[where]
    install("good", HEAD)
    install("hangs", source)
    monkeypatch.setattr(patience, "LIMIT", 0.5)
    known = Catalogue(discover(["good", "hangs"]))
    assert list(known.tasks) == ["good.work"]
    assert "is still busy after 0.5 s" in known.problems["hangs"]


def test_a_scheme_that_raises_costs_the_webhooks_only(install: Callable[[str, str], None]) -> None:
    install("odd", HEAD.replace('Provider("{name}")', '''Provider("{name}", webhooks="account",
        scheme=type("S", (), {"verifier": lambda self, settings: 1 / 0})())'''))  # fmt: skip
    known = Catalogue(discover(["odd"]))
    assert list(known.tasks) == ["odd.work"]
    assert "ZeroDivisionError" in str(known.provider("odd").webhook_problem)


def test_the_command_lists_all_that_is_broken(
    install: Callable[[str, str], None], tmp_path: Path
) -> None:
    """In a process of its own: neither an exit nor an exception ends it."""
    for name in ("raises", "exits", "hook_async", "bad_policy", "needs_settings"):
        install(name, BROKEN[name][0])
    install("prints", HEAD + "\n    print('hello from a plugin')")
    said = agentflow(tmp_path, "plugins", "--json")
    found = {p["name"]: p for p in json.loads(said)["items"]}
    for name in ("raises", "exits", "hook_async", "bad_policy", "needs_settings"):
        assert BROKEN[name][1] in found[name]["problem"]
        assert not found[name]["usable"]
    assert found["prints"]["usable"]
    assert found["replicate"]["usable"]


def agentflow(site: Path, *words: str) -> str:
    clean = {n: v for n, v in os.environ.items() if not n.startswith("AGENTFLOW_")}
    done = subprocess.run(
        [sys.executable, "-m", "agentflow", *words],
        env={**clean, "PYTHONPATH": str(site)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout
