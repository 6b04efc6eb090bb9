"""What a scan may be asked for."""

import pytest

from analyzer.base.errors import SettingsError
from analyzer.scan.records import ScanSettings


def test_what_a_scan_may_be_asked_for():
    ScanSettings()
    ScanSettings(score="gain", top=1, layers=(range(2), range(4, 5)), pattern="*.down.weight", use_cache=False)


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ({"score": "zap"}, "score is 'zap': give magnitude or gain"),
        ({"score": None}, "score is None: give magnitude or gain"),
        ({"top": 0}, "top is 0: give a whole number of 1 or more"),
        ({"top": -3}, "top is -3: give a whole number of 1 or more"),
        ({"top": 2.5}, "top is 2.5: give a whole number of 1 or more"),
        ({"layers": (0, 1)}, "layers is (0, 1): give ranges, or None for all"),
        ({"layers": range(2)}, "layers is range(0, 2): give ranges, or None for all"),
        ({"layers": ()}, "layers is (): give ranges, or None for all"),
        ({"pattern": 5}, "pattern is 5: give text, or None"),
    ],
)
def test_any_other_value_is_one_line(setting, line):
    with pytest.raises(SettingsError) as caught:
        ScanSettings(**setting)
    assert str(caught.value) == line
