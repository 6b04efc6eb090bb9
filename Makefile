# make demo    set everything up and run the main job on the sample model
# make test    set everything up and pass lint, types and tests
# make quick   lint, types and the tests that need neither torch nor the network: under a minute
# make lowest  run the tests with the lowest versions that pyproject.toml allows
# make guide   write anew what the guide has from the code; make docs: build its site in build/docs
# make coverage  scan and verify a tiny model of every architecture of transformers: docs/coverage.md
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
LOWEST := .venv-lowest
# Three processes on two cores: many tests wait for a server, or for a process of their own.
PYTEST := pytest --numprocesses 3 --dist
COG := $(BIN)/cog -I . -I tools
SITE := $(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -c docs . build/docs

.PHONY: demo test quick lowest guide docs coverage bench clean

# On the CPU, so that the result that is kept is the same on every machine.
demo: $(READY)
	@mkdir -p build
	@folder=$$($(BIN)/python tools/sample_model.py) && $(BIN)/superweight analyze "$$folder" \
	    --catalog catalog --note "Not the published weights: dequantized from a Q4_1 (4-bit) GGUF file to bfloat16." \
	    --device cpu --plot docs/sample.png --json > build/sample.json
	@$(BIN)/python tools/sample_result.py build/sample.json

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(COG) --check --diff --verbosity=0 --check-fail-msg='run make guide' docs/*.md docs/experiments/*.md
	$(SITE)
	-$(BIN)/python tools/sample_model.py && $(BIN)/python tools/sample_model.py --gguf  # without it, the tests on it skip
	-$(BIN)/python tools/bert_versions.py
	$(BIN)/superweight catalog validate --catalog catalog
	$(BIN)/$(PYTEST) loadfile --no-loadscope-reorder  # a file's tests stay in one process: they share models

quick: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/$(PYTEST) worksteal --quick

lowest: $(LOWEST)/.ready
	$(LOWEST)/bin/$(PYTEST) loadfile

guide: $(READY)
	$(COG) -r docs/*.md docs/experiments/*.md

docs: $(READY)
	$(SITE)
	@cp build/docs/README.html build/docs/index.html && echo build/docs/index.html

coverage: $(READY)
	$(BIN)/python tools/coverage.py

bench: $(READY)
	$(BIN)/python tools/bench.py

# One environment for everything, made again when what it is made from changes.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

# uv finds each dependency's lowest version, pip installs them all: torch comes from where it comes for .venv.
$(LOWEST)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/bin/uv pip compile --quiet --no-deps --upgrade --resolution lowest-direct --extra dev \
	    --constraint constraints.txt pyproject.toml --output-file $(LOWEST)/constraints.txt
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check --constraint $(LOWEST)/constraints.txt \
	    --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv $(LOWEST) build ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
