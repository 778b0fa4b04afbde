# Trainyard's commands; `make help` lists them.
SHELL := bash
.DEFAULT_GOAL := help
PYTHON ?= python3
export PYTHON

secrets = docker compose run --rm --no-deps --no-TTY --quiet-pull secrets
provision = docker compose run --rm --no-deps --no-TTY provision python -m infra.provision
registry = docker compose exec -T worker with-secrets python -m trainyard.registry
MODEL ?= rain-tomorrow

.PHONY: help up down info env deploy run promote rollback logs demo ui test test-unit test-integration test-stack bench lint lock clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{gsub(/\$$\$$/, "$$"); printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: ## start the stack and wait until it is ready
	@infra/up

down: ## stop the stack; its data stays
	@docker compose down

info: ## addresses, accounts, passwords, and what the warm process costs
	@$(secrets) info
	@docker compose exec -T worker python -m warm_process summary 2>/dev/null || echo "The worker is not running."

env: ## lines for eval "$$(make -s env)": the host's prefect and mlflow then use the stack
	@$(secrets) env

deploy: ## register the deployments of prefect.yaml
	@$(provision) deploy

run: ## run DEPLOYMENT=... [PARAMETERS='{"places": ["Oslo"]}'] and follow it
	@test -n "$(DEPLOYMENT)" || { echo "Say which deployment: make run DEPLOYMENT=cat-facts" >&2; exit 2; }
	@$(provision) run "$(DEPLOYMENT)" '$(or $(PARAMETERS),{})'

promote: ## make VERSION=n of MODEL (rain-tomorrow) the champion
	@test -n "$(VERSION)" || { echo "Say which version: make promote VERSION=3" >&2; exit 2; }
	@$(registry) promote "$(MODEL)" "$(VERSION)"

rollback: ## let the champion of MODEL (rain-tomorrow) and the one before it change places
	@$(registry) rollback "$(MODEL)"

logs: ## follow the services' logs
	@docker compose logs --follow --tail 100

demo: ## train without Docker, and end
	@infra/venv demo && .venv/bin/python -m infra.embedded demo

ui: ## both UIs over what `make demo` made, until Ctrl-C
	@infra/venv demo && .venv/bin/python -m infra.embedded ui

test: ## all tests; those of the stack where Docker answers
	@infra/venv test && .venv/bin/python -m pytest $(TESTS)

test-unit test-integration test-stack: test-%:
	@infra/venv test && .venv/bin/python -m pytest tests/$*

bench: ## all benchmarks, an hour on a quiet machine; writes bench/results and docs/benchmarks.md
	@infra/venv test && for name in start demo serving dashboard peers; do .venv/bin/python -m bench.$$name; done
	@.venv/bin/python -m bench.page

lint: ## ruff, mypy and the compose file
	@infra/venv lint && .venv/bin/ruff check && .venv/bin/ruff format --check && .venv/bin/mypy

lock: ## compile pyproject.toml's dependency groups into requirements/; UPGRADE=1 takes the newest
	@infra/venv build && PATH=$$PWD/.venv/bin:$$PATH infra/lock $(if $(UPGRADE),--upgrade)

clean: ## remove the stack WITH ITS DATA, its images, .venv and the demo's data
	@read -rp "This removes every run, model and artifact. Type yes: " answer && test "$$answer" = yes
	@docker compose down --volumes --rmi local --remove-orphans 2>/dev/null || true
	@rm -rf .venv .demo
