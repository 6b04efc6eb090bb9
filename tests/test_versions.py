"""Diff as a job and as a command: models, folders and saved results in any mix; what it prints, and what it refuses."""

import csv
import io
import json

import matplotlib.image
import pytest
from checkpoints import random_downs, write_llama
from click.testing import CliRunner
from test_pairs import edited

from analyzer.analyze import run_scan
from analyzer.catalog import save_reported
from analyzer.cli import cli
from analyzer.records import plain
from analyzer.source import FolderSource
from analyzer.versions import run_diff, run_history

DOWNS = random_downs(layers=4)
NEXT = edited(edited(DOWNS, 1, 2, 3, 1.5), 3, 7, 19, -2.0)


@pytest.fixture
def versions(hub, tmp_path):
    """Two commits of owner/tiny on the Hub, v1 and v2, which are also the folders old/tiny and new/tiny."""
    for name, downs, branch in (("old", DOWNS, "v1"), ("new", NEXT, "v2")):
        write_llama(tmp_path / name / "tiny", downs, shards=4)
        hub.add("owner/tiny", tmp_path / name / "tiny", branch=branch)
    return tmp_path


@pytest.fixture
def catalog(tmp_path):
    """A catalog in which others report two weights of owner/tiny, and a row."""
    source = {"name": "A paper", "kind": "paper", "url": "https://example.org", "note": None}
    item = {"model": "owner/tiny", "revision": None, "layer": 1, "expert": None, "value": None, "standing": "reported",
            "reason": None, "sources": [source]}  # fmt: skip
    places = [(2, 3), (0, 0), (5, None)]
    save_reported(tmp_path / "catalog", "tiny", [{**item, "row": row, "col": col} for row, col in places])
    return tmp_path / "catalog"


@pytest.fixture
def empty(tmp_path):
    """A catalog that knows nothing."""
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def command(*arguments, fails=None):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if fails is None:
        assert result.exit_code == 0, result.output
    else:
        assert result.exit_code == fails
    return result.stdout if fails is None else result


def what_changed(result):
    return [(c.kind, c.layer, c.row, c.col, c.old, c.new) for c in result.outliers]


CHANGED = [
    ("appeared", 3, 7, 19, {"rank": None, "value": float(DOWNS[3][7, 19])}, {"rank": 1, "value": -2.0}),
    ("appeared", 1, 2, 3, {"rank": None, "value": float(DOWNS[1][2, 3])}, {"rank": 2, "value": 1.5}),
]


def test_every_mix_of_models_gives_the_same_answer(versions, empty):
    sides = [("owner/tiny@v1", versions / "old/tiny"), ("owner/tiny@v2", versions / "new/tiny")]
    results = [run_diff(str(old), str(new), top=2, catalog=empty) for old in sides[0] for new in sides[1]]
    for result in results:
        assert {change[:4] for change in what_changed(result)} >= {change[:4] for change in CHANGED}
        assert result.outliers_among == "changed"
        assert [layer.relative_change for layer in result.layers] == [
            layer.relative_change for layer in results[0].layers
        ]
        appeared = [change for change in what_changed(result) if change[0] == "appeared"]
        assert sorted(appeared) == sorted(CHANGED)


def test_a_saved_result_against_the_model_it_is_of_and_the_next(versions, empty):
    saved = versions / "saved.json"
    saved.write_text(json.dumps(plain(run_scan(FolderSource(versions / "old/tiny"), top=2))))
    assert run_diff(str(saved), str(versions / "old/tiny"), top=2, catalog=empty).identical
    result = run_diff(str(saved), "owner/tiny@v2", top=2, catalog=empty)
    assert (result.outliers_among, result.bytes_read > 0) == ("all", True)
    appeared = [change for change in what_changed(result) if change[0] == "appeared"]
    # What had no rank in the saved result is not known.
    assert appeared == [(*CHANGED[1][:4], None, CHANGED[1][5]), (*CHANGED[0][:4], None, CHANGED[0][5])]


def test_the_super_weights_are_those_that_the_catalog_knows(versions, catalog):
    result = run_diff("owner/tiny@v1", "owner/tiny@v2", catalog=catalog)
    assert result.super_weights_from == "known"
    told = [(c.kind, c.layer, c.row, c.col, c.known, c.old, c.new) for c in result.super_weights]
    unchanged = {"value": float(DOWNS[1][0, 0])}
    assert told == [
        ("unchanged", 1, 0, 0, "reported", unchanged, unchanged),
        ("changed", 1, 2, 3, "reported", {"value": float(DOWNS[1][2, 3])}, {"value": 1.5}),
    ]
    text = command("diff", "owner/tiny@v1", "owner/tiny@v2", "--catalog", catalog)
    assert "Super weights: 1 of 2 known ones has another value." in text


def test_the_answer_comes_in_order_and_in_one_screen(versions, catalog):
    text = command("diff", "owner/tiny@v1", "owner/tiny@v2", "--catalog", catalog, "--top", 5)
    order = ["From owner/tiny@v1 to owner/tiny@v2", "Super weights:", "Outliers, at the top", "Where the change is:",
             "Read "]  # fmt: skip
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert max(map(len, text.splitlines())) <= 100
    assert len(text.splitlines()) < 45
    assert "in files that both share, were not read" in text
    assert "  same file" in text


def test_a_model_and_itself(versions):
    text = command("diff", "owner/tiny@v1", versions / "old/tiny")
    assert text.startswith("No differences between the down projections of owner/tiny@v1 and tiny.")


def test_json_and_csv_hold_the_same(versions, catalog):
    arguments = ["diff", "owner/tiny@v1", "owner/tiny@v2", "--catalog", catalog, "--top", 5]
    printed = json.loads(command(*arguments, "--json"))
    assert printed["identical"] is False
    rows = list(csv.DictReader(io.StringIO(command(*arguments, "--csv"))))
    by_what = {what: [row for row in rows if row["what"] == what] for what in ("super weight", "outlier", "layer")}
    assert sum(map(len, by_what.values())) == len(rows)
    assert [(row["kind"], row["layer"], row["known"]) for row in by_what["super weight"]] == [
        (change["kind"], str(change["layer"]), change["known"]) for change in printed["super_weights"]
    ]
    assert [(row["kind"], row["row"], row["new_rank"]) for row in by_what["outlier"]] == [
        (change["kind"], str(change["row"]), str((change["new"] or {"rank": ""})["rank"] or ""))
        for change in printed["outliers"]
    ]
    layers = printed["layers"]
    assert [row["kind"] for row in by_what["layer"]] == [layer["state"] for layer in layers]
    changed = [layer for layer in layers if layer["state"] == "changed"]
    told = [row for row in by_what["layer"] if row["kind"] == "changed"]
    assert [float(row["relative_change"]) for row in told] == [layer["relative_change"] for layer in changed]
    assert [float(row["new_value"]) for row in told] == [layer["largest_change"]["new"] for layer in changed]


def test_a_spreadsheet_takes_no_name_for_a_formula(tmp_path):
    record = {"layer": 0, "expert": None, "row": 1, "col": 1, "value": 2.0, "status": "=HYPERLINK(1)\x1b[2J",
              "effect": None, "loss": None, "loss_zeroed": None}  # fmt: skip
    for name, value in (("a", 2.0), ("b", 3.0)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"super_weights": [{**record, "value": value}]}))
    text = command("diff", tmp_path / "a.json", tmp_path / "b.json", "--csv")
    assert "'=HYPERLINK(1)\\x1b[2J" in text
    assert "\x1b" not in text


def test_revisions_are_followed(versions, hub, catalog):
    history = run_history("owner/tiny", ["v1", "v2"], top=3, catalog=catalog)
    assert [(r.revision, r.commit) for r in history.revisions] == list(hub.repositories["owner/tiny"].branches.items())
    scans = [run_scan(FolderSource(versions / name / "tiny"), top=3) for name in ("old", "new")]
    tops = [[o.coordinate for o in scan.outliers] for scan in scans]
    assert history.revisions[1].shared == len(set(tops[0]) & set(tops[1]))
    assert [w.known for w in history.weights] == ["reported", "reported", None, None, None]
    by_place = {w.coordinate[:4]: w for w in history.weights}
    assert by_place[1, None, 2, 3].values == (float(DOWNS[1][2, 3]), 1.5)
    assert by_place[1, None, 2, 3].ranks == (None, 2)
    assert by_place[3, None, 7, 19].values == (float(DOWNS[3][7, 19]), -2.0)
    assert by_place[3, None, 7, 19].ranks == (None, 1)


def test_revisions_in_every_form(versions, tmp_path):
    arguments = ["diff", "owner/tiny", "--revisions", "v1,v2", "--top", 3]
    text = command(*arguments)
    assert "owner/tiny, 2 revisions" in text
    assert "+1.5 #2" in text
    printed = json.loads(command(*arguments, "--json"))
    rows = list(csv.DictReader(io.StringIO(command(*arguments, "--csv"))))
    assert [float(row["value"]) for row in rows] == [v for w in printed["weights"] for v in w["values"]]
    assert [row["revision"] for row in rows] == ["v1", "v2"] * len(printed["weights"])
    command(*arguments, "--plot", tmp_path / "steps.png")
    assert matplotlib.image.imread(tmp_path / "steps.png").shape[2] >= 3
    first = (tmp_path / "steps.png").read_bytes()
    command(*arguments, "--plot", tmp_path / "steps.png")
    assert (tmp_path / "steps.png").read_bytes() == first


def test_many_revisions_fit_in_100_columns(hub, tmp_path):
    names = [f"step{number}000-of-a-long-name" for number in range(9)]
    for number, name in enumerate(names):
        write_llama(tmp_path / name, edited(DOWNS, 0, 0, 0, -1.0 - number))
        hub.add("owner/tiny", tmp_path / name, branch=name)
    text = command("diff", "owner/tiny", "--revisions", ",".join(names))
    assert max(map(len, text.splitlines())) <= 100
    assert "3 revisions between are left out" in text


def test_a_wrong_revision_fails_before_anything_is_scanned(versions, hub):
    result = command("diff", "owner/tiny", "--revisions", "v1,v9", fails=1)
    assert "owner/tiny has no revision v9 on the Hub" in str(result.exception)
    assert not hub.body_bytes["cdn"]


def test_wrong_usage(folder, tmp_path):
    for arguments in (
        [folder],
        [folder, folder, "--revisions", "a,b"],
        [folder, "--revisions", "a"],
        [folder, "--revisions", "a,,b"],
        [folder, "--revisions", "a,a"],
        [folder, folder, "--plot", tmp_path / "x.png"],
        [folder, folder, "--json", "--csv"],
    ):
        command("diff", *arguments, fails=2)
    result = command("diff", folder, "--revisions", "a,b", fails=1)
    assert "is a local folder and has no revisions" in str(result.exception)


def test_models_without_a_place_in_common(folder, tmp_path):
    write_llama(tmp_path / "wide", random_downs(hidden=16))
    result = command("diff", folder, tmp_path / "wide", fails=1)
    message = str(result.exception)
    assert "tiny and wide cannot be compared" in message
    assert "8 x 20 and 16 x 20" in message
