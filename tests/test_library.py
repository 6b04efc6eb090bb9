"""The library: its names, in whatever order things are imported, and the examples in its docstrings."""

import doctest
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from catalogs import entry
from models import PROMPT, TEXT, plant, random_llama, save

import analyzer

ROOT = Path(__file__).parents[1]
MODULES = sorted(found.name for found in pkgutil.walk_packages(analyzer.__path__, "analyzer."))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return save(plant(random_llama()), tmp_path_factory.mktemp("library") / "my-model")


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
        "    try:\n"
        "        importlib.import_module(module)\n"
        "    except ModuleNotFoundError as error:\n"
        "        assert error.name == 'lm_eval', error  # of an extra\n"
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
    (tmp_path / "my-model").symlink_to(planted)
    (tmp_path / "catalog").mkdir()
    document = {"schema_version": 3, "family": "x", "entries": [entry()], "reported": []}
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


@pytest.mark.parametrize("job", ["scan_model", "verify_model", "analyze_model", "load_model"])
def test_a_model_must_be_opened_first(planted, job):
    with pytest.raises(analyzer.AnalyzerError, match="my-model' is no opened model: give what open_model returns"):
        getattr(analyzer, job)(str(planted))
