"""Options that commands share, and the records that they come to a command as; wrong ones: test_commands.py."""

import click
import pytest
from click.testing import CliRunner

from analyzer.cli.options import check_text, scan_options, score_option, top_option, verify_options
from analyzer.scan.records import ScanSettings
from analyzer.verify.settings import VerifySettings, bundled_prompts, evaluation_text


def given(decorator, *arguments):
    """Return what a command with these options is called with."""
    calls = []

    @click.command()
    @click.option("--other", default="x")
    @decorator
    def command(**values):
        calls.append(values)

    result = CliRunner().invoke(command, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return calls[0]


def test_options_of_a_scan_are_one_record():
    options = scan_options(top_option, score_option, name="scan")
    assert given(options, "--top", 3) == {"other": "x", "scan": ScanSettings(top=3)}
    assert given(options, "--score", "gain", "--other", "y") == {"other": "y", "scan": ScanSettings(score="gain")}


def test_options_of_a_verification_are_one_record(tmp_path):
    assert given(verify_options()) == {"other": "x", "settings": VerifySettings()}
    (tmp_path / "text").write_text("A text.")
    (tmp_path / "prompts").write_text("One.\n\nTwo.\n")
    arguments = ["--text", tmp_path / "text", "--prompts", tmp_path / "prompts", "--device", "cuda:1", "--prompt", "P."]
    assert given(verify_options(), *arguments)["settings"] == VerifySettings(
        prompt="P.", text="A text.", prompts=("One.", "Two."), device="cuda:1"
    )
    assert VerifySettings().text == evaluation_text()
    assert bundled_prompts()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("note", None, None),
        ("note", "Größe 1", None),
        ("prompt", "two\nlines", None),
        ("prompt", "\ud800", "is not text in UTF-8"),
        ("note", "two\nlines", "must be one line"),
        ("note", "x" * 2001, "at most 2000 printable"),
    ],
)
def test_texts_that_can_be_stored_and_shown(name, value, said):
    option = click.Option([f"--{name}"])
    if said is None:
        assert check_text(None, option, value) == value
    else:
        with pytest.raises(click.BadParameter, match=said):
            check_text(None, option, value)
