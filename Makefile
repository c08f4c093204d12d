# `make demo` and `make test` set everything up in .venv/ from exact versions; the second time they are quick.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TRITON := $(VENV)/.triton
ENGINES := $(VENV)/.engines
DOCS := $(VENV)/.docs
BINDINGS := build/tensorrt-bindings/10/.unpacked build/tensorrt-bindings/11/.unpacked
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test test-docs quick arm test-arm check docs bench lock clean

demo: $(STAMP)
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh

test: $(STAMP) $(TRITON) $(ENGINES) $(DOCS) $(BINDINGS)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not pages"

# Every command and script of the documentation, ten minutes on two cores.
test-docs: $(STAMP) $(ENGINES) $(DOCS)
	$(BIN)/python -m pytest -n 2 --dist worksteal tests/docs

# What needs no export of a real student and no kernel: a change's first answer.
quick: $(STAMP) $(TRITON) $(ENGINES) $(DOCS) $(BINDINGS)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

# An aarch64 machine out of Debian's packages, in build/arm and without root; it says why where there can be none.
arm: $(STAMP)
	$(BIN)/python -m tests.arm.machine

test-arm: arm
	$(BIN)/python -m pytest tests/arm

check: $(STAMP) $(DOCS)
	$(BIN)/codespell
	$(BIN)/python -m tests.docs.prose
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pip check

# The documentation's site in build/site; a warning is an error.
docs: $(STAMP) $(DOCS)
	$(BIN)/python -m tests.docs.generated
	$(BIN)/python -m tests.docs.snippets
	$(BIN)/zensical build --strict --clean

# Everything behind docs/benchmarks.md, each peer in an environment of its own: hours. `python -m benchmarks.suite list`.
bench: $(STAMP)
	$(BIN)/python -m benchmarks.suite run --work build/bench; found=$$?; $(BIN)/python -m benchmarks.tables --write; exit $$found

lock: $(STAMP)
	( echo "# Exact versions that \`make\` installs, after torch (see Makefile). Regenerate with: make lock"; \
	  $(BIN)/python -m pip freeze --exclude-editable | grep -Ev '^(torch|triton|tensorrt_rtx.*|cuda_.*|cuda-.*)==' ) > requirements/lock.txt

# torch goes first and by its exact version: any other way brings gigabytes of CUDA along.
$(STAMP): requirements/torch.txt requirements/lock.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "edgecompress needs Python 3.11 or later: set PYTHON=…")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/torch.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/lock.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

# The documentation's site, and checkers of spelling and prose.
$(DOCS): $(STAMP) requirements/docs.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/docs.txt
	@touch $@

# The GPU kernels' compiler and interpreter, which nothing but their tests needs.
$(TRITON): $(STAMP) requirements/triton.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/triton.txt
	@touch $@

# The builder of TensorRT-RTX engines and NVIDIA's bindings of CUDA, which need no GPU and nothing but their tests needs.
$(ENGINES): $(STAMP) requirements/engines.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/engines.txt
	@touch $@

# TensorRT's own bindings, one folder a version and none on Python's path: the library behind them is not installed.
build/tensorrt-bindings/%/.unpacked: requirements/bindings-%.txt $(STAMP)
	rm -rf $(@D)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(@D) -r $<
	@touch $@

clean:
	rm -rf $(VENV) build dist
