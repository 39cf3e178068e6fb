# The commands of the README. Everything runs from .venv, which is made on first use
# from requirements.lock: nothing else of this machine's Python packages is used.

PYTHON_RANGE := (3, 11) <= sys.version_info < (3, 14)
CANDIDATES := $(or $(PYTHON),python3.13 python3.12 python3.11 python3)
PLUGINS := $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))
PACKAGES := agentflow $(wildcard $(addsuffix /agentflow_*,$(PLUGINS) examples/fal))
PIP := .venv/bin/python -m pip --disable-pip-version-check

# Of the whole suite: a file of tests at a time on each processor.
TOGETHER := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

unexport PYTHONHOME PYTHONPATH

.PHONY: help demo test check bench chaos mixed mutants lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile
	@echo "ARGS=… is handed on, as in: make test ARGS='-k webhook'"
	@echo "PYTHON=… names the Python that .venv is made with (3.11, 3.12 or 3.13)"

demo: .venv/.stamp ## see a job travel from submit to result; needs no key and no server
	@.venv/bin/agentflow demo $(ARGS)

test: .venv/.stamp ## run the tests; they start PostgreSQL and Redis, and as root on Debian install them
	@.venv/bin/python -m pytest $(or $(ARGS),$(TOGETHER))

check: .venv/.stamp ## lint, formatting, types, import contracts, architecture tests
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy $(PACKAGES)
	.venv/bin/lint-imports --no-logo
	.venv/bin/python -m pytest tests/architecture

bench: .venv/.stamp ## run the benchmarks
	@.venv/bin/python -m tests.benchmarks $(ARGS)
	@.venv/bin/python -m tests.benchmarks.scale_out $(ARGS)

chaos: .venv/.stamp ## 10,000 jobs under 200 faults of processes, servers, links and clocks
	@.venv/bin/python -m tests.chaos $(ARGS)

mixed: .venv/.stamp ## jobs of every provider under their faults and ours, in one process and in many
	@.venv/bin/python -m tests.mixed $(ARGS)

mutants: .venv/.stamp ## seed bugs in the plugins and see that the conformance suite finds them
	@.venv/bin/python -m tests.mutation $(ARGS)

clean: ## remove .venv, caches and builds; jobs and files in .agentflow stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A .venv that works is used as it is; one that does not (half made, another Python) is made anew.
.venv/.stamp: requirements.lock pyproject.toml $(addsuffix /pyproject.toml,$(PLUGINS))
	@set -e; \
	suits() { "$$1" -c "import sys, $$2; sys.exit(not $(PYTHON_RANGE))" 2>/dev/null; }; \
	if ! suits .venv/bin/python pip; then \
		found=; bare=; \
		for candidate in $(CANDIDATES); do \
			if suits "$$candidate" 'ensurepip, venv'; then found=$$candidate; break; fi; \
			if suits "$$candidate" os; then bare=$${bare:-$$candidate}; fi; \
		done; \
		if [ -z "$$found" ] && [ -n "$$bare" ]; then \
			version=$$("$$bare" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
			echo "$$bare cannot make a virtual environment: its venv and ensurepip modules are missing."; \
			echo "On Debian and Ubuntu: sudo apt install python$$version-venv"; \
			exit 1; \
		fi >&2; \
		if [ -z "$$found" ]; then \
			echo "agentflow needs Python 3.11, 3.12 or 3.13; none works here under: $(CANDIDATES)"; \
			echo "(The replicate package cannot be imported on Python 3.14 and later.)"; \
			echo "Install one, or name it: make demo PYTHON=/path/to/python3.13"; \
			exit 1; \
		fi >&2; \
		echo "Preparing .venv with $$found (once, about a minute)…"; \
		"$$found" -m venv --clear .venv; \
	else \
		echo "Bringing .venv up to requirements.lock…"; \
	fi; \
	$(PIP) install -qq --require-hashes -r requirements.lock; \
	$(PIP) install -qq --no-deps --no-build-isolation $(foreach path,. $(PLUGINS),-e $(path)); \
	touch $@

# Locked besides what the pyproject files ask for: `editables` installs the working tree without
# a build of its own; `async-timeout` is what redis wants on Python 3.11.0 to 3.11.2.
LOCK_ALSO := editables async-timeout

define LOCK_INPUTS
import pathlib, sys, tomllib
asked = set(sys.argv[1:])
for path in map(pathlib.Path, ["pyproject.toml", *pathlib.Path("plugins").glob("*/pyproject.toml")]):
    declared = tomllib.loads(path.read_text(encoding="utf-8"))
    project = declared["project"]
    asked.update(declared["build-system"]["requires"], project.get("dependencies", []))
    for more in (project.get("optional-dependencies", {}), declared.get("dependency-groups", {})):
        asked.update(*more.values())
print(*sorted(line for line in asked if not line.startswith("agentflow")), sep="\n")
endef
export LOCK_INPUTS

# Compiled on the oldest Python, which needs the most backports; it installs on the others too.
lock: ## write requirements.lock anew from the pyproject files; ARGS=--upgrade moves the pins
	python3.11 -m venv .venv/lock
	.venv/lock/bin/python -m pip install -qq --disable-pip-version-check pip-tools
	.venv/lock/bin/python -c "$$LOCK_INPUTS" $(LOCK_ALSO) > .venv/lock/requirements.in
	CUSTOM_COMPILE_COMMAND="make lock" .venv/lock/bin/pip-compile --quiet --generate-hashes \
		--strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links \
		--output-file requirements.lock $(ARGS) - < .venv/lock/requirements.in
