"""The library: its names, in whatever order things are imported, and the examples in its docstrings."""

import doctest
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from catalogs import entry
from models import PLANTED, PROMPT, PROMPT_IDS, TEXT, TEXT_IDS, plant, random_llama, save

import analyzer
from analyzer.base.errors import ArchitectureError, ForwardError

ROOT = Path(__file__).parents[1]
MODULES = sorted(found.name for found in pkgutil.walk_packages(analyzer.__path__, "analyzer."))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("library") / "my-model"
    model = plant(random_llama())
    save(model, folder)
    return model, folder


def run(program):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_name_is_the_same_before_and_after_every_module():
    """A name of a room would be a function or a package, by what was imported before."""
    program = (
        "import importlib, json, sys, analyzer\n"
        "names = {name: getattr(analyzer, name) for name in analyzer.__all__}\n"
        f"for module in {[name for name in MODULES if not name.endswith('__main__')]!r}:\n"
        "    importlib.import_module(module)\n"
        "assert all(getattr(analyzer, name) is value for name, value in names.items())\n"
        "print(json.dumps({name: value.__module__ for name, value in names.items()}))\n"
    )
    homes = json.loads(run(program))
    assert set(homes) == set(analyzer.__all__)
    assert all(home.startswith("analyzer.") for home in homes.values())
    rooms = {module.split(".")[1] for module in MODULES}
    assert not rooms & set(analyzer.__all__)


def test_the_library_imports_nothing_heavy_before_it_is_used():
    heavy = "{'torch', 'transformers', 'huggingface_hub', 'matplotlib', 'pyarrow', 'jsonschema'}"
    program = f"import sys, analyzer; analyzer.scan_model; analyzer.load_model; print({heavy} & sys.modules.keys())"
    assert run(program) == "set()\n"


def test_what_is_not_in_the_library_is_no_attribute():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = analyzer.nonsense
    assert set(analyzer.__all__) <= set(dir(analyzer))


@pytest.mark.parametrize("name", ["analyzer", *analyzer.__all__])
def test_the_examples_run(planted, tmp_path, monkeypatch, name):
    (tmp_path / "my-model").symlink_to(planted[1])
    (tmp_path / "catalog").mkdir()
    document = {"schema_version": 2, "family": "x", "entries": [entry()], "reported": []}
    (tmp_path / "catalog" / "x.json").write_text(json.dumps(document))
    monkeypatch.chdir(tmp_path)
    names = {each: getattr(analyzer, each) for each in analyzer.__all__}
    thing = analyzer if name == "analyzer" else getattr(analyzer, name)
    globs = {**names, "PROMPT": PROMPT, "TEXT": TEXT, "Path": Path}
    tests = doctest.DocTestFinder(recurse=False).find(thing, name, module=False, globs=globs)
    runner = doctest.DocTestRunner()
    for test in tests:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
    if name.islower():
        assert any(test.examples for test in tests), "a function of the library shows how it is used"


def plain_loss(model):
    with torch.no_grad():
        logits = model(torch.tensor([TEXT_IDS])).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(TEXT_IDS[1:])).item()


@pytest.mark.parametrize("factor", [0.0, 0.5, -1.0, 2.0])
def test_a_block_of_code_runs_with_edits_in_place(planted, factor):
    """Logits and loss are those of a plain model whose weight was edited, and after the block those of before."""
    plain, folder = planted
    model = analyzer.load_model(analyzer.open_model(folder))
    view = plain.model.layers[PLANTED.layer].mlp.down_proj.weight
    before = model.loss(TEXT)
    assert before == pytest.approx(plain_loss(plain), rel=1e-6)
    with model.edited({PLANTED: factor}):
        logits, loss = model.logits(PROMPT), model.loss(TEXT)
    kept = view[PLANTED.row, PLANTED.col].item()
    with torch.no_grad():
        view[PLANTED.row, PLANTED.col] = factor * kept
        expected, expected_loss = plain(torch.tensor([PROMPT_IDS])).logits[0].numpy(), plain_loss(plain)
        view[PLANTED.row, PLANTED.col] = kept
    assert logits.shape == (len(PROMPT_IDS), plain.config.vocab_size)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    assert loss == pytest.approx(expected_loss, abs=1e-4)
    assert abs(loss - before) > 1e-4
    assert model.loss(TEXT) == before


def test_edits_nest_and_are_gone_after_an_error(planted):
    model = analyzer.load_model(analyzer.open_model(planted[1]))
    other = PLANTED._replace(row=PLANTED.row + 1)
    before = model.loss(TEXT)
    with model.edited({PLANTED: 0.0}):
        zeroed = model.loss(TEXT)
        with model.edited({other: 0.0, PLANTED: 1.0}):
            inner = model.loss(TEXT)
        assert model.loss(TEXT) == zeroed
    with model.edited({other: 0.0}):
        assert model.loss(TEXT) == pytest.approx(inner, rel=1e-7)
    with pytest.raises(KeyError), model.edited({PLANTED: 0.0}):
        raise KeyError
    assert model.loss(TEXT) == before


def test_what_cannot_be_run_is_one_line(planted):
    model = analyzer.load_model(analyzer.open_model(planted[1]))
    with pytest.raises(ForwardError, match="cannot be run on 65 tokens: give 1 to 64"):
        model.logits(TEXT + " apple")
    with pytest.raises(ForwardError, match="cannot be run on 0 tokens"):
        model.logits("")
    with (
        model.edited({PLANTED._replace(row=10**6): 0.0}),
        pytest.raises(ArchitectureError, match=r"has no weight \(1, 1000000, 31\)"),
    ):
        model.loss(TEXT)
