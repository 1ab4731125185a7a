# Everything a person or a CI types. `make` alone lists the words.
PYTHON ?= python3
VENV := .venv
LATEST := .venv-latest
BIN := $(VENV)/bin
PORT ?= 7860
MODEL_COLBERT ?=
MODEL_VL ?=
MODEL_AUDIO ?=
ARGS ?=

.PHONY: help demo test lint bench test-latest
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' $(MAKEFILE_LIST) | column -t -s '|' 2>/dev/null \
		|| sed -n 's/^\([a-z-]*\):.*## /  make \1: /p' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## set up, then serve the pages; PORT=7860 MODEL_COLBERT= MODEL_VL= MODEL_AUDIO=
	$(BIN)/lfm2-mm demo --port $(PORT) --models "$(MODEL_COLBERT),$(MODEL_VL),$(MODEL_AUDIO)" --no-browser

test: $(VENV)/.for-tests ## set up, then run the tests, offline; ARGS="-k index"
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.for-tests ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed ## speed on this machine: chat and retrieval
	$(BIN)/lfm2-mm bench

test-latest: $(LATEST)/.installed ## backbone and encoders beside the newest torch and transformers
	$(LATEST)/bin/python -m pytest $(wildcard tests/test_backbone*.py tests/test_encoder*.py) $(ARGS)

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(check_python)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e '.[demo,live,pylate]' -c constraints.txt
	@touch $@

$(VENV)/.for-tests: $(VENV)/.installed
	$(BIN)/python -m pip install -e '.[demo,live,pylate,test]' -c constraints.txt
	@touch $@

# Without PyLate, which holds transformers back; always brought up to date.
$(LATEST)/.installed: FORCE
	@$(check_python)
	$(PYTHON) -m venv $(LATEST)
	$(LATEST)/bin/python -m pip install --upgrade --upgrade-strategy eager -e '.[test]'
	@touch $@
FORCE:

define check_python
$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit( \
"lfm2-mm needs Python 3.11 to 3.13 and $(PYTHON) is %d.%d; try: make PYTHON=python3.12 ..." % v)'
endef
