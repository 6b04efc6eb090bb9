"""Pickles to safetensors, and the diff of three real versions of a BERT against torch on the whole."""

import json
import pickle

import pytest
import torch
from bert_versions import VERSIONS, convert, versions_folder
from safetensors.torch import load_file

from analyzer.diff.versions import compare_models

FOLDER = versions_folder()


def test_tensors_are_converted_as_they_are_tied_ones_too(tmp_path):
    tied = torch.arange(6.0).reshape(2, 3)
    tensors = {
        "a": tied,
        "b": tied,
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "half": torch.ones(2, dtype=torch.half),
    }
    (tmp_path / "pickled").mkdir()
    torch.save(tensors, tmp_path / "pickled" / "pytorch_model.bin")
    for name in ("config.json", "vocab.txt"):
        (tmp_path / "pickled" / name).write_text("{}")
    convert(tmp_path / "pickled", tmp_path / "out")
    converted = load_file(tmp_path / "out" / "model.safetensors")
    assert converted.keys() == tensors.keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in tensors.items())
    assert all(converted[name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert (tmp_path / "out" / "vocab.txt").read_text() == "{}"


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_what_a_pickle_would_run_is_not_run(tmp_path):
    pickled = pickle.dumps({"a": Evil(str(tmp_path / "was here"))}, protocol=2)
    (tmp_path / "pytorch_model.bin").write_bytes(pickled)
    with pytest.raises(pickle.UnpicklingError):
        convert(tmp_path, tmp_path / "out")
    assert not (tmp_path / "was here").exists()
    assert not (tmp_path / "out" / "model.safetensors").exists()


def spearman(one, other):
    """Return Pearson's correlation of the ranks."""
    ranks = torch.stack([values.argsort().argsort().double() for values in (one, other)])
    return float(torch.corrcoef(ranks)[0, 1])


@pytest.mark.skipif(not FOLDER.exists(), reason="the versions are not built: tools/bert_versions.py")
@pytest.mark.parametrize("other", VERSIONS[1:])
def test_the_diff_of_real_versions(other, tmp_path):
    result = compare_models(str(FOLDER / VERSIONS[0]), str(FOLDER / other), catalog=tmp_path)
    sides = [load_file(FOLDER / version / "model.safetensors") for version in (VERSIONS[0], other)]
    layers = json.loads((FOLDER / other / "config.json").read_text())["num_hidden_layers"]
    assert [layer.layer for layer in result.layers] == list(range(layers))
    for layer in result.layers:
        end = f"encoder.layer.{layer.layer}.output.dense.weight"
        old, new = (
            next(side[name] for name in side if name.endswith(end) and "attention" not in name).double()
            for side in sides
        )
        assert layer.relative_change == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-9)
        place = int((new - old).abs().argmax())
        largest = layer.largest_change
        assert (largest.row, largest.col) == divmod(place, old.shape[1])
        assert (largest.old, largest.new) == (float(old.flatten()[place]), float(new.flatten()[place]))
        tops = [side.abs().flatten().topk(20).indices.tolist() for side in (old, new)]
        shared = sorted(set(tops[0]) & set(tops[1]))
        assert (layer.ranked, layer.shared) == (20, len(shared))
        magnitudes = [side.abs().flatten()[shared] for side in (old, new)]
        assert layer.rank_correlation == pytest.approx(spearman(*magnitudes))
    largest = max(result.layers, key=lambda layer: layer.relative_change)
    assert largest.layer == layers - 1  # fine-tuning moves the last layer most
