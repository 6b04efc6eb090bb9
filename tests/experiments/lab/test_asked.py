"""Which weights an experiment is about: those named, those of the catalog, those that a verification finds."""

from types import SimpleNamespace

import pytest
from catalogs import REPORTED, SOURCE, WEIGHT, entry
from models import PLANTED, random_llama, save, settings

from analyzer.base.errors import ArchitectureError, CatalogError, ForwardError, SettingsError
from analyzer.base.records import Coordinate
from analyzer.catalog.files import save_entry, save_reported
from analyzer.experiments import prune
from analyzer.experiments.lab.asked import MOST_WEIGHTS, Settings, weights_asked
from analyzer.source.folder import FolderSource


def silent(*_):
    pass


def asked(planted, **given):
    source = FolderSource(planted[0], model_id="me/model-1b")
    return weights_asked(source, Settings(**given), silent)


def weight(row, effect="critical", **more):
    return {**WEIGHT, "row": row, "effect": effect, **more}


def test_named_weights_go_before_all(planted, tmp_path):
    save_entry(tmp_path, "x", entry())
    named = Coordinate(1, None, 7, 8)
    assert asked(planted, weights=(named,), catalog=tmp_path) == ((named,), "named by the user")
    both, said = asked(planted, weights=(named,), weights_of="me/model-1b", catalog=tmp_path)
    assert both == (named, Coordinate(1, None, 2, 3))
    assert said == "named by the user, and what the catalog knows of me/model-1b"


def test_the_catalogs_verified_weights_the_critical_ones_of_them(planted, tmp_path):
    weights = [weight(row, "inert") for row in range(3)] + [weight(5), weight(6, loss_zeroed=3.0)]
    save_entry(tmp_path, "x", entry(super_weights=weights))
    save_reported(tmp_path, "x", [{**REPORTED, "row": 7}])
    found, said = asked(planted, catalog=tmp_path)
    assert [c.row for c in found] == [6, 5]
    assert (
        said == "from the catalog, verified at aaaaaaaaaaaa: 2 critical of 5, the costliest first (--weight names any)"
    )


def test_where_none_is_critical_all_are_taken_as_far_as_they_go(planted, tmp_path):
    rows = range(MOST_WEIGHTS + 2)
    save_entry(tmp_path, "x", entry(super_weights=[weight(row, "inert", loss_zeroed=1.0 + row) for row in rows]))
    found, said = asked(planted, catalog=tmp_path)
    assert [c.row for c in found] == list(reversed(rows))[:MOST_WEIGHTS]
    assert f"{MOST_WEIGHTS} of {MOST_WEIGHTS + 2}, the costliest first" in said


def test_the_entry_of_the_same_commit_goes_before_others(planted, tmp_path):
    for number, commit in enumerate("ba"):
        save_entry(tmp_path, "x", entry(commit=commit * 40, super_weights=[weight(number)]))
    found, _ = asked(planted, catalog=tmp_path)
    assert found[0].row in (0, 1)
    source = SimpleNamespace(model="me/model-1b", commit="b" * 40)
    assert weights_asked(source, Settings(catalog=tmp_path), silent)[0][0].row == 0


def test_what_others_report_comes_after(planted, tmp_path):
    save_reported(tmp_path, "x", [REPORTED, {**REPORTED, "row": 8, "standing": "disputed", "reason": "why"}])
    found, said = asked(planted, catalog=tmp_path)
    assert [c.row for c in found] == [2]
    assert said == "from the catalog, as others report them"
    another = {**REPORTED, "row": 5, "revision": "v2", "sources": [SOURCE, {**SOURCE, "name": "Another"}]}
    save_reported(tmp_path, "x", [another, *({**REPORTED, "row": row} for row in (3, 4, 6))])
    found, said = asked(planted, catalog=tmp_path)
    assert [c.row for c in found] == [5, 2, 3, 4]
    assert said.endswith("as others report them: 4 of 5, those of most sources first (--weight names any)")


def test_else_a_verification_finds_them(planted, tmp_path, monkeypatch):
    monkeypatch.setattr("analyzer.experiments.lab.asked.VerifySettings", settings)  # the prompt of the tiny models
    save_entry(tmp_path, "x", entry("me/other"))
    found, said = asked(planted, catalog=tmp_path)
    assert PLANTED in found
    assert said.startswith("found by a verification just now")


def test_a_model_without_any_is_told(tmp_path):
    save_entry(tmp_path / "c", "x", entry("me/other"))
    folder = save(random_llama(), tmp_path / "m")
    with pytest.raises(ForwardError, match="m: a verification finds no super weight: name some with --weight"):
        weights_asked(FolderSource(folder), Settings(catalog=tmp_path / "c"), silent)


def test_a_model_that_the_catalog_does_not_know_is_told(planted, tmp_path):
    save_entry(tmp_path, "x", entry())
    with pytest.raises(CatalogError, match="no entry for me/none"):
        asked(planted, weights_of="me/none", catalog=tmp_path)


def test_a_weight_that_is_not_there_is_told(run):
    with pytest.raises(ArchitectureError, match="planted has no weight 1,77,9999"):
        run(prune.EXPERIMENT, weights=(Coordinate(1, None, 77, 9999),))


@pytest.mark.parametrize("wrong", [{"windows": 0}, {"length": 1}, {"seed": -1}, {"limit": None}, {"device": "tpu"}])
def test_settings_that_are_none(wrong):
    with pytest.raises(SettingsError):
        Settings(**wrong)
