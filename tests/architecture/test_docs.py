"""The documents say what there is, all of it, and what they show works."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
import typer
from agentflow_http import HttpSettings
from agentflow_openai import OpenAISettings
from agentflow_replicate import ReplicateSettings
from agentflow_sendgrid import SendGridSettings

import agentflow
from agentflow import Call, Policy, Provider, Settings
from agentflow.cli.scaffold import contents
from agentflow.core.events import EVENTS
from agentflow.core.job import Phase, Status
from agentflow.core.providers import Delivery
from agentflow.errors import AgentflowError, ErrorKind, ProviderFailure
from agentflow.plugins import hookspecs
from agentflow.testing.conformance.order import Order
from agentflow.testing.conformance.subject import Subject
from agentflow.testing.faults import FAULTS
from agentflow.types import VERSION
from agentflow.web import schemas
from agentflow.web.server import OPERATIONS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted(ROOT.glob("plugins/*/README.md"))]
TEXT = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}

Rows = dict[str, list[str]]


def page(name: str) -> str:
    return TEXT[name]


def rows(name: str, heading: str = "") -> Rows:
    """Every row of a page's tables, or of those below a heading, by each `code` word of its first
    cell; the cells after it."""
    found: Rows = {}
    text = page(name)
    if heading:
        text = re.split(rf"^#+ {heading}$", text, flags=re.M)[1]
        text = re.split(r"^#+ ", text, flags=re.M)[0]
    for line in text.splitlines():
        if line.startswith("| "):
            first, *rest = (cell.strip() for cell in line.strip("| ").split(" | "))
            for word in re.findall(r"`([^`]+)`", first):
                found.setdefault(word, rest)
    return found


def missing(wanted: Sequence[str] | set[str], described: Rows) -> list[str]:
    """What has no row, or a row that says nothing."""
    return sorted(w for w in wanted if not any(described.get(w, [])))


# What there is


def test_every_status_phase_and_event_is_described() -> None:
    assert missing([*Status, *Phase], rows("docs/lifecycle.md", "Statuses")) == []
    assert missing([*EVENTS], rows("docs/lifecycle.md", "Events")) == []
    assert [s for s in Status if f"`{s}`" not in page("docs/concepts.md")] == []


def test_every_setting_is_described_with_its_default() -> None:
    described = rows("docs/reference.md")
    of_fields = {f"AGENTFLOW_{name.upper()}": f for name, f in Settings.model_fields.items()}
    assert missing(of_fields.keys() | variables(), described) == []
    for name, field in of_fields.items():
        default = field.default
        said = {None: "unset", frozenset(): "none"}.get(default, f"`{default}`")
        assert described[name][0] == said, name
    known = {w for w in described if w.startswith("AGENTFLOW_")}
    assert known == of_fields.keys() | variables(), "a page describes a setting there is not"


def variables() -> set[str]:
    """What the code reads from the environment besides the settings."""
    named = {
        node.value
        for file in ROOT.glob("agentflow/**/*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.fullmatch(r"AGENTFLOW_[A-Z_]*[A-Z]", node.value)
    }
    assert "AGENTFLOW_URL" in named
    return named


def test_no_page_names_a_variable_there_is_not() -> None:
    known = {f"AGENTFLOW_{name.upper()}" for name in Settings.model_fields} | variables()
    known |= {f"AGENTFLOW_HTTP_{name.upper()}" for name in HttpSettings.model_fields}
    said = {v for text in TEXT.values() for v in re.findall(r"AGENTFLOW_[A-Z_]*[A-Z]", text)}
    assert said - known == set()


def test_every_setting_of_the_plugins_is_described() -> None:
    for settings in (HttpSettings, OpenAISettings, ReplicateSettings, SendGridSettings):
        prefix = settings.model_config["env_prefix"]
        names = {f"{prefix}{name.upper()}" for name in settings.model_fields}
        plugin = prefix.lower().strip("_").removeprefix("agentflow_")
        assert missing(names, rows(f"plugins/agentflow-{plugin}/README.md")) == []


def test_every_route_is_described_and_no_other() -> None:
    routes = {f"{o.method} {o.path}" for o in OPERATIONS}
    described = rows("docs/reference.md")
    assert missing(routes, described) == []
    shown = {w for w in described if re.match(r"(GET|POST|PUT|PATCH|DELETE) /", w)}
    assert shown == routes


def test_every_field_is_described() -> None:
    asked = rows("docs/reference.md", "Submitting a job")
    assert missing(schemas.NewJobBody.model_fields.keys() - {"run_at"}, asked) == []
    assert missing(schemas.Job.model_fields.keys(), rows("docs/reference.md", "A job")) == []
    text = page("docs/reference.md")
    for model in (schemas.Entry, schemas.Artifact, schemas.Result, schemas.Error, schemas.Cost):
        shown = {n for n in model.model_fields if re.search(rf"\b{n}\b", text) is None}
        assert shown == set(), model


def test_every_delivery_status_is_described() -> None:
    described = rows("docs/webhooks.md")
    annotation = schemas.DeliveriesQuery.model_fields["status"].annotation
    statuses = re.findall(r"'(\w+)'", str(annotation))
    assert {"received", "parked"} <= set(statuses)
    assert missing(statuses, described) == []


def test_every_command_is_described_and_no_other() -> None:
    described = rows("docs/reference.md")
    names = {f"agentflow {name}" for name in commands()}
    assert missing(names, described) == []
    assert {w for w in described if w.startswith("agentflow ")} == names
    said = {m for text in TEXT.values() for m in re.findall(r"`agentflow ([a-z][a-z -]*)", text)}
    assert {m for m in said if m.split(" --")[0].strip() not in commands()} == set()


def commands() -> set[str]:
    """Every command line that does something, subcommands too."""
    from agentflow.cli.program import program

    def walk(command: Any, name: str) -> Iterator[str]:
        nested = getattr(command, "commands", {})
        if name and (not nested or command.invoke_without_command):
            yield name
        for sub, each in nested.items():
            yield from walk(each, f"{name} {sub}".strip())

    return set(walk(typer.main.get_command(program), ""))


def test_every_exit_code_is_described() -> None:
    from agentflow.cli.leaving import Code

    after = page("docs/reference.md").partition("| exit code |")[2].split("\n\n")[0]
    assert [int(n) for n in re.findall(r"^\| (\d) \| \w", after, re.M)] == [int(c) for c in Code]


def test_every_error_kind_is_described_as_it_behaves() -> None:
    described = rows("docs/plugin-contract.md", "Errors")
    assert missing([k.value for k in ErrorKind], described) == []
    for cls in ProviderFailure.__subclasses__():
        name, _, again = described[cls.kind.value]
        assert name == f"`{cls.__name__}`"
        assert (again == "yes") is cls.retryable, cls


def test_every_other_error_is_described() -> None:
    described = rows("docs/reference.md")
    names = {
        c.__name__ for c in AgentflowError.__subclasses__() if c.__module__ == "agentflow.errors"
    }
    assert missing(names - {"ProviderFailure"}, described) == []


def test_every_policy_field_is_described_with_its_default() -> None:
    described = rows("docs/plugin-contract.md", "Policy")
    for field in fields(Policy):
        assert described.get(field.name), field.name
        said = described[field.name][0]
        default = getattr(Policy(), field.name)
        shown = {"fail": "`fail`", frozenset(): "none"}.get(default) or (
            f"{default:g}" if isinstance(default, float) else str(default)
        )
        assert said == shown, field.name


def test_the_whole_contract_of_plugins_is_described() -> None:
    text = page("docs/plugin-contract.md") + page("docs/conformance.md")
    wanted = {
        *public(hookspecs, "agentflow_"),
        *(f.name for f in fields(Call) if not f.name.startswith(("on_", "keep_"))),
        *("progress", "artifact", "keep"),
        *(f.name for f in fields(Delivery)),
        *arguments(Provider.__init__),
        *FAULTS,
    }
    assert {"agentflow_providers", "webhook_url", "artifact_hosts", "drop"} <= wanted
    assert sorted(w for w in wanted if not re.search(rf"[`.@({{]{w}\b", text)) == []


def public(module: Any, prefix: str) -> list[str]:
    return [name for name in vars(module) if name.startswith(prefix)]


def arguments(function: Any) -> list[str]:
    code = function.__code__
    return list(code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount])


def test_every_public_name_is_in_the_pages() -> None:
    text = "\n".join(TEXT.values())
    assert [n for n in agentflow.__all__ if not re.search(rf"\b{n}\b", text)] == []


# Links and figures


def test_every_relative_link_resolves() -> None:
    broken = []
    for name, text in TEXT.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"https?://", target):
                continue
            path, _, anchor = target.partition("#")
            file = (ROOT / name).parent / path if path else ROOT / name
            if not file.exists() or (anchor and anchor not in anchors(file)):
                broken.append(f"{name}: {target}")
    assert broken == []


def anchors(file: Path) -> set[str]:
    """The names GitHub gives to headings."""
    text = re.sub(r"^```.*?^```", "", file.read_text(encoding="utf-8"), flags=re.S | re.M)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_every_page_is_linked_from_the_readme() -> None:
    linked = set(re.findall(r"\(docs/([\w-]+\.md)", page("README.md")))
    inner = set(re.findall(r"\(([\w-]+\.md)", page("docs/write-a-plugin.md")))
    assert {p.name for p in DOCS.glob("*.md")} - linked - inner == set()


def test_every_named_test_exists() -> None:
    there = {
        (file.name, node.name)
        for file in ROOT.glob("tests/**/test_*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", page("docs/guarantees.md"))
    assert len(named) > 30
    assert [n for n in named if n not in there] == []


def test_every_dependency_has_its_reason() -> None:
    asked = set()
    for file in (ROOT / "pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml")):
        for line in tomllib.loads(file.read_text(encoding="utf-8"))["project"]["dependencies"]:
            asked.add(re.match(r"[\w-]+", line)[0])  # type: ignore[index]  # a name comes first
    described = rows("docs/why.md")
    assert missing(asked - {"agentflow-core"}, described) == []


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    newest = re.search(r"^## (\S+)", page("docs/changelog.md"), re.M)
    assert newest is not None
    assert project["version"] == VERSION == newest[1]


@pytest.mark.parametrize("name", [n for n in TEXT if n != "docs/lifecycle.md"])
def test_pages_are_short_enough_to_be_read(name: str) -> None:
    assert len(page(name).splitlines()) <= 250


# What they show


def test_the_readmes_example_runs(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", page("README.md"), re.S | re.M)
    (tmp_path / "example.py").write_text(example, encoding="utf-8")
    said = run([sys.executable, "-W", "error", "example.py"], tmp_path)
    assert re.search(r"^job_[0-9a-f]{32} out-0\.png stored$", said, re.M), said


def test_the_plugin_of_the_page_is_what_new_plugin_writes() -> None:
    """Each block below the name of a file stands in that file."""
    written = contents("acme")
    shown = re.findall(BLOCK, page("docs/write-a-plugin.md"), re.S | re.M)
    assert len(shown) >= 8
    for path, block in shown:
        assert block.strip() in written[path], f"{path} does not hold:\n{block}"
    listed = rows("docs/write-a-plugin.md", "1. Begin with one that works")
    assert written.keys() - {"README.md"} == {w for w in listed if "." in w and " " not in w}


def test_the_plugin_of_the_page_is_built_installed_and_passes(tmp_path: Path) -> None:
    """The commands of the page, but that it is installed into a folder of its own."""
    commands = "\n".join(
        re.findall(r"^```sh\n(.*?)^```", page("docs/write-a-plugin.md"), re.S | re.M)
    )
    said = [line for line in commands.splitlines() if line.startswith("agentflow ")]
    assert [line.split()[1] for line in said] == ["new-plugin", "plugins", "plugins"]
    site = tmp_path / "site"
    program = [sys.executable, "-m", "agentflow"]
    run([*program, *said[0].split()[1:]], tmp_path)
    run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         "--no-deps", "--no-build-isolation", "--no-index", "--target", str(site), "."],
        tmp_path / "agentflow-acme",
    )  # fmt: skip
    quick = ["-k", "ends_as_it_says or entry_point or good_signature or told_by_webhook"]
    told = run([*program, *said[1].split()[1:], *quick], tmp_path, [site])
    assert "The plugin is done." in told
    assert "acme.run" in run([*program, *said[2].split()[1:]], tmp_path, [site])


def test_every_attribute_of_the_suite_is_described() -> None:
    text = page("docs/conformance.md")
    wanted = {*Subject.__annotations__, "sdk_error", *(f.name for f in fields(Order))}
    assert {"simulator", "refused"} <= wanted
    assert sorted(w for w in wanted if f"| `{w}` |" not in text) == []


def test_the_application_of_the_page_passes_its_tests(tmp_path: Path) -> None:
    write_files("docs/application.md", tmp_path)
    (tmp_path / "shop" / "__init__.py").touch()
    modes = ["asyncio_mode=auto", "asyncio_default_fixture_loop_scope=function"]
    options = [word for mode in modes for word in ("-o", mode)]
    said = run([*pytest_in("test_shop.py"), *options], tmp_path, [tmp_path])
    assert re.search(r"^\d+ passed", said, re.M), said


@pytest.mark.parametrize("name", TEXT)
def test_python_in_the_pages_is_python(name: str) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", page(name), re.S | re.M):
        if block.startswith(" "):  # from within a class or a function
            block = f"async def of_the_page():\n{block}"
        ast.parse(block)


BLOCK = r"^`([\w./-]+)`[^\n]*\n\n```\w+\n(.*?)^```"
"""A block below the name of its file."""


def write_files(name: str, folder: Path) -> None:
    """The blocks of a page that stand below the name of a file."""
    found = re.findall(BLOCK, page(name), re.S | re.M)
    assert len(found) >= 3, name
    for path, content in found:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")


def pytest_in(where: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", where]


def run(command: Sequence[str], folder: Path, paths: Sequence[Path] = ()) -> str:
    """What a command says; it must succeed within a minute. `paths` are where it finds modules."""
    clean = {n: v for n, v in os.environ.items() if not n.startswith(("AGENTFLOW_", "REPLICATE_"))}
    found = os.pathsep.join([*map(str, paths), *filter(None, [clean.get("PYTHONPATH")])])
    done = subprocess.run(
        command, cwd=folder, env={**clean, "PYTHONPATH": found},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


# What is nobody's business

STRANGE = re.compile(r"/(work|root|home)/\w|pypi\b|pythonhosted", re.I)
"""Paths of one machine and hosts of package registries."""


def test_no_file_names_a_machine_or_a_registry() -> None:
    found = [
        f"{file.relative_to(ROOT)}: {line.strip()[:100]}"
        for file in tree()
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines()
        if STRANGE.search(line) and not line.startswith("STRANGE = ")
    ]
    assert found == []


def tree() -> Iterator[Path]:
    """Our files: not those in hidden folders, nor what Python and the examples leave behind."""
    for folder in (".ci", "agentflow", "docs", "examples", "plugins", "tests"):
        for file in ROOT.glob(f"{folder}/**/*"):
            inside = file.relative_to(ROOT / folder).parts
            hidden = any(part.startswith(".") or part == "__pycache__" for part in inside)
            if file.is_file() and not hidden:
                yield file
    yield from (file for file in ROOT.glob("*") if file.is_file())


class Nothing(StrEnum):
    """For the checks below: something no page describes."""

    NEW = "something_new"


def test_the_checks_can_fail() -> None:
    assert missing([*Nothing], rows("docs/lifecycle.md")) == ["something_new"]
    assert missing(["x"], {"x": [""]}) == ["x"]
    assert STRANGE.search("/".join(["", "work", "main"]))
    assert STRANGE.search("".join(["https://py", "pi.org/simple"]))
