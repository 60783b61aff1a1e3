# Everything runs in a virtual environment of its own, made on first use. `make help` lists the targets.

VENV ?= .venv
EXTRAS ?= dev,tensorboard
CONSTRAINTS ?=# further requirements, such as jax==0.11.*
JOBS ?= 2

# The first Python that really runs, is new enough, and can make a virtual environment. `make PYTHON=...` chooses another.
USABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
  if "$$p" -c '$(USABLE)' >/dev/null 2>&1; then echo "$$p"; break; fi; done)

PY := $(VENV)/bin/python
READY := $(VENV)/.ready
TEST_ENV := JAX_PLATFORMS=cpu \
  JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.cache/xla \
  JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS=0.5
PYTEST := $(TEST_ENV) $(PY) -m pytest -q -n $(JOBS) --durations=10

# Huge pages for large arrays, where the C library is glibc: a training step on a CPU is up to a fifth faster.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: help demo test test-fast test-slow test-full lint bench clean
.DEFAULT_GOAL := help

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

demo: $(READY)  ## train, evaluate and predict on the embedded digit scenes
	$(PY) experiments/demo.py

test: $(READY)  ## all tests but the slow ones
	$(PYTEST) -m 'not slow'

test-fast: $(READY)  ## neither the slow nor the medium tests
	$(PYTEST) -m 'not slow and not medium'

test-slow: $(READY)  ## the slow tests alone
	$(PYTEST) -m slow || [ $$? -eq 5 ]  # pytest's 5: there is none

test-full: $(READY)  ## every test
	$(PYTEST)

lint: $(READY)  ## ruff
	$(PY) -m ruff check .

bench: $(READY)  ## the benchmarks
	@if [ -f experiments/bench.py ]; then $(PY) experiments/bench.py; else echo 'there is no experiments/bench.py yet'; fi

clean:  ## remove the environments and all caches; runs/ stays
	rm -rf .venv .venv312 .cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): requirements.txt setup.py
	@if [ -z "$(PYTHON)" ]; then \
	  echo 'vision_jax needs Python 3.11 or later with venv and pip; none of python3.13, python3.12, python3.11, python3' \
	    'is one. Install it (on Debian also python3-venv), or say: make PYTHON=/path/to/python' >&2; exit 1; fi
	@"$(PYTHON)" -c '$(USABLE)' || { \
	  echo 'PYTHON=$(PYTHON) is not Python 3.11 or later with venv and pip' >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]' $(foreach c,$(CONSTRAINTS),'$(c)')
	touch $@
