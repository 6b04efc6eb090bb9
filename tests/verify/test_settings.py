"""What a verification is asked for: bundled texts and prompts, and those of files."""

import pytest

from analyzer.base.errors import SettingsError, SourceError
from analyzer.verify.settings import (
    MAX_TEXT_BYTES,
    Thresholds,
    VerifySettings,
    bundled_prompts,
    evaluation_text,
    read_prompts,
    read_text,
)


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


def test_what_a_verification_may_be_asked_for():
    assert VerifySettings().text == evaluation_text()
    VerifySettings(prompts=(), early_stop=True, tower="encoder")
    VerifySettings(device="cuda:1", dtype="float16", thresholds=Thresholds(share=1))


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ({"prompt": None}, "prompt is None: give text that UTF-8 can store"),
        ({"prompt": "\ud800"}, r"prompt is '\ud800': give text that UTF-8 can store"),
        ({"text": b"x"}, "text is b'x': give text that UTF-8 can store"),
        ({"prompts": "one"}, "prompts is 'one': give several texts, or None for the bundled ones"),
        ({"prompts": (1,)}, "prompts is (1,): give several texts, or None for the bundled ones"),
        ({"tower": 1}, "tower is 1: give the name of a tower, or None"),
        ({"device": "zap"}, "device is 'zap': give auto, cpu, cuda, cuda:N or mps"),
        ({"dtype": "float64"}, "dtype is 'float64': give auto, float32, bfloat16 or float16"),
        ({"thresholds": None}, "thresholds is None: give Thresholds"),
    ],
)
def test_any_other_value_is_one_line(setting, line):
    with pytest.raises(SettingsError) as caught:
        VerifySettings(**setting)
    assert str(caught.value) == line


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "1", None])
def test_a_threshold_is_a_number_larger_than_zero(value):
    for name in vars(Thresholds()):
        with pytest.raises(SettingsError, match=f"^{name} is .*: give a number larger than 0$"):
            Thresholds(**{name: value})


def test_blocks_are_counted_in_whole_numbers():
    with pytest.raises(SettingsError, match=r"^persists is 1\.5: give a whole number of blocks$"):
        Thresholds(persists=1.5)
