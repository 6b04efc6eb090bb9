"""The check of a machine with a GPU, where there is none: what it needs, and what it refuses in a line."""

import os
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import gpu_needs
import pytest
import torch

ROOT = Path(__file__).parents[2]
USAGE = "usage: tools/gpu_check.sh [--sample DIR] [--wheels DIR] [--cpu]"


def check(*options, **env):
    environment = {**os.environ, "PYTHON": sys.executable, **env}
    command = ["sh", str(ROOT / "tools" / "gpu_check.sh"), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--zap"], f"--zap is no option; {USAGE}"),
        (["--cpu", "more"], f"more is no option; {USAGE}"),
        (["--sample"], f"--sample needs a folder; {USAGE}"),
        (["--wheels", "/nowhere"], f"--wheels: there is no folder /nowhere; {USAGE}"),
        (["--sample", ROOT / "docs"], f"--sample: {ROOT / 'docs'} holds no model: there is no config.json"),
    ],
)
def test_an_option_that_is_wrong_is_one_line(options, line):
    done = check(*options)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {line}\n")


def test_a_python_that_is_not_there_is_one_line():
    done = check("--cpu", PYTHON="no-such-python")
    assert (done.returncode, done.stderr) == (1, "error: there is no no-such-python: set PYTHON\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_machine_without_a_gpu_is_one_line():
    done = check()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: PyTorch sees no CUDA device: --cpu tries the script without one\n"


def test_help_says_what_it_does():
    done = check("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--wheels DIR" in done.stdout
    assert not any(line.startswith("#") for line in done.stdout.splitlines())


def test_what_is_needed_is_named_as_the_package_has_it():
    needed = list(gpu_needs.needed())
    assert {each.partition(">=")[0] for each in needed} == gpu_needs.NEEDED
    assert [each for each in needed if gpu_needs.is_lacking(each)] == []
    known = {each.partition(";")[0].strip().replace("-", "_") for each in requires("superweight-analyzer") or ()}
    assert {each.replace("-", "_") for each in needed} <= known


@pytest.mark.parametrize(
    ("here", "least", "lacking"),
    [("2.6.0", "2.6", False), ("2.13.0+cpu", "2.6", False), ("2.5.1", "2.6", True), ("1.10", "1.9", False)],
)
def test_a_version_that_is_too_old_is_lacking(monkeypatch, here, least, lacking):
    monkeypatch.setattr(gpu_needs, "version", lambda _: here)
    assert gpu_needs.is_lacking(f"torch>={least}") == lacking


def test_a_package_that_is_not_here_is_lacking():
    assert gpu_needs.is_lacking("no-such-package-of-anybody>=1")
