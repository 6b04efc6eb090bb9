"""What settings may be: what they may not is one line."""

from __future__ import annotations

import re

from analyzer.base.errors import SettingsError, shown

DEVICE = re.compile(r"auto|cpu|mps|cuda(:(0|[1-9][0-9]?))?")
DTYPES = ("auto", "float32", "bfloat16", "float16")
SCORES = ("magnitude", "gain")


def require(fits: bool, name: str, value: object, expected: str) -> None:
    """Raise SettingsError where a setting's value does not fit."""
    if not fits:
        raise SettingsError(f"{name} is {shown(repr(value), 80)}: give {expected}")


def check_device(device: object) -> None:
    """Raise SettingsError where this is no device's name."""
    fits = isinstance(device, str) and DEVICE.fullmatch(device) is not None
    require(fits, "device", device, "auto, cpu, cuda, cuda:N or mps")


def check_dtype(dtype: object) -> None:
    """Raise SettingsError where this is no name of floats that a model can run in."""
    require(dtype in DTYPES, "dtype", dtype, "auto, float32, bfloat16 or float16")


def is_text(value: object) -> bool:
    """Tell whether this is text that UTF-8 can store, which has no half characters."""
    return isinstance(value, str) and not re.search(r"[\ud800-\udfff]", value)
