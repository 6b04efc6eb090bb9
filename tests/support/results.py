"""Made-up results, for the tests of what is made of them."""

from dataclasses import fields

import numpy as np

from analyzer.scan.outliers import TensorSummary
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


SUMMARY = TensorSummary(
    mean_abs=0.1,
    std=1 / 3,
    max_abs=2.5,
    nonfinite=2,
    places=np.array([7, 2**40, 0], np.int64),
    values=np.array([-2.5, 0.1, 5e-324]),
    scores=np.array([2.5, 1e300, 5e-324]),
)


def same(one, other):
    return all(
        np.array_equal(getattr(one, f.name), getattr(other, f.name), equal_nan=True)
        and np.asarray(getattr(one, f.name)).dtype == np.asarray(getattr(other, f.name)).dtype
        for f in fields(TensorSummary)
    )
