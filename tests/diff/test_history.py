"""A model's outliers through its revisions: which are followed, and what each revision has of them."""

import pytest
from results import scan_result

from analyzer.base.records import Coordinate
from analyzer.diff.history import follow, followed
from analyzer.diff.records import RevisionSummary

A, B, C, D, E = (Coordinate(layer, None, 1, 2) for layer in range(5))


def ranked(*coordinates):
    return scan_result([(c.layer, c.row, c.col, 9.0 - rank) for rank, c in enumerate(coordinates)], layers=5)


SCANS = [ranked(A, B, C, D), ranked(B, A, D, C), ranked(E, B, A, D)]
VALUES = [dict.fromkeys((A, B, C, D, E), float(number)) for number in range(3)]


def test_the_best_ranks_ever_reached_are_followed_and_later_ones_first():
    assert followed(SCANS, [], 3) == [E, B, A]  # each was first once
    assert followed(SCANS, [], 4) == [E, B, A, D]  # D and C were third
    assert followed(SCANS, [D], 2) == [D, E, B]


def test_values_ranks_and_how_the_rankings_differ():
    history = follow(SCANS, ["a", "b", "c"], {C: "reported"}, VALUES, 2)
    assert history.revisions == (
        RevisionSummary("a", None, 4, None, None, 1),
        RevisionSummary("b", None, 4, 4, pytest.approx(0.6), 1),  # 1 - 6 * 4 / (4 * 15)
        RevisionSummary("c", None, 4, 3, pytest.approx(1.0), 1),
    )
    assert [(w.coordinate, w.known, w.values, w.ranks) for w in history.weights] == [
        (C, "reported", (0.0, 1.0, 2.0), (3, 4, None)),
        (E, None, (0.0, 1.0, 2.0), (None, None, 1)),
        (B, None, (0.0, 1.0, 2.0), (2, 1, 2)),
    ]


def test_a_weight_that_a_revision_lacks_has_no_value_there_and_one_that_all_lack_is_left_out():
    values = [{A: 1.0}, {A: 1.0, B: 2.0}, {}]
    history = follow(SCANS, ["a", "b", "c"], {D: "reported"}, values, 3)
    assert [(w.coordinate, w.values) for w in history.weights] == [(B, (None, 2.0, None)), (A, (1.0, 1.0, None))]
