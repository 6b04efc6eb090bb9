"""What a survey's files become: the table, the catalog, and how far it is."""

import io
import json

import pyarrow.parquet as pq
import pytest
from catalogs import METHOD, entry

from analyzer.base.errors import CatalogError, SurveyError
from analyzer.catalog.files import read_documents
from analyzer.survey.results.collecting import TABLE, collect
from analyzer.survey.results.status import render_status, status_of
from analyzer.survey.results.table import COLUMNS, rows_of, write_rows
from analyzer.survey.store import Folder
from analyzer.survey.units import Failure, Job, Unit, pin_unit

JOB = Job("analyze")
WEIGHT = {"layer": 1, "row": 2, "col": 3, "value": 0.1, "status": "confirmed", "effect": "inert", "share": 0.5}


def unit(name, needs=10, job=JOB):
    return Unit(job.do, job.key, f"{name}@abc", name, "main", "abc", needs=needs)


def read(data):
    return pq.read_table(io.BytesIO(data)).to_pylist()


@pytest.fixture
def survey(tmp_path):
    """One that found something, one that found nothing, two that failed, and one that is missing."""
    folder = Folder(tmp_path / "survey")
    units = [unit(f"owner/{name}") for name in ("found", "none", "fails", "missing")]
    units += [pin_unit("owner/gone"), pin_unit("owner/back")]
    folder.save_job(JOB, units)
    found = {"verdict": "found", "super_weights": [WEIGHT, {**WEIGHT, "col": 4}], "entry": entry(model="owner/found")}
    folder.save_result(units[0], {"seconds": 5.0, "result": found})
    nothing = {"verdict": "none", "super_weights": [], "entry": entry(model="bad\nname", verdict="none")}
    folder.save_result(units[1], {"seconds": 6.0, "result": nothing})
    folder.save_failure(units[2], "timeout", "it took longer")
    folder.save_failure(units[4], "gone", "there is no such model")
    folder.save_result(units[5], {"result": {}})  # pinned since: its unit is another
    return folder


def test_a_table_has_what_was_found_and_what_failed(survey, tmp_path):
    table, collected = collect(survey.root, tmp_path / "catalog")
    assert (survey.root / TABLE).read_bytes() == table
    rows = read(table)
    assert list(rows[0]) == list(COLUMNS)
    assert [(r["model"], r["verdict"], r["col"], r["failure"]) for r in rows] == [
        ("owner/fails", None, None, "timeout"),
        ("owner/found", "found", 3, None),
        ("owner/found", "found", 4, None),
        ("owner/gone", None, None, "gone"),
        ("owner/none", "none", None, None),
    ]
    assert (collected.done, collected.failed, collected.missing, collected.rows) == (
        *(2, {"gone": 1, "timeout": 1}, 1, 5),
    )
    (document,) = read_documents(tmp_path / "catalog").values()
    assert [each["model"] for each in document["entries"]] == ["owner/found"]
    assert collected.entries == 1
    assert [line.startswith("no catalog may hold the name bad\\nname") for line in collected.refused] == [True]


def test_what_the_catalog_has_of_a_newer_version_stays_there(survey, tmp_path):
    """Also where both are of one survey, which a newer version has gone on with."""
    for version in ("0.9", "0.10", "0.1"):
        job = Job("analyze", version=version)
        made = entry(model="owner/found", method={**METHOD, "version": version})
        survey.save_job(job, [unit("owner/found", job=job)])
        survey.save_result(unit("owner/found", job=job), {"result": {"super_weights": [], "entry": made}})
    collect(survey.root, tmp_path / "catalog")
    _, collected = collect(survey.root, tmp_path / "catalog")
    (document,) = read_documents(tmp_path / "catalog").values()
    assert [each["method"]["version"] for each in document["entries"]] == ["1"]
    assert (collected.entries, collected.older) == (1, 3)


def test_an_entry_that_is_none_leaves_the_catalog_as_it_was(survey, tmp_path):
    collect(survey.root, tmp_path / "catalog")
    (path,) = (each for each in (tmp_path / "catalog").glob("*.json") if each.name != "schema.json")
    before, method = path.read_bytes(), {key: value for key, value in METHOD.items() if key != "version"}
    survey.save_result(
        unit("owner/found"), {"result": {"entry": {"model": "owner/found", "commit": "b" * 40, "method": method}}}
    )
    with pytest.raises(CatalogError, match=r"refusing to write .* owner/found: "):
        collect(survey.root, tmp_path / "catalog")
    assert path.read_bytes() == before


def test_a_catalog_that_takes_nothing_does_not_take_the_table_along(survey, tmp_path):
    (tmp_path / "catalog").touch()
    with pytest.raises(CatalogError, match=r"is a file: give a folder for the catalog \(--catalog\)"):
        collect(survey.root, tmp_path / "catalog")
    assert len(read((survey.root / TABLE).read_bytes())) == 5


def test_neither_times_nor_attempts_change_it(survey):
    before, _ = collect(survey.root, None)
    done, failed = unit("owner/found"), unit("owner/fails")
    survey.save_result(done, {"seconds": 500.0, "result": survey.result(done)["result"]})
    assert survey.save_failure(failed, "timeout", "it took longer").attempts == 2
    assert collect(survey.root, None)[0] == before


def test_how_far_it_is(survey):
    claim = survey.claim(unit("owner/missing"))
    status = status_of(survey.root)
    assert (status.total, status.done, status.missing, status.failed) == (5, 2, 1, {"gone": 1, "timeout": 1})
    assert (status.bytes_done, status.bytes_total) == (20, 40)
    assert [each["model"] for each in status.in_hand] == ["owner/missing"]
    lines = render_status(status, survey.root).split("\n\n")
    assert lines[0].endswith("2 of 5 units done (20 B of 40 B), 2 failed (1 gone, 1 timeout), 1 missing, 1 in hand")
    assert lines[1] == "In hand: owner/missing"
    assert lines[2].splitlines() == [
        "timeout  owner/fails: it took longer",
        "gone     owner/gone: there is no such model",
    ]
    claim.release()
    assert status_of(survey.root).in_hand == ()


def test_a_broken_result_is_named(survey):
    path = survey.path(unit("owner/found"), ".json")
    path.write_text("{")
    with pytest.raises(SurveyError, match="is not JSON: delete it"):
        collect(survey.root, None)


@pytest.mark.parametrize("result", [{"outliers": 5}, {"outliers": [7]}, {"entry": 5}, {"entry": {}}])
def test_a_result_of_another_form_is_named(survey, tmp_path, result):
    survey.save_result(unit("owner/found"), {"result": result})
    with pytest.raises(SurveyError, match=r"\.json is not what a survey writes: delete it"):
        collect(survey.root, tmp_path / "catalog")


def test_what_no_column_can_hold_is_named():
    result = {"outliers": [{"layer": 1 << 40}]}
    with pytest.raises(SurveyError, match="a result has a layer that no table can hold"):
        write_rows(rows_of(unit("owner/name", job=Job("scan")), Job("scan"), result, None))


def test_a_failure_is_a_row_with_its_line():
    (row,) = rows_of(unit("owner/name"), JOB, None, Failure("memory", "too much", 3))
    assert (row["failure"], row["line"], row["do"], row["commit"]) == ("memory", "too much", "analyze", "abc")
    assert json.dumps(row).count("3") == 0
