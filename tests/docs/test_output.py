"""What the guide shows of a command's output is what the command prints, shortened only where it says so."""

import json
import shlex

import pytest
from bert_versions import versions_folder
from click.testing import CliRunner
from guide_pages import PAGES, ROOT, consoles
from sample_result import RESULT, stored_sample

from analyzer.base.records import plain
from analyzer.cli.main import cli

ROWS, SECTIONS = "  …", "…"  # a line that stands for rows of a table, and one that stands for whole sections
OF_THE_SAMPLE = 'superweight analyze "$(.venv/bin/python tools/sample_model.py)"'
OF_VERSIONS = "superweight diff bert_"
SHOWN = [(page.name, command, text) for page in PAGES for command, text in consoles(page)]


def is_shortened(shown, printed, *, begins=True):
    """Return whether lines are these printed ones, but for what the two marks stand for: at least a line each.

    Rows are followed by lines of the same table or by its end; sections are whole, from an empty line to another.
    `begins` says that a section begins here.
    """
    if not shown:
        return not printed
    line, rest = shown[0], shown[1:]
    if line == ROWS:
        ends = range(1, (printed.index("") if "" in printed else len(printed)) + 1)
    elif line == SECTIONS:
        ends = [place for place, after in enumerate([*printed, ""]) if begins and place and not after]
    else:
        return printed[:1] == [line] and is_shortened(rest, printed[1:], begins=not line)
    return any(is_shortened(rest, printed[end:], begins=False) for end in ends)


@pytest.mark.parametrize(
    ("shown", "is_so"),
    [
        ("a 1 2 3 _ b", True),
        ("a 1   … 3 _ b", True),
        ("a   … _ b", True),
        ("a … _ b", False),  # in the middle of a section
        ("a 1 2 3 … b", False),
        ("… _ b", True),
        ("a 1 2 3 _ …", True),
        ("…", True),
        ("a 1   … 2 3 _ b", False),  # stands for nothing
        ("a 1   … b", False),  # hides a section
        ("a 1 2 3 _ b _", False),
        ("a 1 2", False),
        ("a 1 3 _ b", False),
        ("… _ b   …", False),
    ],
)
def test_only_what_is_marked_may_be_left_out(shown, is_so):
    lines = shown.replace("  …", "ROWS").split()
    lines = [{"_": "", "ROWS": ROWS}.get(line, line) for line in lines]
    assert is_shortened(lines, ["a", "1", "2", "3", "", "b"]) == is_so


def printed_by(command, monkeypatch):
    """Return what a command prints, run where the guide runs it."""
    monkeypatch.chdir(versions_folder() if command.startswith(OF_VERSIONS) else ROOT)
    result = CliRunner().invoke(cli, shlex.split(command)[1:])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(("page", "command", "text"), SHOWN)
def test_shown_output_is_what_is_printed(monkeypatch, page, command, text):
    if command.startswith("cd "):
        assert text == ""
        return
    if command.startswith(OF_VERSIONS) and not versions_folder().exists():
        pytest.skip("the versions are not built: tools/bert_versions.py")
    printed = stored_sample().text if command == OF_THE_SAMPLE else printed_by(command, monkeypatch)
    lines = [part.strip("\n").split("\n") for part in (text, printed)]
    assert is_shortened(*lines), f"{page} shows of `{command}` what it does not print; it prints\n{printed}"


def test_the_readme_shows_the_finding_of_the_sample_model():
    assert ("README.md", OF_THE_SAMPLE) in [(page, command) for page, command, _ in SHOWN]


def test_the_stored_result_is_read_as_it_was_written():
    document = json.loads(RESULT.read_text("utf-8"))
    assert plain(stored_sample().verified) == {
        key: value
        for key, value in document.items()
        if key not in ("outliers", "unread", "agrees_with_reported", "catalog_file")
    }
