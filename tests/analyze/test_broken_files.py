"""Broken configs and tokenizers, as they come from libraries' errors: each in one line of words, none called a bug."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from commands import ROOT, fails, superweight
from models import plant, random_llama, save, settings

from analyzer.analyze.verifying import verify_model
from analyzer.base.errors import AnalyzerError
from analyzer.source.opening import open_model


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return save(plant(random_llama()), tmp_path_factory.mktemp("models") / "m")


def changed(folder, name, change):
    """Change a JSON file: by its new text, or by the keys to set, those of null to remove."""
    path = folder / name
    if isinstance(change, dict):
        content = json.loads(path.read_text()) | change
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    else:
        path.write_text(change)


WITHOUT_NAN = "m cannot be run: its config.json says that rms_norm_eps is NaN: correct it"
TOKENIZER = "; compare its tokenizer files with the original's"
CONFIG = "; compare its config.json with the original's"
SPECIAL = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "nope", "type_id": 0}}],
    "pair": [],
    "special_tokens": {},
}


@pytest.mark.parametrize(
    ("name", "change", "fragments"),
    [
        ("tokenizer.json", "{}", ("cannot load the tokenizer of m: there is no 'added_tokens'", TOKENIZER)),
        ("tokenizer.json", "[1]", ("cannot load the tokenizer of m: a part of it has not the form", TOKENIZER)),
        ("tokenizer.json", "[" * 100_000, ("cannot load the tokenizer of m", TOKENIZER)),
        ("tokenizer.json", {"post_processor": SPECIAL}, ("the tokenizer of m cannot read text", TOKENIZER)),
        ("tokenizer_config.json", "[]", ("not the form that is expected (AttributeError: 'list' object", TOKENIZER)),
        ("tokenizer_config.json", '{"model_max_length": "x"}', ("the tokenizer of m cannot read text", TOKENIZER)),
        ("config.json", {"num_attention_heads": 0}, ("cannot load the model m: a size in it is 0", CONFIG)),
        ("config.json", {"hidden_act": "nope"}, ("cannot load the model m: there is no 'nope'", CONFIG)),
        ("config.json", {"model_type": [1]}, ("not the form that is expected (TypeError: unhashable", CONFIG)),
        ("config.json", {"rms_norm_eps": float("nan")}, (WITHOUT_NAN,)),
        ("config.json", {"rope_scaling": {"a": [0.5, float("nan")]}}, ("rope_scaling.a.1 is NaN: correct it",)),
        ("config.json", {"rms_norm_eps": -1.0}, ("its weights hold NaN or Inf, or its config.json is not theirs",)),
    ],
    ids=range(12),
)
def test_what_libraries_raise_is_said_in_words(planted, tmp_path, capfd, name, change, fragments):
    folder = shutil.copytree(planted, tmp_path / "m")
    changed(folder, name, change)
    with pytest.raises(AnalyzerError) as caught:
        verify_model(open_model(folder), settings())
    assert all(fragment in str(caught.value) for fragment in fragments), caught.value
    assert str(caught.value).isprintable()
    assert capfd.readouterr().err == ""  # a panic of the tokenizers library prints itself


def test_no_warning_of_a_library_names_a_line_of_code(planted, tmp_path):
    folder = shutil.copytree(planted, tmp_path / "m")
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-4096:] = b"\xff\x7f" * 2048  # NaN, of which NumPy likes to warn
    (folder / "model.safetensors").write_bytes(bytes(weights))
    for command in ("scan", "verify"):
        done = superweight(command, folder, "--quiet")
        assert "Warning" not in done.stderr
        assert ".py" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
@pytest.mark.parametrize("megabytes", [70, 150, 200, 250, 300, 350, 600])
def test_low_memory_is_called_that_and_no_bug(planted, megabytes):
    script = (
        "import resource, runpy, sys\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({megabytes << 20},) * 2)\n"
        f"sys.argv = ['superweight', 'scan', {str(planted)!r}, '--quiet']\n"
        "runpy.run_module('analyzer', run_name='__main__')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert "Traceback" not in done.stderr
    assert "bug" not in done.stderr
    if done.returncode and "OpenBLAS error" not in done.stderr:  # which ends the process itself
        fails(done, "there is not enough memory")
