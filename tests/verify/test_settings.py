"""What a verification is asked for: bundled texts and prompts, and those of files."""

import pytest

from analyzer.base.errors import SourceError
from analyzer.verify.settings import MAX_TEXT_BYTES, bundled_prompts, evaluation_text, read_prompts, read_text


def test_the_evaluation_text_has_the_length_that_is_said():
    assert 1500 < len(evaluation_text().split()) < 1800


def test_the_bundled_prompts_are_a_dozen_lines_that_differ():
    prompts = bundled_prompts()
    assert len(prompts) == len(set(prompts)) == 12
    assert all(prompt == prompt.strip() and len(prompt.split()) > 2 for prompt in prompts)


def test_prompts_are_the_lines_of_a_file(tmp_path):
    (tmp_path / "prompts.txt").write_text("  One two.\n\n\tGrüße an alle. \r\nlast", "utf-8")
    assert read_prompts(tmp_path / "prompts.txt") == ("One two.", "Grüße an alle.", "last")


@pytest.mark.parametrize(("text", "count"), [("", 0), (" \n\n", 0), ("a\n" * 1001, 1001)])
def test_no_prompts_or_too_many_are_refused(tmp_path, text, count):
    (tmp_path / "prompts.txt").write_text(text)
    with pytest.raises(SourceError, match=f"has {count} prompts: give 1 to 1000, one a line"):
        read_prompts(tmp_path / "prompts.txt")


def test_a_text_is_read_as_it_is(tmp_path):
    (tmp_path / "text.txt").write_bytes("Größe\r\n".encode())
    assert read_text(tmp_path / "text.txt") == "Größe\n"


def test_what_is_no_text_is_refused(tmp_path):
    (tmp_path / "text.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(SourceError, match=r"cannot read .*text\.txt as UTF-8 text"):
        read_text(tmp_path / "text.txt")
    with (tmp_path / "long.txt").open("wb") as file:
        file.truncate(MAX_TEXT_BYTES + 1)
    for path in (tmp_path / "long.txt", tmp_path, tmp_path / "nowhere.txt"):
        with pytest.raises(SourceError, match="is not a text file of at most 10,000,000 bytes"):
            read_text(path)
