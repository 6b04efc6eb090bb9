"""A history as CSV, on one that is made up; comparisons as CSV: test_places.py, test_versions.py."""

from analyzer.diff.records import FollowedWeight, History, RevisionSummary
from analyzer.diff.reports.table import history_csv


def test_a_line_for_each_weight_and_revision():
    revisions = tuple(
        RevisionSummary(name, commit, ranked=2, shared=None, rank_correlation=None, bytes_read=1)
        for name, commit in (("=1+1", "a" * 40), ("v\x1b2", None))
    )
    weight = FollowedWeight("text", 1, None, 2, 3, "reported", values=(-0.5, None), ranks=(1, None), mlp=0)
    assert history_csv(History("m", "gain", revisions, (weight,))) == (
        "revision,commit,tower,layer,mlp,expert,row,col,known,rank,value\n"
        f"'=1+1,{'a' * 40},text,1,0,,2,3,reported,1,-0.5\n"
        "v\\x1b2,,text,1,0,,2,3,reported,,\n"
    )
