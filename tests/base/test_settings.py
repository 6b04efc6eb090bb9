"""What settings may be: what they may not is one line."""

import pytest

from analyzer.base.errors import SettingsError
from analyzer.base.settings import check_device, check_dtype, is_text, require


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:0", "cuda:12", "mps"])
def test_names_of_devices(name):
    check_device(name)


@pytest.mark.parametrize("name", ["zap", "", "xpu", "cpu:1", "cuda:", "cuda:01", "cuda:100", "cpu\n", 0, None])
def test_what_names_no_device(name):
    with pytest.raises(SettingsError, match=r"device is .*: give auto, cpu, cuda, cuda:N or mps$"):
        check_device(name)


def test_names_of_floats():
    for name in ("auto", "float32", "bfloat16", "float16"):
        check_dtype(name)
    for name in ("zap", "float64", "", None):
        with pytest.raises(SettingsError, match=r"dtype is .*: give auto, float32, bfloat16 or float16$"):
            check_dtype(name)


def test_text_is_what_utf8_can_store():
    assert is_text("")
    assert is_text("Größe 🎈\n")
    assert not any(map(is_text, ["\ud800", "a\udfff", b"bytes", None]))


def test_whatever_the_value_the_message_is_one_short_line():
    require(True, "top", "x" * 1000, "less")
    with pytest.raises(SettingsError) as caught:
        require(False, "top", "\x1b[2J\n" * 1000, "less")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 120
