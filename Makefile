# kronos-db: `make help` lists what there is.
.DEFAULT_GOAL := help
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The revision that `make check` compares the contract with.
BASE ?= main
# The directory that `make protos` fills.
OUT ?= build/protos
STAMP := $(VENV)/.installed

.PHONY: help
help: ## Show this help
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Use

.PHONY: run
run: $(STAMP) ## Start everything on this machine: PostgreSQL, Redis, the server
	@exec $(BIN)/kronos-db dev

.PHONY: protos
protos: $(STAMP) ## Write the .proto files with all that they import, and the retry policy, into OUT
	@$(BIN)/python scripts/contract.py export --out $(OUT)

.PHONY: clients
clients: protos ## Build the packages for callers in Python and Node.js into dist
	cd clients/python && ../../$(BIN)/python -m hatchling build -t wheel -d ../../dist
	npm ci --prefix clients/node --no-audit --no-fund --ignore-scripts
	cd clients/node && KRONOS_PROTOS="$(abspath $(OUT))" npm pack --pack-destination ../../dist

.PHONY: install
install: $(STAMP) ## Install into .venv what the lock file names

$(STAMP): locks/requirements.txt pyproject.toml scripts/install.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "kronos-db needs Python 3.11 or later; name one with PYTHON=…" >&2; exit 1; }
	@echo "Installing into $(VENV), which takes a minute …"
	@# Anew: an environment that another Python made would be a mix of both.
	@$(PYTHON) -m venv --clear $(VENV) || { echo "python3 -m venv does not work here; on Debian install python3-venv" >&2; exit 1; }
	@$(BIN)/python scripts/install.py
	@touch $@

##@ Develop

.PHONY: test
test: $(STAMP) ## Run all tests, in three processes, or those of ARGS; what lacks a program skips and says so
	$(BIN)/python -m pytest $(or $(ARGS),--numprocesses=3 --dist=loadfile)

.PHONY: soak
soak: $(STAMP) ## Run the tests that have a long form in that form, which takes minutes
	KRONOS_TEST_SOAK=1 $(BIN)/python -m pytest -m soak $(ARGS)

.PHONY: check
check: $(STAMP) verify ## Lint, types, walls, contract, references: all that needs no server
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=clients/python $(BIN)/mypy --package kronos_db_client
	$(BIN)/lint-imports
	$(BIN)/python scripts/contract.py lint
	$(BIN)/python scripts/contract.py breaking --base $(BASE)
	$(BIN)/python scripts/reference.py check
	$(BIN)/python scripts/dashboards.py check

.PHONY: generate
generate: $(STAMP) ## Generate stubs and reference pages from contract and code
	$(BIN)/python scripts/contract.py generate
	$(BIN)/python scripts/reference.py write
	$(BIN)/python scripts/dashboards.py write

.PHONY: verify
verify: $(STAMP) ## Check that generated/ is what the contract gives
	$(BIN)/python scripts/contract.py verify

.PHONY: format
format: $(STAMP) ## Format code and contract
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .
	$(BIN)/buf format --write protos

.PHONY: lock
lock: $(STAMP) ## Resolve the dependencies anew, for Python 3.11 to 3.14
	$(BIN)/python scripts/lock.py

##@ Measure

.PHONY: bench
bench: $(STAMP) ## Measure beside the floors; ONLY=users runs one domain's rows
	$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY))

.PHONY: load
load: $(STAMP) ## Load USERS (100000) into a server of its own, or that of KRONOS_ADDRESS, and count them
	@$(BIN)/python -m tests.e2e.load $(USERS)

##@ Clean

.PHONY: clean
clean: ## Remove what was built; the data of `make run` stays
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
