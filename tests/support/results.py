"""Made-up results, for the tests of what is made of them."""

from analyzer.scan.records import Outlier, ScanResult

NOTHING = {"experts": None, "towers": (), "encodings": {}, "unread": (), "notes": (), "tensors": ()}


def scan_result(weights, *, model="m", hidden=16, revision=None, layers=4):
    """Return a scan with these (layer, row, col, value), ranked in their order."""
    outliers = tuple(
        Outlier(rank, None, layer, None, None, None, row, col, value, abs(value), 3.0, "t")
        for rank, (layer, row, col, value) in enumerate(weights, start=1)
    )
    return ScanResult(
        model, revision, None, "llama", layers, hidden, 32, "magnitude", 1, 1, 0.1, **NOTHING, outliers=outliers
    )
