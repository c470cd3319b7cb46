# make demo: see both streams and their fusion in minutes.  make test: run the tests.  make bench: measure.
PYTHON ?= python3
VENV ?= .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif

.PHONY: demo test lint bench help clean
help:
	@sed -n 's/^# *\(make .*\)/\1/p' Makefile | tr -s '.' '\n' | sed 's/^ *//;/^$$/d'

$(VENV)/.installed: requirements.txt
	@echo "== installing requirements.txt into $(VENV) (torch is large: a minute or two)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	@echo "== installing requirements-dev.txt into $(VENV)"
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/python data/make_demo.py --run

test: $(VENV)/.installed-dev
	@echo "== tests"
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.installed-dev
	@echo "== lint"
	$(BIN)/python -m ruff check .

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/run.py
