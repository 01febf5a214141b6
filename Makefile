# `make demo` and `make test` do all the set-up that they need; the rest is for people who change the code.

VENV ?= .venv
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
# Tests mostly wait for processes. Each of these has servers of its own.
SIDE_BY_SIDE ?= --numprocesses 3 --dist worksteal
# It says itself what it waits for, and for how long.
ALONE = -m alone -o faulthandler_timeout=0
SOAK_SECONDS ?= 1800
SOAK_PROGRAMS ?= 5000
# Random bodies on each further Python.
OTHER_PROGRAMS ?= 160
# Activated, so that `celery` and `ckworkflow` started by a test are those of the environment.
RUN = PATH="$(abspath $(VENV))/bin:$$PATH"
# Where it is set, each of the thousand processes that the tests start would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE
BOT_READY = $(VENV)/.ckworkflow-bot
DEV_READY = $(VENV)/.ckworkflow-dev
# Apart from the other one: what the peers bring along must not be there when the tests run.
BENCH_VENV = $(VENV)/bench
BENCH_READY = $(BENCH_VENV)/.ckworkflow-bench

.PHONY: help demo bot test pythons fast floors soak check bench dev format clean

help:
	@echo "make demo    the example bot against a fake Discord: greet, kill -9 in the middle, go on"
	@echo "make bot     the same bot on the real Discord (needs DISCORD_TOKEN)"
	@echo "make test    every test, with make pythons: the fast ones and bodies against plain asyncio on each other Python here"
	@echo "make fast    the tests that need no server and no process"
	@echo "make floors  those on the oldest dependencies that are allowed, in an environment of its own"
	@echo "make soak    every combination, kill -9 at every write of each, a thousand races, the nemesis for SOAK_SECONDS (1800), new random bodies"
	@echo "make check   ruff, mypy, pyright, import-linter, public names: what CI checks before the tests"
	@echo "make bench   ours beside raw Celery and DBOS, a few minutes; make bench FULL=1: all of it"
	@echo "make dev     the development environment, in $(VENV)"
	@echo "make format  let ruff rewrite;   make clean: remove what was made"

# Stamps: the second call finds them and starts at once; a changed pyproject.toml installs anew.
$(BOT_READY): pyproject.toml tools/venv.sh
	@echo "Setting up $(VENV) (once) ..."
	@tools/venv.sh $(VENV)
	@$(PIP) --editable ".[discord,test]"
	@touch $@

$(DEV_READY): pyproject.toml tools/venv.sh
	@echo "Setting up $(VENV) for development (once) ..."
	@tools/venv.sh $(VENV)
	@$(PIP) --editable ".[dev]"
	@touch $@ $(BOT_READY)

$(BENCH_READY): pyproject.toml tools/venv.sh benchmarks/requirements.txt
	@echo "Setting up $(BENCH_VENV) (once) ..."
	@mkdir -p $(VENV)
	@tools/venv.sh $(BENCH_VENV)
	@$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		--editable ".[redis,postgres]" --requirement benchmarks/requirements.txt
	@touch $@

demo: $(BOT_READY)
	@cd examples/seed_bot && $(RUN) python demo.py

bot: $(BOT_READY)
	@if [ -z "$$DISCORD_TOKEN" ]; then \
		echo "Set DISCORD_TOKEN first: Discord Developer Portal > your application > Bot > Reset Token." >&2; \
		echo "Then: DISCORD_TOKEN=... make bot   (without a token: make demo)" >&2; \
		exit 1; \
	fi
	@cd examples/seed_bot && $(RUN) python bot.py

dev: $(DEV_READY)
	@echo "Ready. Activate it with: . $(VENV)/bin/activate"

# One after the other: the nemesis measures what a lease is worth, and tests/scale what steps cost, so they have
# the machine to themselves.
test: $(DEV_READY)
	$(RUN) python -m pytest $(SIDE_BY_SIDE) -m "not alone"
	$(MAKE) pythons
	$(RUN) python -m pytest $(ALONE) tests/scale tests/nemesis

# The fast tier and the bodies of tests/differential on each other Python of the machine.
pythons: $(DEV_READY)
	CKWORKFLOW_PROGRAMS=$(OTHER_PROGRAMS) tools/each_python.sh $(VENV) $(SIDE_BY_SIDE) -m "fast or each_python"

soak: $(DEV_READY)
	CKWORKFLOW_SOAK=1 $(RUN) python -m pytest $(SIDE_BY_SIDE) -o faulthandler_timeout=0 tests/crash_everywhere \
		tests/crash/test_hook_races.py tests/crash/test_cancel_races.py tests/crash/test_clean_up.py
	CKWORKFLOW_SOAK=1 $(RUN) python -m pytest $(ALONE) tests/scale
	CKWORKFLOW_NEMESIS_SECONDS=$(SOAK_SECONDS) $(RUN) python -m pytest $(ALONE) tests/nemesis
	$(RUN) python -W ignore -m tests.differential.programs --count $(SOAK_PROGRAMS) --seed $$(date +%s) --workers 2

fast: $(DEV_READY)
	$(RUN) python -m pytest $(SIDE_BY_SIDE) -m fast

# The oldest versions that pyproject.toml allows; apart, since they replace those of the other environment.
floors:
	@tools/venv.sh $(VENV)/floors
	@$(VENV)/floors/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint tests/packaging/floors.txt --editable ".[suite]"
	PATH="$(abspath $(VENV))/floors/bin:$$PATH" $(VENV)/floors/bin/python -m pytest $(SIDE_BY_SIDE) -m fast

check: $(DEV_READY)
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) pyright --pythonpath $(VENV)/bin/python
	cd examples/seed_bot && $(RUN) mypy --config-file ../../pyproject.toml .
	cd examples/patterns && $(RUN) mypy --config-file ../../pyproject.toml .
	$(RUN) lint-imports
	$(RUN) python -m pytest -q tests/test_public_names.py

bench: $(BENCH_READY)
	$(BENCH_VENV)/bin/python benchmarks/run.py --json $(VENV)/bench-results.json \
		$(if $(FULL),--curves,--quick) $(ARGS)

format: $(DEV_READY)
	$(RUN) ruff check --fix-only .
	$(RUN) ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
