# Everything that is done with this repository. `make help` lists it.

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# Tools and real components that tests use are cached here, by version, outside of the checkout.
export OPSPLANE_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/opsplane
export PATH := $(abspath $(VENV)/bin):$(OPSPLANE_CACHE)/bin:$(PATH)
PART ?= all
ARGS ?=

.PHONY: help install tools demo run test check format proto proto-check lock bench soak soak-logs soak-transfers clean

help: ## list what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(STAMP): requirements.lock pyproject.toml clients/python/pyproject.toml scripts/venv.sh
	@scripts/venv.sh "$(PYTHON)" "$(VENV)"
	@touch $@

install: $(STAMP) ## make .venv with everything that the lock names

tools: ## put what tests use into the cache: grpcurl, the OpenTelemetry Collector and InfluxDB (Go), node-postgres (npm), Kafka (Maven), FTP and SQL servers, ClickHouse (apt)
	@scripts/tools.sh
	@scripts/kafka.sh
	@scripts/ftp_servers.sh
	@scripts/mariadb.sh
	@scripts/clickhouse.sh
	@scripts/influxdb.sh

demo: $(STAMP) ## start a server and a sample API, load-test it, show the results
	@$(PY) scripts/demo.py $(ARGS)

run: $(STAMP) ## run the server in the foreground (ARGS="--port 50052" and so on)
	@$(VENV)/bin/opsplane serve $(ARGS)

test: $(STAMP) tools ## run all tests, side by side (ARGS="-k name" for some)
	@$(PY) $(if $(ARGS),-m pytest $(ARGS),scripts/run_tests.py)

check: $(STAMP) proto-check ## ruff, mypy strict, buf
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

proto-check: $(STAMP)
	@$(VENV)/bin/buf lint
	@$(VENV)/bin/buf format --diff --exit-code --exclude-path proto/google --exclude-path proto/buf
	@$(VENV)/bin/buf breaking --against proto/baseline.binpb
	@$(PY) scripts/generate_stubs.py --check

format: $(STAMP) ## put code and protos in shape
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/buf format -w --exclude-path proto/google --exclude-path proto/buf

proto: $(STAMP) ## generate the Python stubs from the protos
	@$(PY) scripts/generate_stubs.py

lock: $(STAMP) ## renew requirements.lock (ARGS=--upgrade for newer versions)
	@$(PY) scripts/lock.py $(ARGS)

bench: $(STAMP) ## measure (PART=loadtest|logs|shipper|search|transfers|databases|comparison|users|rpc; default all) into build/bench.json
	@$(PY) -m tests.bench $(PART)

soak: $(STAMP) ## run a load test for long and watch the memory (ARGS="--minutes 30")
	@$(PY) -m scripts.soak $(ARGS)

soak-logs: $(STAMP) ## send a million numbered logs through kills, count each (ARGS="--records 1000000 --kills 20")
	@$(PY) -m scripts.soak_logs $(ARGS)

soak-transfers: $(STAMP) tools ## bring 5,000 files through faults and kills, check each (ARGS="--files 5000 --kills 25")
	@$(PY) -m scripts.soak_transfers $(ARGS)

clean: ## remove what was made in the checkout
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
