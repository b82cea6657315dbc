# make demo: set up and train on the built-in corpus.   make test: the checks that CI runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# For PyTorch's own builds: make demo TORCH_INDEX=https://download.pytorch.org/whl/cu128
TORCH_INDEX ?=

.PHONY: demo setup dev test test-all test-cuda test-browser lint types bench bench-cuda reference clean

demo: setup
	$(BIN)/mmcli demo

setup: $(VENV)/.installed
dev: $(VENV)/.installed-dev

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(if $(TORCH_INDEX),$(BIN)/pip install -q torch --index-url $(TORCH_INDEX))
	$(BIN)/pip install -q $(if $(TORCH_INDEX),,-c constraints.txt) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install -q $(if $(TORCH_INDEX),,-c constraints.txt) -e ".[dev]"
	touch $@

# Two at a time, a thread each: most of them wait for processes that they start. A file stays in one process.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

test: dev
	$(PYTEST) -m "not slow"

test-all: dev
	$(PYTEST)

# Parity of every kernel and a short run of each stage on a CUDA GPU; the figures go to benchmarks/cuda/results/.
test-cuda: dev
	@$(BIN)/python -c "import sys, torch; torch.cuda.is_available() or sys.exit('error: torch finds no CUDA GPU here\n  fix: run it on a machine with one; see: mmcli doctor')"
	$(BIN)/pytest -m cuda tests/cuda

# The chat page and the web export in a headless Chromium, which has to be installed, exports in transformers.js, the
# server asked by OpenAI's client in JavaScript, and the Kotlin of the guide for phones (with Java); npm brings the rest.
NPM := onnxruntime-web@1.30.0 @huggingface/transformers@4.3.1 openai@7.57.0 kotlin-compiler@2.4.20
test-browser: dev build/browser/.installed
	$(BIN)/pip install -q $(if $(TORCH_INDEX),,-c constraints.txt) -e ".[browser]"
	$(BIN)/pytest tests/browser tests/unit/serve/test_peers.py tests/e2e/test_mobile_guide.py

build/browser/.installed: Makefile
	npm install --prefix build/browser --no-audit --no-fund --ignore-scripts $(NPM)
	touch $@

bench-cuda: dev
	$(BIN)/python benchmarks/cuda/step.py

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: dev
	$(BIN)/mypy

reference: setup
	$(BIN)/python docs/reference/generate.py

# All of them run, then those that missed a goal, or broke, are named. (What they share has no --check.)
bench: dev
	@failed=; for script in $$(grep -l -e --check benchmarks/*.py); do \
		echo "$$script"; $(BIN)/python $$script --check || failed="$$failed $$script"; \
	done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed"; exit 1; fi

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
