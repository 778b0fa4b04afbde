# Trainyard's commands; `make help` lists them.
SHELL := bash
.DEFAULT_GOAL := help
PYTHON ?= python3
export PYTHON
# The folder of the user's own project, from the shell or .env; without it the examples are the project.
PROJECT ?= $(shell sed -n 's/^PROJECT=//p' .env 2>/dev/null | tail -n 1 | tr -d "\"'")
export PROJECT
project = $(or $(PROJECT),.)

secrets = docker compose run --rm --no-deps --no-TTY --quiet-pull secrets
deploy = docker compose run --rm --no-deps --no-TTY deploy python -m infra.provision
registry = docker compose exec -T worker with-secrets python -m trainyard.registry
reproduction = docker compose exec -T worker with-secrets python -m trainyard.reproduction
export PARAMETERS # to the shell as a variable, so that it may hold any quotes

.PHONY: help new up upgrade down info ca doctor worker-token env deploy run promote reproduce rollback backup backups restore rotate storage logs demo ui test test-all test-project test-unit test-integration test-stack bench lint lock clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{gsub(/\$$\$$/, "$$"); printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

new: ## create a project of your own in a folder beside this one: make new PROJECT=../churn
	@infra/dev/new "$(PROJECT)"

up: ## start the stack and wait until it is ready; WORKERS=n starts n workers
	@infra/up

upgrade: ## bring the running stack to this checkout's version, or to TO=tag; where that fails, back to what it was
	@infra/upgrade $(if $(FROM),--from "$(FROM)",$(if $(TO),"$(TO)"))

down: ## stop the stack; its data stays
	@infra/checks/require-own-project && docker compose down

info: ## addresses, accounts, passwords, and what the warm process costs
	@$(secrets) info
	@docker compose exec -T worker python -m warm_process summary 2>/dev/null || echo "The worker is not running."

doctor: ## what is wrong, and the command that mends it; changes nothing
	@infra/diagnose

ca: ## with infra/compose/tls.yml: the certificate of the internal authority, for browsers and other machines to trust
	@infra/proxy/authority

worker-token: ## with infra/compose/remote-workers.yml: the token of workers on other hosts; it is a secret
	@infra/proxy/worker-token

env: ## lines for eval "$$(make -s env)": the host's prefect and mlflow then use the stack
	@$(secrets) env && infra/proxy/authority env

deploy: ## register the deployments of prefect.yaml
	@infra/checks/require-own-project && $(deploy) deploy

run: ## run DEPLOYMENT=... [PARAMETERS='{"count": 3}'] and follow it
	@test -n "$(DEPLOYMENT)" || { echo "Name a deployment: make run DEPLOYMENT=cat-facts" >&2; exit 2; }
	@$(deploy) run "$(DEPLOYMENT)" "$$PARAMETERS"

promote: ## make VERSION=n of MODEL=... the champion; MODEL may be left out where there is one model
	@test -n "$(VERSION)" || { echo "Name a version: make promote VERSION=3" >&2; exit 2; }
	@$(registry) promote "$(MODEL)" "$(VERSION)"

reproduce: ## train VERSION=n of MODEL=... again from its data, and say whether the metrics are equal
	@test -n "$(VERSION)" || { echo "Name a version: make reproduce VERSION=3" >&2; exit 2; }
	@$(reproduction) "$(MODEL)" "$(VERSION)"

rollback: ## make the previous champion of MODEL=... the champion again
	@$(registry) rollback "$(MODEL)"

backup: ## back up the running stack into the repository of .env, or TO=folder or s3://bucket/path
	@infra/back-up "$(TO)"

backups: ## list the backups of the repository, or of FROM=folder or s3://bucket/path
	@infra/back-up --list "$(FROM)"

restore: ## REPLACE ALL DATA by the newest backup, BACKUP=id or AT="2026-11-27 06:00:00+00:00", of the repository or of FROM=...
	@infra/restore "$(FROM)" "$(BACKUP)" "$(AT)"

storage: ## what uses space, and what the next clean-up removes
	@infra/storage/show

rotate: ## generate the secrets anew, or NAME="..." alone, and restart what reads them
	@infra/rotate $(NAME)

logs: ## follow the services' logs
	@docker compose logs --follow --tail 100

demo: ## run the first-run deployments without Docker, and end
	@infra/dev/venv demo "$(project)" && "$(project)/.venv/bin/python" -m infra.embedded demo

ui: ## both UIs over the data of `make demo`, until Ctrl-C
	@infra/dev/venv demo "$(project)" && "$(project)/.venv/bin/python" -m infra.embedded ui

test: ## the tests, but for those that are marked slow; those of the stack where Docker is running
	@infra/dev/venv test && $(if $(TESTS),.venv/bin/python -m pytest $(TESTS),infra/dev/run-tests "not slow")

test-all: ## all tests
	@infra/dev/venv test && infra/dev/run-tests

test-project: ## the tests of your project, without a stack
	@infra/dev/venv demo "$(project)" && cd "$(project)" && .venv/bin/python -m pytest

test-unit test-integration test-stack: test-%:
	@infra/dev/venv test && .venv/bin/python -m pytest tests/$*

bench: ## all benchmarks, several hours on a quiet machine; writes bench/results and docs/benchmarks.md
	@infra/dev/venv test && for name in start small backup artifacts demo project serving overload bombs dashboard peers gate monitor; do .venv/bin/python -m bench.$$name; done
	@.venv/bin/python -m tests.support.parity
	@.venv/bin/python -m bench.page

chaos: ## faults at random moments: ROUNDS=10 SEED=1 FIRST=0; appends to bench/results/chaos.jsonl
	@infra/dev/venv test && .venv/bin/python -m bench.chaos --rounds $(or $(ROUNDS),10) --seed $(or $(SEED),1) --first $(or $(FIRST),0)

lint: ## ruff, mypy and the compose file
	@infra/dev/venv lint && .venv/bin/ruff check && .venv/bin/ruff format --check && .venv/bin/mypy
	@! command -v docker >/dev/null || docker compose config --quiet

lock: ## compile the packages of your project, or without one Trainyard's own, into locks; UPGRADE=1 takes the newest
	@infra/dev/venv build && PATH=$$PWD/.venv/bin:$$PATH infra/dev/$(if $(PROJECT),lock-project "$(PROJECT)",lock) $(if $(UPGRADE),--upgrade)

clean: ## remove the stack WITH ITS DATA, its images, .venv and the demo's data
	@infra/clean
