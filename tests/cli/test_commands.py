"""The command line as a user meets it: in a process of its own, with good input and with bad."""

import contextlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import termios
from pathlib import Path

import click
import pytest
from checkpoints import random_downs, write_llama
from click.testing import CliRunner
from commands import ROOT, fails, superweight
from models import PROMPT, TEXT, plant, random_llama, save

from analyzer.cli.main import cli
from analyzer.cli.scan import Layers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "tiny"
    downs = random_downs(layers=3)
    downs[1][2, 3] = 1.5
    write_llama(path, downs)
    return path


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "planted-1b"
    save(plant(random_llama()), path)
    (path / "text.txt").write_text(TEXT)
    return path


def commands(group, names=()):
    for name, command in group.commands.items():
        yield (*names, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*names, name))


@pytest.mark.parametrize(("names", "command"), list(commands(cli)), ids=lambda value: str(value))
def test_every_command_has_help_that_ends_with_an_example(names, command):
    assert re.search(r"Examples?:\n( *superweight .*\n?)+\s*$", command.help.replace("\b\n", ""))
    result = CliRunner().invoke(cli, [*names, "--help"])
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 100
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name


def test_scan_prints_the_outlier_first(folder):
    result = superweight("scan", folder, "--top", 3)
    assert result.returncode == 0
    assert result.stderr == ""
    assert "Largest weight: layer 1, row 2, col 3 = +1.5" in result.stdout
    assert str(folder.parent) not in result.stdout


def test_scan_json_is_the_contract(folder):
    result = superweight("scan", folder, "--json", "--top", 3, "--layers", "0-1")
    scan = json.loads(result.stdout)
    assert result.stderr == ""
    assert list(scan) == [
        "model", "revision", "commit", "model_type", "num_layers", "hidden_size", "intermediate_size", "score",
        "bytes_read", "checkpoint_bytes", "seconds", "tensors", "outliers",
    ]  # fmt: skip
    assert [scan[key] for key in ("model", "num_layers", "hidden_size", "intermediate_size")] == ["tiny", 3, 8, 20]
    assert [t["layer"] for t in scan["tensors"]] == [0, 1]
    assert list(scan["tensors"][0]) == [
        "name", "layer", "expert", "shape", "dtype", "mean_abs", "std", "max_abs", "nonfinite",
    ]  # fmt: skip
    assert len(scan["outliers"]) == 3
    best = scan["outliers"][0]
    assert list(best) == ["rank", "layer", "expert", "row", "col", "value", "score", "zscore", "tensor"]
    assert [best[key] for key in ("rank", "layer", "expert", "row", "col", "value")] == [1, 1, None, 2, 3, 1.5]


def test_scan_warns_of_layers_that_are_not_there(tmp_path):
    downs = random_downs(layers=4)
    write_llama(tmp_path, downs, shards=2)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    del index["weight_map"]["model.layers.2.mlp.down_proj.weight"]
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    result = superweight("scan", tmp_path, "--json")
    assert result.stderr == "warning: no down projection in layer 2: not an MLP block, or not in the index\n"
    assert len(json.loads(result.stdout)["tensors"]) == 3
    assert superweight("scan", tmp_path, "--layers", "0-1").stderr == ""


def test_scan_says_what_is_not_finite(tmp_path):
    downs = random_downs()
    downs[2][0, :2] = float("nan")
    downs[0][:] = float("inf")
    write_llama(tmp_path, downs)
    assert "162 weights in 2 tensors are NaN or infinite" in superweight("scan", tmp_path).stdout
    scan = json.loads(superweight("scan", tmp_path, "--json").stdout)
    assert [t["nonfinite"] for t in scan["tensors"]] == [160, 0, 2]
    assert scan["tensors"][0]["mean_abs"] is None
    assert all(o["layer"] != 0 for o in scan["outliers"])


def test_verify_json_is_the_contract(planted):
    result = superweight("verify", planted, "--prompt", PROMPT, "--text", planted / "text.txt", "--json")
    assert result.stderr == ""
    verified = json.loads(result.stdout)
    wanted = {
        "model", "revision", "commit", "model_type", "prompt", "tokens", "dtype", "device", "verdict", "layers",
        "super_activations", "super_weights",
    }  # fmt: skip
    assert wanted <= set(verified)
    assert verified["verdict"] == "found"
    assert verified["device"] in ("cpu", "cuda")
    weight = next(w for w in verified["super_weights"] if (w["layer"], w["row"], w["col"]) == (1, 77, 31))
    assert (weight["status"], weight["static_rank"], weight["value"]) == ("confirmed", 1, 2.0)


def test_analyze_writes_the_entry_once_and_the_catalog_commands_read_it(planted, tmp_path):
    options = ["--prompt", PROMPT, "--text", planted / "text.txt", "--catalog", tmp_path / "c", "--note", "Planted."]
    first = superweight("analyze", planted, *options)
    assert first.returncode == 0, first.stderr
    path = tmp_path / "c" / "planted.json"
    assert f"Catalog entry written to {path}" in first.stdout
    assert max(map(len, first.stdout.splitlines()[:-1])) <= 100
    before = path.read_bytes()
    assert str(planted.parent) not in before.decode()

    again = json.loads(superweight("analyze", planted, *options, "--json").stdout)
    assert path.read_bytes() == before
    assert again["catalog_file"] == str(path)

    listed = superweight("catalog", "list", "--catalog", tmp_path / "c")
    assert "planted-1b" in listed.stdout
    shown = superweight("catalog", "show", "planted-1b", "--catalog", tmp_path / "c")
    assert "Planted." in shown.stdout
    assert "confirmed" in shown.stdout
    valid = superweight("catalog", "validate", "--catalog", tmp_path / "c")
    assert (valid.returncode, valid.stdout) == (0, "All valid. Files: 1, entries: 1.\n")

    path.write_text(path.read_text().replace('"row": 77', '"row": 9999', 1))
    invalid = superweight("catalog", "validate", "--catalog", tmp_path / "c")
    assert invalid.returncode == 1
    assert "planted.json" in invalid.stderr
    assert "row 9999" in invalid.stderr


def test_diff_of_a_model_with_itself_and_with_a_saved_result(folder, tmp_path):
    saved = tmp_path / "saved.json"
    saved.write_text(superweight("scan", folder, "--json").stdout)
    for one, other in [(folder, folder), (folder, saved), (saved, folder)]:
        result = superweight("diff", one, other)
        assert result.returncode == 0
        assert re.search(r"No differences between the (outliers|down projections) of the two", result.stdout)


def test_diff_shows_what_changed(folder, tmp_path):
    downs = random_downs(layers=3)
    downs[1][2, 3] = 1.5
    downs[2][7, 19] = -2.0
    write_llama(tmp_path / "next", downs)
    result = superweight("diff", folder, tmp_path / "next", "--top", 1, "--json")
    changed = json.loads(result.stdout)
    assert changed["identical"] is False
    largest = max(range(8 * 20), key=lambda place: abs(float(downs[2].flat[place])) if place != 7 * 20 + 19 else 0)
    assert [(c["kind"], c["layer"], c["row"], c["col"]) for c in changed["outliers"]] == [
        ("appeared", 2, 7, 19),
        ("vanished", 2, *divmod(largest, 20)),  # layer 1, with the larger weight, is the same in both
    ]
    assert changed["outliers"][0]["old"] == {"rank": None, "value": float(random_downs(layers=3)[2][7, 19])}
    assert changed["outliers"][1]["new"] == {"rank": None, "value": float(downs[2].flat[largest])}
    assert (changed["super_weights"], changed["super_weights_from"]) == ([], None)
    assert "1 appeared, 1 vanished." in superweight("diff", folder, tmp_path / "next", "--top", 1).stdout


def test_diff_with_a_result_of_a_larger_model(folder, tmp_path):
    outlier = {"rank": 1, "layer": 0, "expert": None, "row": 4000, "col": 1, "value": 3.0}
    (tmp_path / "other.json").write_text(json.dumps({"outliers": [outlier]}))
    fails(superweight("diff", tmp_path / "other.json", folder), "tiny has no weight (0, 4000, 1)")


def test_bad_models_are_one_line(tmp_path, folder):
    fails(superweight("scan", tmp_path / "nowhere"), "there is no folder")
    fails(superweight("scan", tmp_path), "has no safetensors file")
    (tmp_path / "pytorch_model.bin").write_bytes(b"not opened")
    fails(superweight("verify", tmp_path), "only as pickle files")
    fails(superweight("scan", folder, "--layers", "7"), "no down projection in layer 7", "from 0 to 2")
    fails(superweight("scan", folder, "--revision", "main"), "local folder")
    fails(superweight("verify", folder), "cannot load the model tiny")
    fails(superweight("scan", ""), "name is empty")
    fails(superweight("diff", "~nobodyhere/x", folder), "cannot look for a folder")
    fails(superweight("diff", "no-such.json", folder), "there is no saved result no-such.json")
    fails(superweight("diff", folder, folder / "config.json"), "neither outliers nor super weights")
    fails(superweight("catalog", "list", "--catalog", tmp_path / "none"), "no catalog folder")
    fails(superweight("scan", "owner/name", HF_ENDPOINT="http://127.0.0.1:1"), "cannot reach http://127.0.0.1:1")


def test_names_do_not_reach_the_terminal_raw(tmp_path):
    evil = tmp_path / "evil\x1b[2J\nname"
    write_llama(evil, random_downs())
    assert "\x1b" not in superweight("scan", evil).stdout
    (evil / "config.json").unlink()
    fails(superweight("scan", evil), "evil\\x1b[2J\\nname has no config.json")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_output_that_cannot_be_written(folder):
    command = f"{sys.executable} -m analyzer scan {folder} > /dev/full"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment)
    fails(result, "cannot write the output: No space left on device")


def test_a_destination_that_cannot_be_written_is_known_before_the_work(folder, tmp_path):
    (tmp_path / "tiny.json").write_text("{}")
    # The folder is no model that could be loaded: the catalog is looked at before that.
    fails(superweight("analyze", folder, "--catalog", tmp_path), "tiny.json", "schema_version")
    fails(superweight("analyze", folder, "--catalog", tmp_path, "--family", "../up"), "cannot name a family")


def test_the_result_is_printed_also_if_its_entry_cannot_be_written(planted, tmp_path):
    script = (
        "import errno, os, sys, analyzer.__main__ as c\n"
        "def full(_): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
        "os.fsync = full\n"
        "c.main()\n"
    )
    arguments = [
        "analyze",
        planted,
        "--prompt",
        PROMPT,
        "--text",
        planted / "text.txt",
        "--catalog",
        tmp_path,
        "--json",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 1
    assert result.stderr.endswith("No space left on device; what was there is unchanged\n")
    assert json.loads(result.stdout)["catalog_file"] is None
    assert not (tmp_path / "planted.json").exists()


def test_a_text_or_prompt_that_is_wrong(planted, tmp_path):
    (tmp_path / "text.txt").write_bytes(b"\xff\xfe")
    fails(superweight("verify", planted, "--text", tmp_path / "text.txt"), "as UTF-8 text")
    fails(superweight("verify", planted, "--text", "/dev/null"), "is not a text file")
    fails(superweight("verify", planted, "--prompt", "apple " * 65), "has 65 tokens", "has 64 positions")
    fails(superweight("verify", planted, "--prompt", "apple"), "has only 1")


@pytest.mark.parametrize(
    "arguments",
    [
        ["scan"],
        ["scan", "x", "--top", "0"],
        ["scan", "x", "--layers", "5-1"],
        ["scan", "x", "--layers", "one"],
        ["scan", "x", "--score", "size"],
        ["verify", "x", "--device", "tpu"],
        ["verify", "x", "--text", "/nowhere"],
        ["analyze", "x", "--note", "two\nlines"],
        ["analyze", "x", "--model-id", "me/\x1b[2J"],
        ["verify", "x", "--prompt", "\udcff"],
        ["diff", "x"],
        ["nonsense"],
    ],
)
def test_wrong_usage_exits_with_2(arguments):
    result = superweight(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr


def test_a_bug_is_one_line_and_a_traceback_only_on_request(folder):
    script = (
        "import sys, analyzer.analyze.scanning as a, analyzer.__main__ as c\n"
        "def broken(*_, **__): raise ZeroDivisionError('oh')\n"
        "a.scan_model = broken\n"
        f"sys.argv = ['superweight', 'scan', {str(folder)!r}]\n"
        "c.main()\n"
    )
    for debug in ("0", "1"):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "SUPERWEIGHT_DEBUG": debug}
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
        assert result.returncode == 1
        assert ("Traceback" in result.stderr) == (debug == "1")
        if debug == "0":
            fails(result, "this is a bug in superweight (ZeroDivisionError: oh)")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_exits_with_130_and_one_line():
    # A server that accepts and never answers keeps the command waiting for as long as the test wants.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": endpoint}
        command = [sys.executable, "-m", "analyzer", "scan", "owner/name"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        silent.settimeout(30)
        silent.accept()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "\ninterrupted\n")  # the line that ^C began


def drawn_on_a_terminal(*args, **env):
    """Return what a command writes to stderr when that is a terminal."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    del environment["HF_HUB_DISABLE_PROGRESS_BARS"]
    command = [sys.executable, "-m", "analyzer", *map(str, args)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment) as process:
        os.close(theirs)
        drawn = b""
        with contextlib.suppress(OSError):  # EIO: the last process that had the terminal has ended
            while chunk := os.read(ours, 1 << 16):
                drawn += chunk
    os.close(ours)
    assert process.returncode == 0
    return drawn.decode()


def test_quiet_is_quiet_on_a_terminal_also_while_downloading(hub, planted, tmp_path):
    hub.add("me/planted-1b", planted)
    arguments = ["verify", "me/planted-1b", "--prompt", PROMPT, "--text", planted / "text.txt"]
    loud = drawn_on_a_terminal(*arguments, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "one"))
    assert "Fetching" in loud
    assert "building the model" in loud
    quiet = drawn_on_a_terminal(*arguments, "--quiet", HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "two"))
    assert quiet == ""


def test_a_closed_pipe_is_no_error(folder):
    command = f"{sys.executable} -m analyzer scan {folder} --json --top 500 | head -c 10"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment)
    assert (result.stdout, result.stderr) == ('{\n  "model', "")


def test_neither_help_nor_scan_imports_torch(folder):
    script = (
        "import sys\n"
        "from analyzer.cli.main import cli\n"
        f"for arguments in (['--help'], ['scan', {str(folder)!r}]):\n"
        "    try: cli(arguments)\n"
        "    except SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment).returncode == 0


def test_shell_completion_knows_commands_and_options():
    words = {"_SUPERWEIGHT_COMPLETE": "bash_complete", "COMP_WORDS": "superweight sc", "COMP_CWORD": "1"}
    assert superweight(**words).stdout == "plain,scan\n"
    words |= {"COMP_WORDS": "superweight scan x --lay", "COMP_CWORD": "3"}
    assert superweight(**words).stdout == "plain,--layers\n"


@pytest.mark.parametrize(
    ("text", "ranges"),
    [("0", (range(1),)), ("0-10,24", (range(11), range(24, 25))), (" 3 - 4 ", (range(3, 5),))],
)
def test_layers(text, ranges):
    assert Layers().convert(text, None, None) == ranges
