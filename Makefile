# The two commands that matter: `make setup` starts everything, `make run-test` tests everything.
# Every target works first and alone; what it needs is installed into .venv when it is missing.

PYTHON ?= python3
VENV := .venv/bin/python
FLASK := $(VENV) -m flask --app wsgi
PORT ?=
# More than a few test processes only wait for each other's servers.
TEST_ARGS ?= --quiet --numprocesses auto --maxprocesses 4
ifneq ($(PORT),)
export PORT
endif

.DEFAULT_GOAL := help
.PHONY: help setup down run run-migration run-test check format erd lock benchmark benchmark-growth benchmark-launch benchmark-mail benchmark-pages benchmark-peers benchmark-redeem-db benchmark-redeem-http chaos install install-dev

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-22s %s\n", $$1, $$2}' Makefile

setup: install ## Install and start everything in the background, print where it is
	@$(FLASK) up

down: ## Stop everything that setup started; data stays
	@if [ -x $(VENV) ]; then $(FLASK) down; else echo "Onecode was not running."; fi

run: install ## Run in front with the logs on the screen; Ctrl-C ends it
	@$(FLASK) run-here

run-migration: install ## Bring the database's tables up to date
	@$(FLASK) migrate

run-test: install-dev ## Run all tests
	@$(VENV) -m pytest $(TEST_ARGS)

check: install-dev ## Lint, format, types
	@$(VENV) -m ruff check .
	@$(VENV) -m ruff format --check .
	@$(VENV) -m mypy
	@$(VENV) -m djlint --check templates
	@$(VENV) -m djlint --lint templates

format: install-dev ## Put code and templates into shape
	@$(VENV) -m ruff check --fix .
	@$(VENV) -m ruff format .
	@$(VENV) -m djlint --reformat --quiet templates

erd: install-dev ## Draw docs/erd.md from the models
	@$(VENV) scripts/erd

lock: install-dev ## Renew requirements.txt and requirements-dev.txt from their .in files
	@$(VENV) scripts/lock

benchmark: benchmark-growth benchmark-launch benchmark-mail benchmark-pages benchmark-peers benchmark-redeem-db benchmark-redeem-http ## Measure everything; docs/benchmarks.md says what

benchmark-launch: install-dev ## Launch, mailing, redemptions beside two voucher pools
	@$(VENV) -m benchmarks.launch

benchmark-mail: install-dev ## Mailing beside a raw smtplib loop and a Flask-Mail loop
	@$(VENV) -m benchmarks.mail

benchmark-redeem-db: install-dev ## Redeeming at the database beside a plain INSERT and textbook ways
	@$(VENV) -m benchmarks.redeem_db

benchmark-growth: install-dev ## Redeeming and look-ups with a million redemptions, and their bytes
	@$(VENV) -m benchmarks.growth

benchmark-pages: install-dev ## What staff wait for, on an empty database and on a full one
	@$(VENV) -m benchmarks.pages

benchmark-redeem-http: install-dev ## Redeeming over HTTP beside a Flask hello and a naive view
	@$(VENV) -m benchmarks.redeem_http

benchmark-peers: install-dev ## Beside django-oscar, which is installed into .venv-oscar, and the textbook
	@$(VENV) -m benchmarks.peers

chaos: install-dev ## Kill workers, relay and database under mailings of 10,000, and audit who got what
	@$(VENV) -m tests.chaos

install: .venv/installed
install-dev: .venv/installed-dev

.venv/installed: requirements.txt scripts/install
	@$(PYTHON) scripts/install requirements.txt .venv/installed

.venv/installed-dev: requirements-dev.txt scripts/install
	@$(PYTHON) scripts/install requirements-dev.txt .venv/installed-dev
	@touch .venv/installed
