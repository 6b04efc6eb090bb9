# make demo   set everything up and run the main job on the sample model
# make test   set everything up and pass lint, types and tests
# make guide  write anew what the guide has from the code; make docs: build its site in build/docs
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
COG := $(BIN)/cog -I . -I tools
SITE := $(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -c docs . build/docs

.PHONY: demo test guide docs bench clean

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
	$(COG) --check --diff --verbosity=0 --check-fail-msg='run make guide' docs/*.md
	$(SITE)
	-$(BIN)/python tools/sample_model.py  # without it, the tests on it skip
	-$(BIN)/python tools/bert_versions.py
	$(BIN)/superweight catalog validate --catalog catalog
	$(BIN)/pytest

guide: $(READY)
	$(COG) -r docs/*.md

docs: $(READY)
	$(SITE)
	@cp build/docs/README.html build/docs/index.html && echo build/docs/index.html

bench: $(READY)
	$(BIN)/python tools/bench.py

# One environment for everything, made again when what it is made from changes.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv build ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
