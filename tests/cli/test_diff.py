"""A comparison from the command line."""

import json
import re

from checkpoints import random_downs, write_llama
from commands import fails, superweight


def test_diff_of_a_model_with_itself_and_with_a_saved_result(spiked, tmp_path):
    saved = tmp_path / "saved.json"
    saved.write_text(superweight("scan", spiked, "--json").stdout)
    for one, other in [(spiked, spiked), (spiked, saved), (saved, spiked)]:
        result = superweight("diff", one, other)
        assert result.returncode == 0
        assert re.search(r"No differences between the (outliers|down projections) of the two", result.stdout)


def test_diff_shows_what_changed(spiked, tmp_path):
    downs = random_downs(layers=3)
    downs[1][2, 3] = 1.5
    downs[2][7, 19] = -2.0
    write_llama(tmp_path / "next", downs)
    result = superweight("diff", spiked, tmp_path / "next", "--top", 1, "--json")
    changed = json.loads(result.stdout)
    assert changed["identical"] is False
    largest = max(range(8 * 20), key=lambda place: abs(float(downs[2].flat[place])) if place != 7 * 20 + 19 else 0)
    assert [(c["kind"], c["layer"], c["row"], c["col"]) for c in changed["outliers"]] == [
        ("appeared", 2, 7, 19),
        ("vanished", 2, *divmod(largest, 20)),  # layer 1, with the larger weight, is the same in both
    ]
    assert changed["outliers"][0]["old"] == {"rank": None, "value": float(random_downs(layers=3)[2][7, 19])}
    assert changed["outliers"][1]["new"] == {"rank": None, "value": float(downs[2].flat[largest])}
    assert (changed["super_weights"], changed["super_weights_from"]) == ([], None)
    assert "1 appeared, 1 vanished." in superweight("diff", spiked, tmp_path / "next", "--top", 1).stdout


def test_diff_with_a_result_of_a_larger_model(spiked, tmp_path):
    outlier = {"rank": 1, "layer": 0, "expert": None, "row": 4000, "col": 1, "value": 3.0}
    (tmp_path / "other.json").write_text(json.dumps({"outliers": [outlier]}))
    fails(superweight("diff", tmp_path / "other.json", spiked), "tiny has no weight 0,4000,1")
