# make serve   a broker on 127.0.0.1:1883; makes .venv the first time
# make test    every test; likewise
# make lint    ruff and mypy --strict     make format  lay the code out
# make conformance   the table of statements, and docs/conformance.md
# make bench   codec and engine figures   make clean   forget the environments
# make bench-check   instructions of the hot paths, against what is committed (needs valgrind)
# make simulate      random clients in virtual time, SEEDS=100000 of them
# make fuzz          atheris on the decoder and the engine, SECONDS=60 each
# make wheel         the compiled wheel, in dist/ (needs cc and Python's headers)
# make test-compiled every test against that wheel, installed
# make test-pythons  the core, the wire, the net, the client and the store on each other Python from 3.11 on that is found
# make test-windows  the net, the client, the store ... on Windows' Python, under Wine (needs wine)
# make compare       this broker beside mosquitto and nats-server (needs them, and cc)
# make growth        how cost grows with clients, subscriptions, payload ..., and the plots of it in docs/
#
# Needs make and Python 3.11 or newer, nothing else: each goal installs what it needs, once, and again when
# pyproject.toml or constraints.txt change. PYTHON=/path/to/python chooses one.

# The first of these that runs and is new enough.
PYTHON ?= $(shell for p in python3 python3.15 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)

# Each other version that runs: from PATH, or the newest that pyenv keeps. (pyenv's own python3.13 on PATH fails unless it is chosen.)
# `:` since make throws away what a shell said that ended with "not found".
PYTHONS ?= $(shell own=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	for v in 3.11 3.12 3.13 3.14 3.15; do if [ "$$v" != "$$own" ]; then \
	for p in python$$v $$(ls "$$(pyenv root 2>/dev/null)"/versions/$$v.*/bin/python$$v 2>/dev/null | sort -rV); do \
	$$p -c 'import venv, ensurepip, ssl' >/dev/null 2>&1 && { echo $$p; break; }; done; fi; done; :)

VENV := .venv
LINT := .venv-lint
FUZZ := .venv-fuzz
WHEEL := .venv-wheel
COMPILED := .venv-compiled
INSTALL = -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable
SOURCES := pyproject.toml constraints.txt
PACKAGE = $(shell find broker -name '*.py')
BESIDE := benchmarks config docs examples tests CHANGELOG.md LICENSE Makefile README.md constraints.txt pyproject.toml
SERVE_ARGS ?=
# Two workers a core of a small machine: the suite waits for sockets and subprocesses a good part of its time.
TEST_ARGS ?= -n 4
# Where versions of Python differ: structs, sockets, TLS, Trio, SQLite, logging, and what starts it all.
PYTHONS_TESTS ?= tests/wire tests/core tests/net tests/client tests/store tests/cli/test_logs.py tests/cli/test_serve.py
WINDOWS_ARGS ?= -n 4
COMPARE_ARGS ?=
GROWTH_ARGS ?=
SEEDS ?= 10000
SECONDS ?= 60
SIMULATE_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help serve test test-compiled test-pythons test-windows conformance lint format bench bench-check simulate fuzz compare growth wheel clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

serve: $(VENV)/.stamp-serve
	@exec $(VENV)/bin/broker serve $(SERVE_ARGS)

test: $(VENV)/.stamp-dev
	$(VENV)/bin/python -m pytest $(TEST_ARGS)

conformance: $(VENV)/.stamp-dev
	$(VENV)/bin/python -m tests.conformance.table $(TEST_ARGS)

lint: $(LINT)/.stamp
	$(LINT)/bin/ruff check
	$(LINT)/bin/ruff format --check
	$(LINT)/bin/mypy --strict
	$(foreach system,win32 darwin,$(LINT)/bin/mypy --strict --platform $(system) --cache-dir .mypy_cache/$(system) --no-warn-unreachable --package broker && ) :

format: $(LINT)/.stamp
	$(LINT)/bin/ruff check --fix
	$(LINT)/bin/ruff format

bench: $(VENV)/.stamp-dev
	$(VENV)/bin/python -m benchmarks.codec
	$(VENV)/bin/python -m benchmarks.engine

bench-check: $(VENV)/.stamp-dev
	@$(VENV)/bin/python -m benchmarks.instructions

simulate: $(VENV)/.stamp-serve
	@$(VENV)/bin/python -m broker.testing --seeds $(SEEDS) $(SIMULATE_ARGS)

fuzz: $(FUZZ)/.stamp
	@mkdir -p $(FUZZ)/found-decoder $(FUZZ)/found-engine
	@for target in decoder engine; do PYTHONPATH=. $(FUZZ)/bin/python fuzz/targets.py $$target $(FUZZ)/found-$$target fuzz/corpus \
		-max_total_time=$(SECONDS) -artifact_prefix=$(FUZZ)/$$target- -verbosity=0 -print_final_stats=1 || exit 1; done

wheel: $(WHEEL)/.stamp-built
	@ls dist/*-cp*.whl

# In a folder whose package is the installed one, so that whatever imports or looks for it there, as many tests do, gets that.
test-compiled: $(COMPILED)/.stamp
	@rm -rf $(COMPILED)/tree && mkdir $(COMPILED)/tree
	@tar -c --exclude=__pycache__ --exclude=node_modules $(BESIDE) | tar -x -C $(COMPILED)/tree
	@if [ -d tests/e2e/node_modules ]; then ln -s ../../../../tests/e2e/node_modules $(COMPILED)/tree/tests/e2e/node_modules; fi
	@cd $(COMPILED) && ln -s "$$(bin/python -P -c 'import broker; print(broker.__path__[0])')" tree/broker
	cd $(COMPILED)/tree && BROKER_TEST_COMPILED=1 ../bin/python -m pytest $(TEST_ARGS)

test-pythons:
	@set -e; pythons="$(PYTHONS)"; test -n "$$pythons" || echo "no other Python from 3.11 on was found, so none is tested"; \
	for python in $$pythons; do \
		version=$$($$python -c 'import platform; print(platform.python_version())'); own=.venv-$${version%.*}; \
		$(MAKE) -s --no-print-directory PYTHON=$$python VENV=$$own $$own/.stamp-dev; \
		$$own/bin/python -m pytest -q $(TEST_ARGS) $(PYTHONS_TESTS) >$$own/log 2>&1 || { cat $$own/log; echo "Python $$version: failed"; exit 1; }; \
		echo "Python $$version: $$(tail -n 1 $$own/log)"; \
	done

test-windows: $(VENV)/.stamp-dev
	@$(VENV)/bin/python -m tests.windows $(WINDOWS_ARGS)

compare: $(VENV)/.stamp-serve
	@$(VENV)/bin/python -m benchmarks.compare --ours $(VENV)/bin/broker $(COMPARE_ARGS)

growth: $(VENV)/.stamp-serve
	@$(VENV)/bin/python -m benchmarks.growth --ours $(VENV)/bin/broker $(GROWTH_ARGS)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check 'matplotlib>=3.8'
	@$(VENV)/bin/python -m benchmarks.plots

clean:
	rm -rf $(VENV) $(LINT) $(FUZZ) $(WHEEL) $(COMPILED) .venv-windows .venv-3.* build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The check comes before the environment, so that nothing half made is left behind.
define make_environment
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and none was found. Install it, or: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is not Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) has no venv module. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@test -x $(1)/bin/python || { echo "making $(1) ..."; $(PYTHON) -m venv $(1) || { rm -rf $(1); exit 1; }; }
endef

$(VENV)/.stamp-serve: $(SOURCES)
	$(call make_environment,$(VENV))
	@echo "installing the broker into $(VENV) ..."
	@$(VENV)/bin/python $(INSTALL) .
	@touch $@

$(VENV)/.stamp-dev: $(SOURCES)
	$(call make_environment,$(VENV))
	@echo "installing the broker and its test tools into $(VENV) ..."
	@$(VENV)/bin/python $(INSTALL) '.[dev]'
	@touch $(VENV)/.stamp-serve $@

$(LINT)/.stamp: $(SOURCES)
	$(call make_environment,$(LINT))
	@echo "installing ruff and mypy into $(LINT) ..."
	@$(LINT)/bin/python $(INSTALL) '.[lint]'
	@touch $@

$(FUZZ)/.stamp: $(SOURCES)
	$(call make_environment,$(FUZZ))
	@echo "installing atheris into $(FUZZ) ..."
	@$(FUZZ)/bin/python -m pip install --quiet --disable-pip-version-check 'atheris>=2.3' 'msgspec>=0.19'
	@touch $@

# From an sdist, so that no machine code is left between the sources. As old as its beginning, so that what is edited meanwhile is compiled the next time.
$(WHEEL)/.stamp-built: $(SOURCES) $(PACKAGE)
	$(call make_environment,$(WHEEL))
	@cc --version >/dev/null 2>&1 || { echo "a C compiler is needed. On Debian and Ubuntu: apt install gcc libc6-dev python3-dev" >&2; exit 1; }
	@$(WHEEL)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt build
	@rm -f dist/*-cp*.whl
	@touch $(WHEEL)/begun
	@echo "compiling, which takes a minute ..."
	@PIP_CONSTRAINT=$(CURDIR)/constraints.txt HATCH_BUILD_HOOK_ENABLE_MYPYC=1 $(WHEEL)/bin/python -m build --outdir dist >$(WHEEL)/log 2>&1 || { cat $(WHEEL)/log >&2; exit 1; }
	@mv $(WHEEL)/begun $@

$(COMPILED)/.stamp: $(WHEEL)/.stamp-built
	$(call make_environment,$(COMPILED))
	@echo "installing the compiled wheel and its test tools into $(COMPILED) ..."
	@$(COMPILED)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "$$(ls dist/*-cp*.whl)[dev]"
	@$(COMPILED)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --force-reinstall --no-deps dist/*-cp*.whl
	@touch $@
