# Start with `make setup`, which starts everything, and `make run-test`, which runs the tests.
# Every target works in a fresh clone: it first installs into .venv what it needs.

PYTHON ?= python3
VENV := .venv/bin/python
# Onecode reads .env itself and reports an unreadable file in one line; Flask would print a traceback.
FLASK := FLASK_SKIP_DOTENV=1 $(VENV) -m flask --app wsgi
PORT ?=
# Where PYTHONDONTWRITEBYTECODE is set, each test process would otherwise compile all modules again.
PYTEST := env -u PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX="$(CURDIR)/.venv/pycache" $(VENV) -m pytest
# Tests often wait for servers, so that four processes are faster than two on two cores, and enough on more of them.
# The tests of a module run in one process and share its expensive fixtures.
TEST_ARGS ?= --quiet --numprocesses 4 --dist loadfile --no-loadscope-reorder
ifneq ($(PORT),)
export PORT
endif

.DEFAULT_GOAL := help
.PHONY: help messages setup demo demo-down demo-reset down run run-migration run-test run-test-all check format erd screenshots env lock benchmark benchmark-growth benchmark-launch benchmark-mail benchmark-pages benchmark-peers benchmark-redeem-db benchmark-redeem-http chaos chaos-ha audit audit-citus install install-dev python
# Without this, make warns when the modification time of this file is in the future.
.PHONY: Makefile

# `##@ Title` starts a group of this list; `target: … ## text` or `##: name ## text` is a line of it (at most 24 lines,
# texts of at most 55 characters, so that it fits a terminal).
help:
	@awk -F ' *## *' '/^##@ / {print substr($$0, 5)} \
	  /^(##: )?[A-Za-z-]+:?.* ## / {sub(/^##: /, ""); split($$0, name, /[: ]/); printf "  make %-16s %s\n", name[1], $$2}' Makefile

##@ Start here

setup: install ## Install, start, print addresses (PORT=8010: other port)
	@$(FLASK) up

demo: install ## Start a demo with sample data in its own instance
	@$(FLASK) demo up $(if $(findstring command line,$(origin PORT)),$(PORT:%=--port %))

##: demo-NAME ## down stops the demo, reset also deletes its data

demo-down: # Stop the demo; its data is kept
	@if [ -e .venv/installed ]; then $(FLASK) demo down; else echo "The demo was not running."; fi

demo-reset: # Delete the demo and its data
	@if [ -e .venv/installed ]; then $(FLASK) demo reset; else echo "There is no demo; nothing was changed."; fi

run-test: install-dev ## Run the fast tests
	@$(PYTEST) -m "not slow" $(TEST_ARGS)

run-test-all: install-dev ## Run the slow tests (not included in run-test)
	@$(PYTEST) -m slow $(TEST_ARGS)

##@ Run

down: ## Stop what setup started; its data is kept
	@if [ -e .venv/installed ]; then $(FLASK) down; else echo "Onecode was not running."; fi

run: install ## Run in the foreground with the logs on the screen
	@$(FLASK) run-here

##@ Develop

check: install-dev ## Check style, formatting, types and translations
	@$(VENV) -m ruff check .
	@$(VENV) -m ruff format --check .
	@$(VENV) -m mypy
	@$(VENV) scripts/check_messages
	@$(VENV) -m djlint --check templates
	@$(VENV) -m djlint --lint templates
	@.venv/bin/hadolint Dockerfile
	@.venv/bin/check-jsonschema --quiet --builtin-schema vendor.compose-spec docker-compose.yml

format: install-dev ## Format code and templates
	@$(VENV) -m ruff check --fix .
	@$(VENV) -m ruff format .
	@$(VENV) -m djlint --reformat --quiet templates

messages: install-dev ## Extract the texts to translate
	@mkdir -p translations
	@.venv/bin/pybabel --quiet extract --mapping-file babel.cfg --keyword _l --output-file translations/messages.pot .

erd: install-dev ## Generate docs/erd.md from the models
	@$(VENV) scripts/erd

screenshots: install-dev ## Take new screenshots for the README
	@$(VENV) scripts/screenshots

lock: install-dev ## Update the locked requirements
	@$(VENV) scripts/lock

audit: python ## Look up known vulnerabilities, write an SBOM
	@"$(PYTHON)" scripts/audit

audit-citus: install-dev ## Run tests on a Citus cluster (CITUS_URL=...)
	@test -n "$(CITUS_URL)" || { echo "onecode: CITUS_URL is not set; docs/testing.md describes the cluster" >&2; exit 1; }
	@CITUS_URL="$(CITUS_URL)" $(PYTEST) --quiet tests/operations/test_citus.py

# Benchmarks, described in docs/benchmarks.md.

benchmark: benchmark-growth benchmark-launch benchmark-mail benchmark-pages benchmark-peers benchmark-redeem-db benchmark-redeem-http ## Run all benchmarks; takes hours
##: benchmark-NAME ## growth launch mail pages peers redeem-db redeem-http

benchmark-growth: install-dev # A million redemptions: speed and size
	@$(VENV) -m benchmarks.growth

benchmark-launch: install-dev # A launch compared with two voucher pools
	@$(VENV) -m benchmarks.launch

benchmark-mail: install-dev # Sending compared with plain smtplib and Flask-Mail
	@$(VENV) -m benchmarks.mail

benchmark-pages: install-dev # Response times of the staff pages
	@$(VENV) -m benchmarks.pages

benchmark-peers: install-dev # Compared with django-oscar and a textbook solution
	@$(VENV) -m benchmarks.peers

benchmark-redeem-db: install-dev # Redeeming compared with a plain INSERT
	@$(VENV) -m benchmarks.redeem_db

benchmark-redeem-http: install-dev # Redeeming over HTTP compared with an empty response
	@$(VENV) -m benchmarks.redeem_http

chaos: install-dev ## Kill workers, relay and database; audit the emails
	@$(VENV) -m tests.chaos

chaos-ha: install-dev ## Kill, freeze, cut off machines of a Patroni cluster
	@$(VENV) -m tests.chaos.ha

##@ On servers (docs/operations.md)

env: python ## Create .env with new secrets for containers
	@$(PYTHON) scripts/env

run-migration: install ## Upgrade the database schema
	@$(FLASK) migrate

# scripts/install compares checksums itself: modification times are no reliable sign of what is installed.
install: python
	@"$(PYTHON)" scripts/install requirements.txt

install-dev: python
	@"$(PYTHON)" scripts/install requirements-dev.txt

python:
	@command -v "$(PYTHON)" >/dev/null || { echo "onecode: $(PYTHON) was not found; install Python 3.11 or newer, on Debian or Ubuntu: apt install python3 python3-venv" >&2; exit 1; }
