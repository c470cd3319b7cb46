# make demo: see both streams and their fusion in minutes.  make test: run the tests.  make bench: measure.
PYTHON ?= python3
VENV ?= .venv
PINS ?= -c constraints.txt
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif

.PHONY: help demo test lint bench run
help:
	@sed -n 's/^# *\(make .*\)/\1/p' Makefile | tr -s '.' '\n' | sed 's/^ *//;/^$$/d'

$(VENV)/.installed: requirements.txt constraints.txt
	@echo "== installing requirements.txt into $(VENV) (torch is large: a minute or two)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt $(PINS)
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	@echo "== installing requirements-dev.txt into $(VENV)"
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt $(PINS)
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/python data/make_demo.py --run

test: $(VENV)/.installed-dev
	@echo "== tests"
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu"

lint: $(VENV)/.installed-dev
	@echo "== lint"
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy .

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/run.py

# make run VIDEOS=folder [LISTS=folder] [FLAGS="--recipe tsn"]: from videos to the fused accuracy, start it again as often as you like
run: $(VENV)/.installed
	$(if $(VIDEOS),,$(error name the folder of videos: make run VIDEOS=data/UCF-101))
	$(BIN)/python run.py "$(VIDEOS)" $(if $(WAY),--way $(WAY)) $(if $(LISTS),--lists "$(LISTS)") $(if $(DATA),--data "$(DATA)") \
		$(if $(RECORD),--record "$(RECORD)") --flags="$(FLAGS)" --flow-flags="$(FLOW_FLAGS)"
