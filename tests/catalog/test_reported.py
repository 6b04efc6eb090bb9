"""What others report: merged without loss, and beside what an analysis finds."""

import pytest
from catalogs import NONE_FOUND, REPORTED, SOURCE, known_weight

from analyzer.catalog.report import render_agreement
from analyzer.catalog.reported import agreement, merged


def test_merging_loses_nothing_and_settles():
    other = {**SOURCE, "name": "Another"}
    better = {**SOURCE, "note": "Better."}
    once = merged(
        [{**REPORTED, "value": None}], [{**REPORTED, "sources": [other, better]}, {**REPORTED, "revision": "v2"}]
    )
    assert [(i["revision"], i["value"], i["sources"]) for i in once] == [
        (None, 4.5, [better, other]), ("v2", 4.5, [SOURCE]),
    ]  # fmt: skip
    assert merged(once, once) == once

    disputed = merged([REPORTED], [{**REPORTED, "value": -1.0, "sources": [other]}])
    assert [(i["standing"], i["value"], i["reason"]) for i in disputed] == [
        ("disputed", 4.5, "The sources give two values: 4.5 and -1.0."),
    ]  # fmt: skip
    assert disputed[0]["sources"] == [SOURCE, other]
    assert merged(disputed, [REPORTED]) == disputed


@pytest.mark.parametrize(
    ("item", "outcome", "sentence"),
    [
        (REPORTED, ("confirmed", True), "1,2,3: confirmed here (they name no revision)."),
        ({**REPORTED, "revision": "a" * 40}, ("confirmed", True), "1,2,3: confirmed here."),
        (
            {**REPORTED, "revision": "b" * 40},
            ("confirmed", True),
            "1,2,3: confirmed here (theirs is revision bbbbbbbbbbbb).",
        ),
        ({**REPORTED, "col": 4, "revision": "a" * 40}, (None, False), "1,2,4: not seen here."),
        (
            {**REPORTED, "col": 9, "revision": "a" * 40},
            ("coincident", False),
            "1,2,9: not confirmed here: it sits on the channel, but zeroing it does not take the activation away.",
        ),
        (
            {**REPORTED, "col": None, "revision": "a" * 40},
            ("confirmed", True),
            "1,2,any: confirmed here, by 1,2,3 and 1,2,5.",
        ),
        (
            {**REPORTED, "row": 6, "col": 1, "revision": "a" * 40},
            ("critical", True),
            "1,6,1: critical here, though not confirmed.",
        ),
        (
            {**REPORTED, "row": 6, "col": 2, "revision": "a" * 40},
            ("late", False),
            "1,6,2: not confirmed here: what it writes comes too near to the end to be a super activation.",
        ),
        ({**REPORTED, "row": 7, "col": None, "revision": "a" * 40}, (None, False), "1,7,any: not seen here."),
        (NONE_FOUND, (None, False), "Reported by A paper: none found; but found here."),
        ({**NONE_FOUND, "reason": "not published"}, (None, None), "not published; nothing to agree with."),
    ],
)
def test_an_analysis_says_whether_it_agrees(item, outcome, sentence):
    weights = [known_weight(1, 2, 3), known_weight(1, 2, 5), known_weight(1, 2, 9, "coincident")]
    weights += [known_weight(1, 6, 1, "rejected", "critical"), known_weight(1, 6, 2, "late")]
    (each,) = agreement({"commit": "a" * 40, "verdict": "found", "super_weights": weights}, [item])
    assert (each["here"], each["agrees"]) == outcome
    assert sentence in " ".join(render_agreement([each]).split())


def test_none_found_here_either_and_one_sentence_for_a_group():
    nothing = {"commit": "a" * 40, "verdict": "none", "super_weights": []}
    assert agreement(nothing, [NONE_FOUND])[0]["agrees"] is True
    assert render_agreement(agreement(nothing, [NONE_FOUND])) == "Reported by A paper: none found; none here either."
    at = {**REPORTED, "revision": "a" * 40}
    text = render_agreement(agreement(nothing, [{**at, "col": col} for col in range(6)]))
    assert text == ("Reported by A paper: 1,2,0; 1,2,1; 1,2,2; 1,2,3 and 2 more: not seen here.")
    assert render_agreement([]) == ""
