"""Diff as a job and as a command: models, folders and saved results in any mix; what report.py prints of them."""

import csv
import io
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from checkpoints import edited, random_downs, write_config, write_llama, write_tensors
from click.testing import CliRunner

from analyzer.analyze.scanning import scan_model
from analyzer.base.records import Coordinate, plain
from analyzer.catalog.files import save_reported
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.cli.main import cli
from analyzer.diff.records import FollowedWeight, History, RevisionSummary
from analyzer.diff.reports.report import render_history
from analyzer.diff.versions import Model, compare_models, compare_revisions
from analyzer.projections.down_projections import down_projections
from analyzer.scan.kept import ResultCache
from analyzer.scan.records import ScanSettings
from analyzer.scan.scanner import kept_weights
from analyzer.source.folder import FolderSource
from analyzer.source.opening import open_model

DOWNS = random_downs(layers=4)
NEXT = edited(edited(DOWNS, 1, 2, 3, 1.5), 3, 7, 19, -2.0)


def reported(model, layer, row, col):
    """Return what a catalog has of a weight, or a row, that others report."""
    source = {"name": "A paper", "kind": "paper", "url": "https://example.org", "note": None}
    return {"model": model, "revision": None, "layer": layer, "expert": None, "row": row, "col": col, "value": None,
            "standing": "reported", "reason": None, "sources": [source]}  # fmt: skip


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
    items = [reported("owner/tiny", 1, row, col) for row, col in ((2, 3), (0, 0), (5, None))]
    save_reported(tmp_path / "catalog", "tiny", items)
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
    results = [
        compare_models(str(old), str(new), settings=ScanSettings(top=2), catalog=empty)
        for old in sides[0]
        for new in sides[1]
    ]
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
    saved.write_text(json.dumps(plain(scan_model(FolderSource(versions / "old/tiny"), ScanSettings(top=2)))))
    assert compare_models(str(saved), str(versions / "old/tiny"), settings=ScanSettings(top=2), catalog=empty).identical
    result = compare_models(str(saved), "owner/tiny@v2", settings=ScanSettings(top=2), catalog=empty)
    assert (result.outliers_among, result.bytes_read > 0) == ("all", True)
    appeared = [change for change in what_changed(result) if change[0] == "appeared"]
    # What had no rank in the saved result is not known.
    assert appeared == [(*CHANGED[1][:4], None, CHANGED[1][5]), (*CHANGED[0][:4], None, CHANGED[0][5])]


def test_the_super_weights_are_those_that_the_catalog_knows(versions, catalog):
    result = compare_models("owner/tiny@v1", "owner/tiny@v2", catalog=str(catalog))
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
    order = ["From owner/tiny@v1 (", "Super weights:", "Outliers, at the top", "By layer:",
             "Read "]  # fmt: skip
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert max(map(len, text.splitlines())) <= 100
    assert len(text.splitlines()) < 45
    assert "in files that both share, were not read" in text
    assert "  same file" in text


def test_a_model_and_itself(versions):
    text = command("diff", "owner/tiny@v1", versions / "old/tiny")
    assert "No differences between the down projections of the two." in text


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


def test_a_spreadsheet_takes_no_name_for_a_formula(hub, tmp_path):
    names = ["=cmd", "+1", "-1", "@sum", "plain"]
    for name in names:
        write_llama(tmp_path / name, DOWNS)
        hub.add("owner/tiny", tmp_path / name, branch=name)
    rows = list(csv.DictReader(io.StringIO(command("diff", "owner/tiny", "--revisions", ",".join(names), "--csv"))))
    assert [row["revision"] for row in rows[: len(names)]] == ["'=cmd", "'+1", "'-1", "'@sum", "plain"]
    assert float(rows[0]["value"]) < 0 or any(row["value"].startswith("-") for row in rows)  # a number stays one


def test_the_commits_of_both_sides_are_named(versions, hub):
    commits = hub.repositories["owner/tiny"].branches
    printed = json.loads(command("diff", "owner/tiny@v1", "owner/tiny@v2", "--json"))
    assert (printed["old_commit"], printed["new_commit"]) == (commits["v1"], commits["v2"])
    text = command("diff", "owner/tiny@v1", versions / "new/tiny")
    assert text.startswith(f"From owner/tiny@v1 ({commits['v1'][:12]}) to tiny\n")
    saved = versions / "saved.json"
    saved.write_text(command("scan", "owner/tiny@v1", "--json"))
    text = " ".join(command("diff", saved, "owner/tiny@v2").split())
    assert f"saved.json (owner/tiny at {commits['v1'][:12]}) to owner/tiny@v2" in text


def test_what_a_scan_has_kept_is_not_asked_for_again(versions, hub, tmp_path):
    source = open_model("owner/tiny", revision="v2")
    checkpoint = Checkpoint(source)
    projections = down_projections(checkpoint)
    cache = ResultCache(tmp_path / "kept")
    model = Model(checkpoint, projections, "magnitude", 4, cache)
    everything = [Coordinate(layer, None, row, col) for layer in (1, 3) for row in range(8) for col in range(20)]
    assert kept_weights(checkpoint, projections, everything, cache=cache, top=4) == {}
    model.scan(lambda *_: None)
    kept = kept_weights(checkpoint, projections, everything, cache=cache, top=4)
    largest = {layer: np.abs(NEXT[layer].astype(np.float64)).ravel().argsort()[::-1][:4] for layer in (1, 3)}
    assert {(c.layer, c.row * 20 + c.col) for c in kept} == {(n, place) for n, top in largest.items() for place in top}
    hub.forget()
    assert model.weights(list(kept)) == kept == {c: float(NEXT[c.layer][c.row, c.col]) for c in kept}
    assert not hub.requests
    few = everything[:3]
    assert model.weights(few) == {c: float(NEXT[c.layer][c.row, c.col]) for c in few}
    assert hub.body_bytes["cdn"] == 2 * len(set(few) - set(kept))


def test_a_result_may_come_through_a_pipe(folder, tmp_path):
    saved = command("scan", folder, "--json")
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=(saved,))
    writer.start()
    assert "No differences between the outliers" in command("diff", tmp_path / "pipe", folder)
    writer.join()


def test_a_weight_of_another_size_of_model(folder, tmp_path):
    outlier = {"rank": 1, "layer": 0, "expert": None, "row": 7, "col": 25, "value": 3.0}
    (tmp_path / "wider.json").write_text(json.dumps({"outliers": [outlier]}))
    result = command("diff", tmp_path / "wider.json", folder, fails=1)
    assert "tiny has no weight 0,7,25: the two are of different sizes" in str(result.exception)


def test_the_known_weights_of_a_model_with_towers(tmp_path):
    for name, value in (("old", None), ("new", 1.5)):
        downs = random_downs(layers=2)
        if value:
            downs[1][2, 3] = value
        tensors = {f"language_model.model.layers.{n}.mlp.down_proj.weight": down for n, down in enumerate(downs)}
        tensors |= {f"vision_tower.vision_model.encoder.layers.{n}.mlp.fc2.weight": d for n, d in enumerate(downs)}
        write_tensors(tmp_path / name / "llava-9", tensors)
        write_config(tmp_path / name / "llava-9", model_type="llava")
    save_reported(tmp_path / "catalog", "llava", [reported("owner/llava-9", 1, 2, 3)])
    result = compare_models(
        *(str(tmp_path / name / "llava-9") for name in ("old", "new")), catalog=tmp_path / "catalog"
    )
    assert [(c.tower, c.layer, c.kind, c.new) for c in result.super_weights] == [
        ("language", 1, "changed", {"value": 1.5})
    ]


def test_a_catalog_that_is_wrong_is_told_before_anything_is_read(versions, hub):
    (versions / "bad").mkdir()
    (versions / "bad" / "x.json").write_text("{")
    for arguments in (["owner/tiny@v2"], ["--revisions", "v1,v2"]):
        first = "owner/tiny@v1" if arguments == ["owner/tiny@v2"] else "owner/tiny"
        result = command("diff", first, *arguments, "--catalog", versions / "bad", fails=1)
        assert "x.json is not JSON" in str(result.exception)
    assert "no catalog folder" in str(
        command("diff", "owner/tiny@v1", "owner/tiny@v2", "--catalog", versions / "nowhere", fails=1).exception
    )
    assert not hub.requests


def test_of_many_layers_those_that_changed_most_are_shown(tmp_path):
    downs = random_downs(layers=60)
    moved = [(down * 1.01).astype(down.dtype) for down in downs]
    moved[59] = (downs[59] * 5).astype(downs[59].dtype)
    for name, weights in (("old", downs), ("new", moved)):
        write_llama(tmp_path / name, weights)
        (tmp_path / f"{name}.json").write_text(command("scan", tmp_path / name, "--top", 400, "--json"))
    for suffix in ("", ".json"):
        text = command("diff", f"{tmp_path / 'old'}{suffix}", f"{tmp_path / 'new'}{suffix}")
        assert re.search(r"^ +59 ", text[text.index("By layer") :], re.MULTILINE)
        assert "… and 28 more layers" in text


def test_experts_small_values_and_long_names_fit_in_100_columns(tmp_path):
    generator = np.random.default_rng(0)
    for folder, scale in ((80 * "A", 1e-7), (90 * "B", 1.0000001e-7)):
        experts = generator.normal(0, scale, (2, 130, 16, 24)).astype(np.float32)
        tensors = {
            f"model.layers.{layer}.mlp.experts.{expert}.down_proj.weight": experts[layer, expert]
            for layer in range(2)
            for expert in range(130 if scale == 1e-7 else 129)
        }
        write_tensors(tmp_path / folder, tensors)
        write_config(tmp_path / folder, model_type="qwen3_moe")
    text = command("diff", tmp_path / (80 * "A"), tmp_path / (90 * "B"))
    assert max(map(len, text.splitlines())) <= 100
    assert "Layers 0, 1: 129 of 129 experts differ; 1 only in the old one." in text
    weight = {"layer": 100, "expert": 129, "row": 12345, "col": 65432, "value": -1.23456e-7, "loss": 2.0}
    for name, status, effect, value, zeroed in (("a", "confirmed", "critical", -1.23456e-7, 12.0),
                                                ("b", "coincident", "inert", 1.23457e-7, 2.0)):  # fmt: skip
        fields = {"value": value, "status": status, "effect": effect, "loss_zeroed": zeroed}
        (tmp_path / f"{name}.json").write_text(json.dumps({"super_weights": [{**weight, **fields}]}))
    text = command("diff", tmp_path / "a.json", tmp_path / "b.json")
    assert max(map(len, text.splitlines())) <= 100
    assert "1 changed. Critical are 1 of the old ones and 0 of the new." in text
    assert "critical to coincident" in text
    assert "+10.000 to +0.000" in text


def test_revisions_are_followed(versions, hub, catalog):
    history = compare_revisions("owner/tiny", ["v1", "v2"], settings=ScanSettings(top=3), catalog=catalog)
    assert [(r.revision, r.commit) for r in history.revisions] == list(hub.repositories["owner/tiny"].branches.items())
    scans = [scan_model(FolderSource(versions / name / "tiny"), ScanSettings(top=3)) for name in ("old", "new")]
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
    assert "3 revisions between left out" in text


def test_fewer_revisions_are_columns_where_a_place_takes_more_room():
    names = [f"step{number}000" for number in range(7)]
    weight = FollowedWeight("language", 100, 127, 12345, 65432, "verified, critical", (-1.2345e-7,) * 7, (None,) * 7)
    history = History("m", "magnitude", tuple(RevisionSummary(n, None, 1, 1, None, 1) for n in names), (weight,))
    text = render_history(history)
    assert max(map(len, text.splitlines())) <= 100
    assert "step0000" in text.partition("Weights")[2]
    assert "step6000" in text.partition("Weights")[2]
    assert "3 revisions between left out" in text


def test_a_wrong_revision_fails_before_anything_is_scanned(versions, hub):
    result = command("diff", "owner/tiny", "--revisions", "v1,v9", fails=1)
    assert "owner/tiny has no revision v9 on the Hub" in str(result.exception)
    assert not hub.body_bytes["cdn"]


def test_a_diff_imports_no_torch(folder):
    script = (
        "import sys; from analyzer.__main__ import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    arguments = [sys.executable, "-c", script, "diff", str(folder), str(folder)]
    result = subprocess.run(arguments, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (result.returncode, result.stderr) == (0, "")
    assert "No differences" in result.stdout


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
    assert "is a local folder, which has no revisions" in str(result.exception)
    result = command("diff", "owner/tiny@v1", "--revisions", "a,b", fails=1)
    assert "owner/tiny@v1 names one revision, and --revisions others" in str(result.exception)


def test_models_without_a_place_in_common(folder, tmp_path):
    write_llama(tmp_path / "wide", random_downs(hidden=16))
    result = command("diff", folder, tmp_path / "wide", fails=1)
    message = str(result.exception)
    assert "tiny and wide cannot be compared" in message
    assert "8 x 20 and 16 x 20" in message
