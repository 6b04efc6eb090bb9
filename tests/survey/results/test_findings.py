"""What is told of models and weights by the files of a survey: what became of each, where they sit, what is left."""

from dataclasses import asdict

import pytest
from surveys import job_of, outlier, scanned, survey_in, unit_of, verified, weight

from analyzer.base.errors import SurveyError
from analyzer.survey.results import findings
from analyzer.survey.results.findings import find, weights_of
from analyzer.survey.store import RESULT
from analyzer.survey.units import Job, pin_unit

JOB = job_of("verify")


def test_each_model_counts_once_by_what_became_of_it(tmp_path):
    results = {
        "o/tree-1b": verified([weight(1, 2, 3, 4.0, effect="inert"), weight(1, 2, 4, 5.0)]),
        "o/tree-2b": verified([weight(1, 2, 3, 4.0, effect="inert")]),
        "o/stone-1b": verified([weight(1, 2, 3, 4.0, effect=None)]),
        "o/stone-2b": verified([weight(1, 2, 3, 4.0, status="rejected", effect="inert")]),
        "o/stone-3b": verified([]),
    }
    failures = {"o/tree-3b": ("timeout", "too long"), "o/tree-4b": None}
    folder = survey_in(tmp_path, JOB, results, failures)
    found = find(folder.root)
    assert found.outcomes == {"critical": 1, "inert": 1, "unmeasured": 1, "none": 2, "failed": 1, "missing": 1}
    assert found.families == {
        "tree": {"critical": 1, "inert": 1, "failed": 1, "missing": 1},
        "stone": {"unmeasured": 1, "none": 2},
    }
    assert (found.models, found.ran, found.with_weights, found.sampled) == (7, 5, 4, 4)
    assert found.none == ["o/stone-2b", "o/stone-3b"]
    assert found.failures == {"timeout": [("o/tree-3b", "verify", "too long")]}
    assert [each.kind for each in found.weights] == ["unmeasured", "candidate", "inert", "critical", "inert"]


def test_where_a_weight_is_and_how_it_ranks():
    outliers = {
        "magnitude": [outlier(1, 0, 0, 0, 9.0), outlier(2, 5, 3, 7, -4.0)],
        "gain": [outlier(1, 10, 19, 1, 2.0), outlier(2, 5, 3, 8, 1.0)],
    }
    judged = [
        weight(5, 3, 7, -4.0, static_rank=2),
        weight(10, 19, 1, 2.0, static_rank=99, status="coincident", effect="inert", zeroed_with=6),
        weight(0, 4, 4, 0.5, static_rank=None, reason="latent"),
    ]
    one, two, three = weights_of("o/m", verified(judged, **outliers), "magnitude")
    assert asdict(one) == {
        "model": "o/m", "family": "m", "kind": "critical", "place": "5,3,7", "row": 3, "depth": 0.5, "across": 3.5 / 20,
        "value": -4.0, "rank": 2, "gain_rank": 3, "zscore": 40.0, "row_ratio": 28.0, "share": 0.5, "delta": 1.0,
        "delta_low": 0.9, "delta_high": 1.1, "zeroed_with": None,
    }  # fmt: skip
    assert one.magnitude == 4.0
    assert (two.kind, two.depth, two.rank, two.gain_rank, two.zscore, two.zeroed_with) == (
        "candidate",
        1.0,
        99,
        1,
        20,
        6,
    )
    assert (three.depth, three.across, three.rank, three.gain_rank, three.zscore) == (0.0, None, None, 3, None)


def test_sizes_that_are_not_known_are_no_places():
    result = {"super_weights": [weight(5, 3, 7, 1.0, delta=None)]}  # as with early_stop
    (found,) = weights_of("o/m", result, "magnitude")
    assert (found.depth, found.across, found.gain_rank, found.zscore, found.row_ratio) == (None,) * 5
    assert found.delta is None


@pytest.mark.parametrize(("score", "ranks"), [("magnitude", (1, None)), ("gain", (None, 1))])
def test_of_a_scan_the_first_outlier_is_told(score, ranks):
    (found,) = weights_of("o/m", scanned([outlier(1, 0, 1, 2, -3.0), outlier(2, 0, 1, 3, 2.0)]), score)
    assert (found.kind, found.place, found.value, found.zscore) == ("outlier", "0,1,2", -3.0, 30.0)
    assert (found.rank, found.gain_rank) == ranks


def test_of_several_results_on_a_model_that_of_a_whole_run_by_the_newest_version_counts(tmp_path):
    old, new = (Job("verify", verify=JOB.verify, version=version) for version in ("0.9.0", "0.10.0"))
    early = job_of("verify", early_stop=True)
    jobs = {job: row for row, job in enumerate((job_of("scan"), early, new, old))}
    for job, row in jobs.items():
        found = scanned([outlier(1, 0, row, 0, 1.0)]) if job.do == "scan" else verified([weight(0, row, 0, 1.0)])
        survey_in(tmp_path, job, {"o/m": found})
    survey_in(tmp_path, job_of("analyze"), failures={"o/m": ("bug", "a bug")})
    found = find(tmp_path)
    assert [each.row for each in found.weights] == [jobs[new]]
    assert (found.models, found.beside, found.outcomes, found.failed) == (1, 3, {"critical": 1}, {"bug": 1})


def test_commits_of_a_model_and_names_that_cannot_be_opened_count_each(tmp_path):
    folder = survey_in(tmp_path, JOB, {"o/m": verified([])})
    other, gone = unit_of(JOB, "o/m", "b" * 40), pin_unit("o/gone")
    folder.save_job(JOB, [other, gone])
    folder.save_result(other, {"result": verified([weight(0, 0, 0, 1.0)])})
    folder.save_failure(gone, "gone", "there is no such model")
    found = find(tmp_path)
    assert found.outcomes == {"none": 1, "critical": 1, "failed": 1}
    assert found.failures == {"gone": [("o/gone", "pin", "there is no such model")]}


def test_what_is_kept_has_bounds_and_all_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(findings, "MAX_MODELS", 3)
    monkeypatch.setattr(findings, "MAX_WEIGHTS", 2)
    monkeypatch.setattr(findings, "MAX_LINES", 1)
    monkeypatch.setattr(findings, "MAX_NAMES", 1)
    names = [f"o/m{n}" for n in range(8)]
    folder = survey_in(
        tmp_path,
        JOB,
        {
            **{name: verified([weight(0, n, 0, 1.0) for n in range(3)]) for name in names},
            "o/n1": verified([]),
            "o/n2": verified([]),
        },
        {"o/f1": ("bug", "one"), "o/f2": ("bug", "two")},
    )
    found = find(folder.root)
    assert (found.outcomes, found.with_weights, found.sampled, found.cut) == (
        *({"critical": 8, "none": 2, "failed": 2}, 8, 3, 8),
    )
    kept = {each.model for each in found.weights}
    assert len(kept) == 3
    assert kept < set(names)
    assert len(found.weights) == 6
    assert (len(found.none), found.failures, found.failed) == (1, {"bug": [("o/f1", "verify", "one")]}, {"bug": 2})
    folder.path(unit_of(JOB, sorted(set(names) - kept)[0]), RESULT).unlink()
    assert {each.model for each in find(folder.root).weights} == kept  # who is kept depends on nobody else


@pytest.mark.parametrize("content", ['{"result": {"super_weights": [{"layer": 1}]}}', '{"result": null}', "{}"])
def test_a_broken_result_is_named(tmp_path, content):
    folder = survey_in(tmp_path, JOB, {"o/m": verified([])})
    path = folder.path(unit_of(JOB, "o/m"), RESULT)
    path.write_text(content)
    with pytest.raises(SurveyError, match="is not what a survey writes: delete it"):
        find(tmp_path)


def test_a_folder_without_a_survey_is_refused(tmp_path):
    with pytest.raises(SurveyError, match="is no survey's folder"):
        find(tmp_path)
