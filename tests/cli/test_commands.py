"""The command line as a user meets it: in a process of its own, with good input and with bad."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest
from checkpoints import random_downs, write_llama
from click.testing import CliRunner
from commands import ROOT, fails, superweight

from analyzer.cli.main import cli


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


def test_bad_models_are_one_line(here, tmp_path, spiked):
    fails(here("scan", tmp_path / "nowhere"), "there is no folder")
    fails(here("scan", tmp_path), "has no safetensors file")
    (tmp_path / "pytorch_model.bin").write_bytes(b"not opened")
    fails(here("verify", tmp_path), "only as pickle files")
    fails(here("scan", spiked, "--layers", "7"), "no down projection in layer 7", "from 0 to 2")
    fails(here("scan", spiked, "--revision", "main"), "local folder")
    fails(here("verify", spiked), "cannot load the model tiny")
    fails(here("scan", ""), "name is empty")
    fails(here("diff", "~nobodyhere/x", spiked), "cannot look for a folder")
    fails(here("diff", "no-such.json", spiked), "there is no saved result no-such.json")
    fails(here("diff", spiked, spiked / "config.json"), "neither outliers nor super weights")
    fails(here("catalog", "list", "--catalog", tmp_path / "none"), "no catalog folder")
    fails(superweight("scan", "owner/name", HF_ENDPOINT="http://127.0.0.1:1"), "cannot reach http://127.0.0.1:1")


def test_names_do_not_reach_the_terminal_raw(tmp_path):
    evil = tmp_path / "evil\x1b[2J\nname"
    write_llama(evil, random_downs())
    assert "\x1b" not in superweight("scan", evil).stdout
    (evil / "config.json").unlink()
    fails(superweight("scan", evil), "evil\\x1b[2J\\nname has no config.json")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_output_that_cannot_be_written(spiked):
    command = f"{sys.executable} -m analyzer scan {spiked} > /dev/full"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment)
    fails(result, "cannot write the output: No space left on device")


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
        ["verify", "x", "--early-stop", "--weight", "1,2,any"],
        ["verify", "x", "--early-stop", "--expert", "1,2"],
        ["verify", "x", "--early-stop", "--weights-of", "y"],
        ["verify", "x", "--early-stop", "--more"],
        ["diff", "x"],
        ["nonsense"],
    ],
)
def test_wrong_usage_exits_with_2(here, arguments):
    result = here(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr


def test_a_bug_is_one_line_and_a_traceback_only_on_request(spiked):
    script = (
        "import sys, analyzer.analyze.scanning as a, analyzer.__main__ as c\n"
        "def broken(*_, **__): raise ZeroDivisionError('oh')\n"
        "a.scan_model = broken\n"
        f"sys.argv = ['superweight', 'scan', {str(spiked)!r}]\n"
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


def test_a_closed_pipe_is_no_error(spiked):
    command = f"{sys.executable} -m analyzer scan {spiked} --json --top 500 | head -c 10"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment)
    assert (result.stdout, result.stderr) == ('{\n  "model', "")


def test_neither_help_nor_scan_imports_torch(spiked):
    script = (
        "import sys\n"
        "from analyzer.cli.main import cli\n"
        f"for arguments in (['--help'], ['scan', {str(spiked)!r}]):\n"
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
