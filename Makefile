# The same few commands on a laptop and in CI. Needs Python 3.11 or newer and make; everything else goes into .venv.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
# The first interpreter that is new enough; PYTHON=/path/to/python overrides.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
ARGS ?=

# After `make fast`, `up` runs the compiled build, and compiles anew what has changed.
SOURCES := pyproject.toml setup.py $(shell find gateway backend -name '*.py')

.PHONY: help up fast plain test check bench test-gpu test-comfyui clean
.DELETE_ON_ERROR:

help:
	@echo "make up            start gateway and backend (ARGS='--comfyui DIR' for a real ComfyUI)"
	@echo "make fast          compile the data path (needs a C compiler): less CPU per request; make plain undoes it"
	@echo "make test          lint, types and every test that needs no GPU"
	@echo "make check         lint and types alone"
	@echo "make bench         the gateway beside nginx, HAProxy and an aiohttp proxy: CPU, throughput, latency"
	@echo "make test-gpu      what only a CUDA device can show; says so where there is none"
	@echo "make test-comfyui  the tests against the ComfyUI that COMFYUI_DIR names"
	@echo "make clean         remove .venv and caches"

up: $(if $(wildcard $(VENV)/.fast),$(VENV)/.fast,$(VENV)/.installed)
	@exec $(BIN)/comfy-gateway up $(ARGS)

fast: $(VENV)/.fast
	@$(BIN)/comfy-gateway --version

plain:
	@rm -f $(VENV)/.fast $(VENV)/.installed
	@$(MAKE) --no-print-directory $(VENV)/.installed
	@$(BIN)/comfy-gateway --version

# COMFYUI_DIR is taken away: what needs a real ComfyUI is skipped here, says so, and runs in test-comfyui.
test: check
	env -u COMFYUI_DIR $(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy -p gateway
	$(BIN)/mypy -p backend

# The compiled build is one peer more; without a compiler the table says that it was not built.
bench: $(VENV)/.installed-dev
	-COMFY_GATEWAY_COMPILE=1 $(BIN)/python setup.py --quiet build --build-lib build/compiled
	$(BIN)/python -m bench $(ARGS)

test-gpu: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m gpu -s tests/gpu $(ARGS)

test-comfyui: $(VENV)/.installed-dev
	@if [ -z "$$COMFYUI_DIR" ]; then \
		echo "not run: COMFYUI_DIR is not set. It names the folder of a ComfyUI checkout with its own .venv or venv."; \
	else \
		$(BIN)/python -m pytest -m comfyui tests/comfyui $(ARGS); \
	fi

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find gateway backend tests bench -name __pycache__ -prune -exec rm -rf {} +

# A stamp is as old as the last installation, and older than a changed pyproject.toml. One installation takes the
# other's place: tests are for the files as they are, so `make test` and the like go back to the plain one.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[embedded]'
	@touch $@
	@rm -f $(VENV)/.fast

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[embedded,dev]'
	@touch $@ $(VENV)/.installed
	@rm -f $(VENV)/.fast

$(VENV)/.fast: $(SOURCES) | $(BIN)/python
	rm -rf build/lib* build/bdist*
	COMFY_GATEWAY_COMPILE=1 $(BIN)/python -m pip install --quiet '.[embedded]'
	@touch $@
	@rm -f $(VENV)/.installed $(VENV)/.installed-dev

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "comfy-gateway needs Python 3.11 or newer; found: $$(python3 --version 2>&1). Set PYTHON=/path/to/python."; exit 1; }
	$(PYTHON) -m venv $(VENV)
