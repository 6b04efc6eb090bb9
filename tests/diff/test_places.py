"""Towers and MLPs of blocks that have several: in comparisons, in their tables, and in results that were saved."""

import csv
import io
import json

import numpy as np
import pytest
from checkpoints import DTYPES, write_config, write_tensors
from layouts import HIDDEN, INNER, attention, mlp

from analyzer.analyze.scanning import scan_model
from analyzer.base.records import Coordinate, Unread, plain
from analyzer.diff.comparison import compare
from analyzer.diff.reports.table import DIFF_COLUMNS, diff_csv
from analyzer.diff.sides import parse_side, side_of_scan
from analyzer.diff.versions import compare_models
from analyzer.scan.records import ScanSettings
from analyzer.source.folder import FolderSource

SETTINGS = ScanSettings(top=2, use_cache=False)


def write(folder, *planted, extra=()):
    """Write two blocks with two MLPs each, and a vision tower; `planted` are (tensor, row, col, value)."""
    shapes = dict(extra)
    for layer in range(2):
        block = f"model.language_model.layers.{layer}"
        shapes |= attention(block) | mlp(f"{block}.mlps.0") | mlp(f"{block}.mlps.1")
        shapes |= mlp(f"model.visual.blocks.{layer}.mlp", 20, 12, ("fc1", "fc2"))
    generator = np.random.default_rng(0)
    tensors = {name: generator.normal(0, 0.02, shape).astype(DTYPES["BF16"]) for name, shape in shapes.items()}
    for name, row, col, value in planted:
        tensors[name][row, col] = value
    write_tensors(folder, tensors)
    write_config(folder, model_type="longcat", hidden_size=HIDDEN, num_layers=2, vision_config={"hidden_size": 12})
    return folder


FIRST, SECOND = (f"model.language_model.layers.1.mlps.{number}.down_proj.weight" for number in range(2))
VISION = "model.visual.blocks.0.mlp.fc2.weight"


@pytest.fixture
def versions(tmp_path):
    return (
        write(tmp_path / "old", (FIRST, 3, 5, 4.0), (SECOND, 3, 5, 3.0), (VISION, 1, 2, 2.0)),
        write(tmp_path / "new", (FIRST, 3, 5, 4.0), (SECOND, 3, 5, -7.0), (VISION, 1, 2, 6.0)),
    )


def test_a_weight_is_in_its_mlp_and_tower(versions):
    old, new = (scan_model(FolderSource(folder), SETTINGS) for folder in versions)
    assert [str(each.coordinate) for each in old.outliers] == ["language:1.0,3,5", "language:1.1,3,5"]
    assert [str(each.coordinate) for each in new.outliers] == ["language:1.1,3,5", "vision:0,1,2"]


def test_both_mlps_of_a_layer_are_compared(versions):
    result = compare_models(*map(str, versions), SETTINGS)
    layers = {(each.tower, each.layer): each for each in result.layers}
    changed = layers["language", 1]
    # The same row and column of two MLPs are two weights: only one of them changed.
    assert (changed.largest_change.mlp, changed.largest_change.old, changed.largest_change.new) == (1, 3.0, -7.0)
    assert layers["vision", 0].largest_change.mlp is None
    assert {place for place, each in layers.items() if each.state == "changed"} == {("language", 1), ("vision", 0)}
    outliers = {str(each.coordinate): each.kind for each in result.outliers}
    assert outliers["language:1.1,3,5"] == "changed"


def test_the_rankings_of_a_layer_tell_its_mlps_apart(versions, tmp_path):
    both = write(tmp_path / "both", (FIRST, 2, 2, 5.0), (SECOND, 3, 5, -7.0), (VISION, 1, 2, 2.0))
    result = compare_models(str(both), str(versions[0]), SETTINGS)
    (changed,) = (each for each in result.layers if each.state == "changed")
    assert (changed.tower, changed.layer, changed.ranked, changed.shared) == ("language", 1, 2, 1)


def test_the_table_and_json_have_tower_and_mlp(versions):
    result = compare_models(*map(str, versions), SETTINGS)
    rows = list(csv.DictReader(io.StringIO(diff_csv(result))))
    assert list(rows[0]) == list(DIFF_COLUMNS)
    places = {(row["what"], row["tower"], row["layer"], row["mlp"], row["row"], row["col"]) for row in rows}
    assert ("outlier", "language", "1", "1", "3", "5") in places
    assert ("layer", "language", "1", "1", "3", "5") in places
    assert ("layer", "vision", "0", "", "1", "2") in places
    said = plain(result)
    (change,) = (each for each in said["outliers"] if each["tower"] == "language" and each.get("mlp") == 1)
    assert (change["layer"], change["row"], change["col"]) == (1, 3, 5)
    assert all("mlp" not in each for each in said["outliers"] if each["tower"] == "vision")


def test_a_saved_result_keeps_its_places(versions):
    scan = scan_model(FolderSource(versions[0]), SETTINGS)
    saved = parse_side(json.dumps(plain(scan)), "saved.json")
    assert list(saved.outliers) == [Coordinate(1, None, 3, 5, "language", 0), Coordinate(1, None, 3, 5, "language", 1)]
    assert ("language", 1, 1, -1) in saved.scanned
    assert compare(saved, side_of_scan(scan)).identical


def test_what_is_not_read_is_said_of_each_side(tmp_path):
    extra = {"model.language_model.layers.0.extra.fwd.weight": (INNER, HIDDEN),
             "model.language_model.layers.0.extra.bwd.weight": (HIDDEN, INNER)}  # fmt: skip
    old, new = write(tmp_path / "old", extra=extra), write(tmp_path / "new")
    unread = Unread("model.language_model.layers.*.extra.bwd", 1, (HIDDEN, INNER),
                    "looks like a down projection, by a name that is not known")  # fmt: skip
    for sides in ((str(old), str(new)), (str(new), str(old)), (str(old), str(old))):
        result = compare_models(*sides, SETTINGS)
        expected = [name for name, side in zip(("old", "new"), sides, strict=True) if side == str(old)]
        assert [each.side for each in result.unread] == expected
        assert {(each.names, each.count, each.shape, each.why) for each in result.unread} == {
            (unread.names, unread.count, unread.shape, unread.why)
        }
    saved = parse_side(json.dumps(plain(scan_model(FolderSource(old), SETTINGS))), "saved.json")
    assert saved.unread == (unread,)
