"""What an entry says of its weights beside the verification, held against the stock model itself."""

import pytest
from families import FAMILIES, build
from models import plant_in, save, settings, with_large_weights

from analyzer.analyze.analyzing import analyze_model
from analyzer.base.records import Coordinate
from analyzer.catalog.exports.coordinates import export_rows
from analyzer.catalog.lookup import coordinates_in
from analyzer.experiments.quantization.grid import Group, Rounding
from analyzer.experiments.quantization.protecting import holds
from analyzer.source.opening import open_model


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe", "granitemoe", "gpt_oss"])
def test_an_entry_names_parameters_of_the_stock_model_and_ranks_rows_as_they_are_stored(name, tmp_path):
    model = with_large_weights(build(FAMILIES[name]))
    expert = plant_in(model, name)
    entry = analyze_model(open_model(str(save(model, tmp_path / "planted"))), settings()).entry
    assert entry["super_weights"]
    for weight in entry["super_weights"]:
        matrix = getattr(model.get_submodule(weight["module"]), weight.get("parameter", "weight")).detach()
        assert ("parameter" in weight) == (weight["expert"] is not None)
        matrix = matrix if weight["expert"] is None else matrix[weight["expert"]]
        if name in ("gpt2", "gpt_oss"):  # which store them by input channels
            matrix = matrix.T
        row = matrix[weight["row"]]
        assert row[weight["col"]].item() == weight["value"]
        order = row.abs().argsort(descending=True, stable=True).tolist()
        assert weight["row_rank"] == 1 + order.index(weight["col"])
        others = [each for each in order if each != weight["col"]]
        assert weight["row_others_max"] == pytest.approx(row[others[0]].abs().item(), rel=1e-4)
        at = Coordinate(*(weight[key] for key in ("layer", "expert", "row", "col")))
        (held,) = holds({at: matrix.float()}, Rounding(4, Group("row"), symmetric=True))
        assert (weight["row_rank"] == 1) == held.extreme
        assert held.no_op >= held.extreme  # an extreme is kept as it is
    known = coordinates_in({"x": {"entries": [entry], "reported": []}}, entry["model"])
    ends = {row["module"].rsplit(".", 2)[-2] for row in export_rows(known) if row["expert"] == expert is not None}
    assert ends <= ({str(expert)} if name != "granitemoe" else {"block_sparse_moe"})
