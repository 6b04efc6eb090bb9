# make demo   set everything up and run the main job on the sample model
# make test   set everything up and pass lint, types and tests
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test bench clean

demo: $(READY)
	@folder=$$($(BIN)/python tools/sample_model.py) && $(BIN)/superweight analyze "$$folder" \
	    --catalog catalog --note "Not the published weights: dequantized from a Q4_1 (4-bit) GGUF file to bfloat16."

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	-$(BIN)/python tools/sample_model.py && $(BIN)/python tools/sample_model.py --gguf  # without it, the tests on it skip
	-$(BIN)/python tools/bert_versions.py
	$(BIN)/superweight catalog validate --catalog catalog
	$(BIN)/pytest

bench: $(READY)
	$(BIN)/python tools/bench.py

# One environment for everything, made again when what it is made from changes.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv build ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
