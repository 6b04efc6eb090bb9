"""What a person reads of a scan."""

from results import NOTHING

from analyzer.base.records import Unread
from analyzer.scan.records import Outlier, ScanResult, TensorStatistics
from analyzer.scan.report import render_scan


def scanned(score, *outliers, **said):
    return ScanResult("m", None, None, "llama", 4, 16, 32, score, 10, 20, 0.1, **{**NOTHING, **said}, outliers=outliers)


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


def tensor(layer, tower=None, mlp=None, expert=None):
    return TensorStatistics("t", tower, layer, mlp, None, expert, (16, 32), None, "BF16", 0.1, 0.2, 0.3, 0)


def first_line(**said):
    return render_scan(scanned("magnitude", **said)).splitlines()[0]


def test_the_first_line_says_what_was_read():
    tensors = (tensor(0), tensor(1), tensor(1, expert=0), tensor(1, expert=1))
    assert first_line(tensors=tensors, encodings={"BF16": 4}, experts=2) == (
        "m: 4 down projections of 2 layers, 2 experts, BF16, 10 B read (all weights: 20 B); nothing left out"
    )


def test_the_first_line_names_towers_and_encodings():
    tensors = (tensor(0, "language"), tensor(0, "vision"), tensor(1, "vision"))
    encodings = {"BF16": 2, "MXFP4": 1}
    assert first_line(tensors=tensors, encodings=encodings, towers=("language", "vision")) == (
        "m: 3 down projections of 3 layers, 2 towers (language, vision), BF16 and MXFP4, 10 B read "
        "(all weights: 20 B); nothing left out"
    )
    main = first_line(tensors=(tensor(0), tensor(0, "mtp")), encodings={"BF16": 2}, towers=("mtp",))
    assert "2 towers (main, mtp)" in main


def test_the_first_line_says_what_was_left_out():
    unread = (Unread("a.*", 1200, (3, 4), "why"), Unread("b.*", 1, None, "why"))
    assert first_line(tensors=(tensor(0),), encodings={"BF16": 1}, unread=unread).endswith("; 1,201 not read")


def test_mlps_have_a_column_where_there_are_several():
    outliers = [Outlier(1, None, 2, 1, None, None, 3, 4, -5.0, 5.0, 7.0, "t")]
    text = render_scan(scanned("magnitude", *outliers))
    assert "Largest weight: layer 2, MLP 1, row 3, col 4 = -5" in " ".join(text.split())
    assert ["1", "2", "1", "3", "4", "-5", "7.0"] in [line.split() for line in text.splitlines()]
