"""What a person reads of a scan."""

from results import NOTHING

from analyzer.scan.records import Outlier, ScanResult
from analyzer.scan.report import render_scan


def scanned(score, *outliers):
    return ScanResult("m", None, None, "llama", 4, 16, 32, score, 10, 20, 0.1, **NOTHING, outliers=outliers)


def test_a_scan_by_gain_shows_the_gain():
    text = render_scan(scanned("gain", Outlier(1, None, 2, None, None, None, 3, 4, -5.0, 43.21, 7.25, "t")))
    assert "Largest gain: layer 2, row 3, col 4 = -5, 43.2 times the norm of its layer's median row" in text
    assert ["rank", "layer", "row", "col", "value", "gain", "z-score"] in [line.split() for line in text.splitlines()]
    assert ["1", "2", "3", "4", "-5", "43.2", "7.2"] in [line.split() for line in text.splitlines()]


def test_towers_and_experts_have_columns_where_there_are_any():
    outliers = [
        Outlier(1, "vision", 2, None, None, None, 3, 4, -5.0, 5.0, 7.0, "t"),
        Outlier(2, None, 2, None, None, 6, 3, 4, 4.0, 4.0, 6.0, "t"),
    ]
    text = render_scan(scanned("magnitude", *outliers))
    cells = [line.split() for line in text.splitlines()]
    assert "Largest weight: vision layer 2, row 3, col 4 = -5" in text
    assert ["rank", "tower", "layer", "expert", "row", "col", "value", "z-score"] in cells
    assert ["1", "vision", "2", "-", "3", "4", "-5", "7.0"] in cells
    assert ["2", "-", "2", "6", "3", "4", "+4", "6.0"] in cells
