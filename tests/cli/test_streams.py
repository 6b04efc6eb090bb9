"""Standard streams that are closed, full, or read by nobody: the exit status, and never a word on the wrong stream."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT

pytestmark = pytest.mark.skipif(os.name == "nt", reason="a shell of POSIX")
OF_FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")


def shell(line, **places):
    """Run a line of bash, in which `superweight` is the command; returns its output and the status of the command."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable, **places}
    script = f'superweight() {{ "$PYTHON" -m analyzer "$@"; }}\n{line}\necho "status ${{PIPESTATUS[0]}}" >&3'
    reading, writing = os.pipe()
    with os.fdopen(reading) as status:
        command = ["bash", "-c", script.replace(">&3", f">&{writing}")]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, pass_fds=[writing])
        os.close(writing)
        return done.stdout, done.stderr, int(status.read().removeprefix("status "))


@pytest.fixture
def model(spiked):
    return str(spiked)


def test_a_reader_that_has_gone_is_no_error(model):
    for arguments in ('scan "$M"', 'scan "$M" --json --top 2000', "--help", "catalog list"):
        assert shell(f"superweight {arguments} | true", M=model) == ("", "", 0)


def test_an_error_is_one_even_where_nobody_reads_it(model):
    assert shell("superweight scan /nowhere 2>&1 >/dev/null | true") == ("", "", 1)
    assert shell("superweight scan /nowhere 2>&-") == ("", "", 1)
    assert shell("superweight scan 2>&-") == ("", "", 2)


@pytest.mark.parametrize("stderr", ["2>&-", pytest.param("2>/dev/full", marks=OF_FULL)])
def test_a_stderr_that_takes_nothing_changes_nothing_else(model, stderr):
    expected = shell('superweight scan "$M" --quiet 2>/dev/null', M=model)[0]
    out, err, status = shell(f'superweight scan "$M" {stderr}', M=model)
    assert (out, err, status) == (expected, "", 0)
    assert out.startswith("tiny: 3 down projections")


def test_a_closed_stdout_is_one_line_on_stderr(model):
    line = "error: cannot write the output: Bad file descriptor\n"
    assert shell('superweight scan "$M" >&-', M=model) == ("", line, 1)
    assert shell('superweight scan "$M" >&- 2>&- <&-', M=model) == ("", "", 1)


@OF_FULL
def test_a_stdout_that_is_full_is_one_line(model):
    line = "error: cannot write the output: No space left on device\n"
    assert shell('superweight scan "$M" --json > /dev/full', M=model) == ("", line, 1)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_stdout_that_is_full_in_the_midst_of_it_is_one_line(model, tmp_path, unbuffered):
    line = f'cd {tmp_path}; ulimit -f 1; superweight scan "$M" --json --top 500 > result.json'
    assert shell(line, M=model, PYTHONUNBUFFERED=unbuffered) == (
        "",
        "error: cannot write the output: File too large\n",
        1,
    )


def test_a_current_folder_that_is_gone_is_said_by_every_command(model, tmp_path):
    line = "error: the current folder is gone: change into another\n"
    for arguments in ('scan "$M"', 'verify "$M" --early-stop', "catalog list"):
        gone = f'mkdir "$G"; cd "$G"; rmdir "$G"; superweight {arguments}'
        assert shell(gone, M=model, G=str(tmp_path / "gone")) == ("", line, 1)


ANALYSIS = """
import sys
import analyzer.analyze.analyzing as a, analyzer.catalog.files as f, analyzer.catalog.reported as r
import analyzer.verify.report as v, analyzer.cli.analyze as c, analyzer.__main__ as m
from analyzer.base.errors import CatalogError
from types import SimpleNamespace
def full(*_): raise CatalogError("cannot write x.json: the disk is full")
a.analyze_model = lambda *_, **__: SimpleNamespace(entry={}, verified=None, scanned=None)
f.save_entry, r.agreement, v.render_verify = full, lambda *_: [], lambda *_: "the result " * 20_000
sys.argv = ["superweight", "analyze", sys.argv[1], "--catalog", sys.argv[2]]
m.main()
"""


@pytest.mark.parametrize("reader", ["cat", "true"])
def test_a_catalog_that_cannot_be_written_costs_no_result_and_is_said_whoever_reads(model, tmp_path, reader):
    places = {"M": model, "CATALOG": str(tmp_path / "catalog"), "SCRIPT": ANALYSIS}
    out, err, status = shell(f'"$PYTHON" -c "$SCRIPT" "$M" "$CATALOG" | {reader}', **places)
    assert (err, status) == ("error: cannot write x.json: the disk is full\n", 1)
    assert out.startswith("the result the result") == (reader == "cat")
