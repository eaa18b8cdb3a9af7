# The two commands that matter: `make setup` starts everything, `make run-test` tests it.
# Every target works first and alone; what it needs is installed into .venv when it is missing.

PYTHON ?= python3
VENV := .venv/bin/python
# Our settings read .env themselves, and say in one line when that can't be.
FLASK := FLASK_SKIP_DOTENV=1 $(VENV) -m flask --app wsgi
PORT ?=
# Each test process would otherwise compile all tests again where Python is told to keep no compiled files.
PYTEST := env -u PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX="$(CURDIR)/.venv/pycache" $(VENV) -m pytest
# More than a few test processes only wait for each other's servers. Tests of one group share what is dear to start.
TEST_ARGS ?= --quiet --numprocesses auto --maxprocesses 4 --dist loadgroup
ifneq ($(PORT),)
export PORT
endif

.DEFAULT_GOAL := help
.PHONY: help messages setup demo demo-remove down run run-migration run-test run-test-all check format erd screenshots env lock benchmark benchmark-growth benchmark-launch benchmark-mail benchmark-pages benchmark-peers benchmark-redeem-db benchmark-redeem-http chaos install install-dev python
# Or make would complain of a clock that was ahead when this file was fetched.
.PHONY: Makefile

# `##@ Group` opens a group of this list; `target: … ## words`, or `##: name ## words`, is a line of it (24 in all, words
# of 55 letters, so that it fits a screen).
help:
	@awk -F ' *## *' '/^##@ / {print substr($$0, 5)} \
	  /^(##: )?[A-Za-z-]+:?.* ## / {sub(/^##: /, ""); split($$0, name, /[: ]/); printf "  make %-16s %s\n", name[1], $$2}' Makefile

##@ Start here

setup: install ## Install, start in the background, say where
	@$(FLASK) up

demo: install ## Fill it with a shop to look around in
	@$(FLASK) up --quiet
	@$(FLASK) demo fill

demo-remove: install ## Take that shop out again, nothing else
	@$(FLASK) demo remove

run-test: install-dev ## Run the tests of the product
	@$(PYTEST) -m "not slow" $(TEST_ARGS)

run-test-all: install-dev ## Run the long tests that run-test leaves out
	@$(PYTEST) -m slow $(TEST_ARGS)

##@ Every day

down: ## Stop what setup started; data stays
	@if [ -e .venv/installed ]; then $(FLASK) down; else echo "Onecode was not running."; fi

run: install ## Run in front, logs on the screen
	@$(FLASK) run-here

##@ Changing it

check: install-dev ## Lint, format, types
	@$(VENV) -m ruff check .
	@$(VENV) -m ruff format --check .
	@$(VENV) -m mypy
	@$(VENV) scripts/check_messages
	@$(VENV) -m djlint --check templates
	@$(VENV) -m djlint --lint templates
	@.venv/bin/hadolint Dockerfile
	@.venv/bin/check-jsonschema --quiet --builtin-schema vendor.compose-spec docker-compose.yml

format: install-dev ## Put code and templates into shape
	@$(VENV) -m ruff check --fix .
	@$(VENV) -m ruff format .
	@$(VENV) -m djlint --reformat --quiet templates

messages: install-dev ## Collect texts to translate
	@mkdir -p translations
	@.venv/bin/pybabel --quiet extract --mapping-file babel.cfg --keyword _l --output-file translations/messages.pot .

erd: install-dev ## Draw docs/erd.md from the models
	@$(VENV) scripts/erd

screenshots: install-dev ## Take the README's pictures anew
	@$(VENV) scripts/screenshots

lock: install-dev ## Renew the locked requirements
	@$(VENV) scripts/lock

##@ Measuring (docs/benchmarks.md)

benchmark: benchmark-growth benchmark-launch benchmark-mail benchmark-pages benchmark-peers benchmark-redeem-db benchmark-redeem-http ## All of the next line, for hours
##: benchmark-NAME ## growth launch mail pages peers redeem-db redeem-http

benchmark-growth: install-dev # A million redemptions: speed and bytes
	@$(VENV) -m benchmarks.growth

benchmark-launch: install-dev # A launch beside two voucher pools
	@$(VENV) -m benchmarks.launch

benchmark-mail: install-dev # Mailing beside plain smtplib and Flask-Mail
	@$(VENV) -m benchmarks.mail

benchmark-pages: install-dev # What staff wait for
	@$(VENV) -m benchmarks.pages

benchmark-peers: install-dev # Beside django-oscar and the textbook
	@$(VENV) -m benchmarks.peers

benchmark-redeem-db: install-dev # Redeeming beside a plain INSERT
	@$(VENV) -m benchmarks.redeem_db

benchmark-redeem-http: install-dev # Redeeming over HTTP beside a bare hello
	@$(VENV) -m benchmarks.redeem_http

chaos: install-dev ## Kill workers, relay and database; audit mails
	@$(VENV) -m tests.chaos

##@ On servers (docs/operations.md)

env: python ## Write .env with new secrets for containers
	@$(PYTHON) scripts/env

run-migration: install ## Bring the database's tables up to date
	@$(FLASK) migrate

# Each looks for itself whether there is anything to do: what is installed is no question of clocks.
install: python
	@"$(PYTHON)" scripts/install requirements.txt

install-dev: python
	@"$(PYTHON)" scripts/install requirements-dev.txt

python:
	@command -v "$(PYTHON)" >/dev/null || { echo "onecode: there is no $(PYTHON) here; install Python 3.11 or newer, on Debian or Ubuntu: apt install python3 python3-venv" >&2; exit 1; }
