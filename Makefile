# `make demo` and `make test` start from a clean clone: git, make and Python 3.11 are enough.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := executorch,tflite,onnx,torchscript,torchvision,timm,demo,dev
EXAMPLE := examples/efficientnet_lite0
# For example: make test PYTEST='tests/edgekit -k bundle'
PYTEST :=
# So many test files at a time; some need 4 GB of memory. With 0, one after the other, as a debugger
# wants it.
WORKERS := 2

.PHONY: help demo test photos lint format types pytest venv wheel system-packages clean

help:
	@echo 'make demo     set everything up, then quantize, measure and activate EfficientNet-Lite0 here'
	@echo 'make test     set everything up, then lint, type-check and test'
	@echo 'make venv     only the environment (.venv)'
	@echo 'make wheel    build dist/*.whl with the ExecuTorch runners for 64-bit ARM and x86_64'
	@echo 'make format   format the code'
	@echo 'make clean    remove what demo and test made, but for .venv'

# Without a compiler the demo goes on with the runtimes that need none, and without apt it goes on
# without the test photos; both are said.
demo: $(STAMP)
	@.ci/system-packages --optional
	@$(MAKE) --no-print-directory photos
	@cd $(EXAMPLE) && export PATH="$(BIN):$$PATH" && \
	if [ -d photos/test ]; then edgekit run; else \
	    grep -v '^report = ' edgekit.toml > without-test.toml; \
	    edgekit run --config without-test.toml; \
	fi

photos: $(STAMP)
	@cd $(EXAMPLE) && "$(BIN)/python" photos.py

test: system-packages
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory types
	@$(MAKE) --no-print-directory pytest

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(STAMP)
	$(VENV)/bin/mypy

pytest: $(STAMP)
	@# With as many files at a time as there are cores, more threads would wait for each other.
	PATH="$(BIN):$$PATH" OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest \
	    --numprocesses $(WORKERS) --dist loadscope --no-loadscope-reorder \
	    --durations 30 --durations-min 20 $(PYTEST)

format: $(STAMP)
	$(VENV)/bin/ruff check --fix-only .
	$(VENV)/bin/ruff format .

system-packages:
	@.ci/system-packages

venv: $(STAMP)

# The wheel carries the runners, so that those who install it need no compiler.
wheel: system-packages $(STAMP)
	PATH="$(BIN):$$PATH" edgekit runtimes build
	$(BIN)/python -m build --wheel

# Reinstalled only when one of these files changes; a newer pin is then upgraded in place.
$(STAMP): pyproject.toml constraints.txt .ci/make-venv
	@.ci/make-venv $(VENV) $(EXTRAS)
	@touch $@

clean:
	rm -rf build dist targets/agent/built *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis htmlcov .coverage*
	rm -rf $(addprefix $(EXAMPLE)/,photos bundle runs without-test.toml)
