"""Two checkpoints side by side: what is read and what is not, against both read whole."""

import ml_dtypes
import numpy as np
import pytest
from checkpoints import DTYPES, LLAMA_DOWN, edited, random_downs, write_config, write_gpt2, write_llama, write_tensors

from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.diff.layers import layers_of_pairs
from analyzer.diff.pairs import scan_pair
from analyzer.diff.together import Both, in_step
from analyzer.projections.down_projections import down_projections
from analyzer.scan.kept import ResultCache
from analyzer.scan.scanner import scan
from analyzer.source.folder import FolderSource
from analyzer.source.opening import open_model
from analyzer.source.streaming import Want

DOWN_BYTES = 8 * 20 * 2  # of the checkpoints here


def opened(source):
    checkpoint = Checkpoint(source)
    return checkpoint, down_projections(checkpoint)


def paired(old, new, *, score="magnitude", top=5, cache=None):
    """Compare two sources, and return the result with how many bytes of tensors each side was asked for."""
    (one, its), (other, others) = opened(old), opened(new)
    before = [one.bytes_read, other.bytes_read]
    scanned = scan_pair((one, other), (its, others), score=score, top=top, cache=cache, progress=lambda *_: None)
    return scanned, [one.bytes_read - before[0], other.bytes_read - before[1]]


def write_pair(tmp_path, old, new, **options):
    for name, downs in (("old", old), ("new", new)):
        write_llama(tmp_path / name, downs, **options)
    return FolderSource(tmp_path / "old"), FolderSource(tmp_path / "new")


def test_a_changed_weight_against_numpy(tmp_path):
    old = random_downs(layers=4)
    new = edited(edited(old, 1, 2, 3, 1.5), 3, 7, 19, -2.0)
    scanned, read = paired(*write_pair(tmp_path, old, new))
    assert [pair.same for pair in scanned.pairs] == [True, False, True, False]
    assert [pair.shared for pair in scanned.pairs] == [False] * 4
    assert read == [4 * DOWN_BYTES] * 2
    before, after = old[1][2, 3].astype(np.float64), 1.5
    change = scanned.pairs[1].change
    assert (change.place, change.old, change.new) == (2 * 20 + 3, before, after)
    assert change.squares == (after - before) ** 2
    layers = layers_of_pairs(scanned, top=5)
    assert [layer.state for layer in layers] == ["same", "changed", "same", "changed"]
    norm = np.linalg.norm(old[1].astype(np.float64))
    assert layers[1].relative_change == pytest.approx(abs(after - before) / norm, rel=1e-9)
    assert (layers[1].ranked, layers[1].shared) == (5, 4)
    largest = layers[3].largest_change
    assert (largest.row, largest.col, largest.old, largest.new) == (7, 19, float(old[3][7, 19]), -2.0)


@pytest.mark.parametrize("score", ["magnitude", "gain"])
def test_the_ranking_is_that_of_a_scan_of_what_differs(tmp_path, score):
    old, new = random_downs(layers=3), random_downs(layers=3, seed=1)
    new[1] = old[1]
    sides = write_pair(tmp_path, old, new)
    scanned, _ = paired(*sides, score=score)
    for source, side in zip(sides, scanned.scans, strict=True):
        checkpoint, projections = opened(source)
        alone = scan(checkpoint, [projections[0], projections[2]], score=score, top=5)
        assert (side.outliers, side.tensors) == (alone.outliers, alone.tensors)
        assert side.num_layers == 3


def test_dtypes_that_differ_are_compared_by_value(tmp_path):
    downs = random_downs(dtype="BF16")
    write_llama(tmp_path / "old", downs)
    write_llama(tmp_path / "new", [down.astype(np.float32) for down in downs])
    scanned, _ = paired(FolderSource(tmp_path / "old"), FolderSource(tmp_path / "new"))
    assert all(pair.same for pair in scanned.pairs)


def test_the_other_way_round_is_ranked_but_not_compared_weight_by_weight(tmp_path):
    downs = random_downs()
    write_llama(tmp_path / "old", downs)
    write_gpt2(tmp_path / "new", edited(downs, 0, 1, 1, 3.0))
    scanned, _ = paired(FolderSource(tmp_path / "old"), FolderSource(tmp_path / "new"))
    layer = layers_of_pairs(scanned, top=5)[0]
    assert (layer.state, layer.shared, layer.relative_change, layer.largest_change) == ("not compared", 4, None, None)
    assert layer.note == "stored in other ways, so ranked, but not compared weight by weight"


def test_what_quantizing_did_to_a_layer(tmp_path):
    (down,) = random_downs(layers=1, dtype="F32")
    scale = np.float32(np.abs(down).max() / 448)
    quantized = (down / scale).astype(ml_dtypes.float8_e4m3fn)
    name = LLAMA_DOWN.format(0)
    write_llama(tmp_path / "old", [down])
    write_tensors(tmp_path / "new", {name: quantized, f"{name}_scale": np.array([scale])})
    write_config(tmp_path / "new", model_type="llama")
    scanned, _ = paired(FolderSource(tmp_path / "old"), FolderSource(tmp_path / "new"))
    (layer,) = layers_of_pairs(scanned, top=5)
    error = quantized.astype(np.float32) * scale - down
    assert layer.relative_change == pytest.approx(np.linalg.norm(error) / np.linalg.norm(down), rel=1e-5)
    assert divmod(int(np.abs(error).argmax()), 20) == (layer.largest_change.row, layer.largest_change.col)


def test_the_norm_is_over_the_finite_weights(tmp_path):
    (down,) = random_downs(layers=1, dtype="F32")
    old, new = down.copy(), down.copy()
    old[:4] = np.nan
    new[5, 5] += 1.0
    scanned, _ = paired(*write_pair(tmp_path, [old], [new]))
    (layer,) = layers_of_pairs(scanned, top=5)
    assert layer.relative_change == pytest.approx(1.0 / np.linalg.norm(down[4:]), rel=1e-6)


def test_other_shapes_and_depths_are_said_layer_by_layer(tmp_path):
    old = random_downs(layers=3)
    new = [*old, old[0]]
    tensors = {LLAMA_DOWN.format(layer): down for layer, down in enumerate(new)}
    tensors[LLAMA_DOWN.format(1)] = np.ones((4, 20), DTYPES["BF16"])
    write_llama(tmp_path / "old", old)
    write_tensors(tmp_path / "new", tensors)
    write_config(tmp_path / "new", model_type="llama")
    scanned, read = paired(FolderSource(tmp_path / "old"), FolderSource(tmp_path / "new"))
    said = [(layer.layer, layer.state, layer.note) for layer in layers_of_pairs(scanned, top=5)]
    assert said == [
        (0, "same", None),
        (1, "incomparable", "8 x 20 and 4 x 20"),
        (2, "same", None),
        (3, "incomparable", "only in the new one"),
    ]
    assert read == [2 * DOWN_BYTES] * 2


def test_fused_experts_make_one_layer(tmp_path):
    generator = np.random.default_rng(0)
    old = generator.normal(0, 1, (4, 8, 20)).astype(np.float32)
    new = old.copy()
    new[2, 3, 4] += 5.0
    new[1, 0, 0] += 0.5
    for name, experts in (("old", old), ("new", new)):
        tensors = {
            "model.layers.0.mlp.experts.down_proj": np.ascontiguousarray(experts.transpose(0, 2, 1)),
            "model.layers.0.mlp.experts.gate_up_proj": np.ones((4, 8, 40), np.float32),
        }
        write_tensors(tmp_path / name, tensors)
        write_config(tmp_path / name, model_type="llama4_text", hidden_size=8, intermediate_size=20)
    scanned, _ = paired(FolderSource(tmp_path / "old"), FolderSource(tmp_path / "new"), top=10)
    (layer,) = layers_of_pairs(scanned, top=10)
    assert (layer.state, layer.note, layer.ranked) == ("changed", "2 of 4 experts differ", 10)
    largest = layer.largest_change
    assert (largest.expert, largest.row, largest.col) == (2, 3, 4)
    norm = np.linalg.norm(old[1:3].astype(np.float64))  # of the experts that differ
    assert layer.relative_change == pytest.approx(np.hypot(5.0, 0.5) / norm, rel=1e-5)


def test_files_of_the_same_content_are_not_read(hub, tmp_path):
    old = random_downs(layers=6)
    write_llama(tmp_path / "old", old, shards=4)
    write_llama(tmp_path / "new", edited(old, 4, 0, 0, 3.0), shards=4)
    first, second = (hub.add("owner/tiny", tmp_path / name) for name in ("old", "new"))
    contents = [{file.name: file.read_bytes() for file in (tmp_path / n).glob("*.safetensors")} for n in ("old", "new")]
    changed = {name for name in contents[0] if contents[0][name] != contents[1][name]}
    assert len(changed) == 1
    sources = [open_model("owner/tiny", revision=commit) for commit in (first, second)]
    hub.forget()
    scanned, read = paired(*sources)
    assert [pair.projections[0].layer for pair in scanned.pairs if not pair.shared] == [0, 4]  # of one shard
    assert scanned.shared_bytes == 4 * DOWN_BYTES
    assert read == [2 * DOWN_BYTES] * 2
    headers = sum(8 + int.from_bytes(data[:8], "little") for side in contents for data in side.values())
    assert hub.body_bytes["cdn"] == headers + 4 * DOWN_BYTES
    assert [layer.state for layer in layers_of_pairs(scanned, top=5)].count("same file") == 4


def test_a_local_copy_of_a_hub_model_is_hashed_and_nothing_downloaded(hub, folder):
    commit = hub.add("owner/tiny", folder)
    source = open_model("owner/tiny")
    local = FolderSource(folder)
    scanned, read = paired(source, local)
    assert commit == source.commit
    assert all(pair.shared for pair in scanned.pairs)
    size = (folder / "model.safetensors").stat().st_size
    assert read == [0, size]  # to hash it
    # A file of the same size and another content is not mistaken for it.
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    scanned, read = paired(source, FolderSource(folder))
    assert not any(pair.shared for pair in scanned.pairs)
    assert read == [3 * DOWN_BYTES, 3 * DOWN_BYTES + size]
    # One of another size is not even hashed.
    write_tensors(folder, {LLAMA_DOWN.format(0): random_downs()[0]})
    _, read = paired(source, FolderSource(folder))
    assert read == [DOWN_BYTES, DOWN_BYTES]


def test_an_added_expert_leaves_the_others_the_same(tmp_path):
    experts = np.random.default_rng(0).normal(0, 1, (9, 8, 20)).astype(np.float32)
    name = "model.layers.0.mlp.experts.{}.down_proj.weight"
    for folder, count in (("old", 8), ("new", 9)):
        write_tensors(tmp_path / folder, {name.format(n): experts[n] for n in range(count)})
        write_config(tmp_path / folder, model_type="qwen3_moe")
    scanned, _ = paired(FolderSource(tmp_path / "old"), FolderSource(tmp_path / "new"))
    (layer,) = layers_of_pairs(scanned, top=5)
    assert (layer.state, layer.ranked) == ("changed", None)
    assert layer.note == "the 8 experts of both are the same; 1 only in the new one"


def test_weights_that_are_not_finite_are_said_and_left_out_of_the_norm(tmp_path):
    (down,) = random_downs(layers=1, dtype="F32")
    old = down.copy()
    old[0, 0] = 100.0
    new = old * np.float32(1.5)
    new[0, 0] = np.nan
    scanned, _ = paired(*write_pair(tmp_path, [old], [new]))
    (layer,) = layers_of_pairs(scanned, top=5)
    assert layer.relative_change == pytest.approx(0.5, rel=1e-6)
    assert (layer.old_nonfinite, layer.new_nonfinite, layer.note) == (0, 1, None)


def test_both_sides_are_read_in_step():
    def wants(size, count):
        return [Want("f", number * size, (number + 1) * size, lambda _: None) for number in range(count)]

    read = list(in_step([iter(wants(10, 30)), iter(wants(60, 10))], [300, 600]))
    assert len(read) == 40
    done = [0, 0]
    for want in read:
        side = int(want.filename[0])
        assert want.filename == f"{side}f"
        done[side] += want.stop - want.start
        assert abs(done[0] / 300 - done[1] / 600) <= 0.1  # a block of the larger
    assert done == [300, 600]


def test_as_many_readers_as_the_more_patient_side_wants(hub, folder):
    hub.add("owner/tiny", folder)
    sides = [Checkpoint(open_model("owner/tiny")), Checkpoint(FolderSource(folder))]
    assert Both(sides).readers == Both(sides[::-1]).readers == sides[0].source.readers


def test_a_second_comparison_reads_nothing(hub, tmp_path):
    cache = ResultCache(tmp_path / "kept")
    for name, downs in (("old", random_downs()), ("new", random_downs(seed=1))):
        write_llama(tmp_path / name, downs)
        hub.add(f"owner/{name}", tmp_path / name)
    sources = [open_model(f"owner/{name}") for name in ("old", "new")]
    first, read = paired(*sources, cache=cache)
    again, read_again = paired(*sources, cache=cache)
    assert (read, read_again) == ([3 * DOWN_BYTES] * 2, [0, 0])
    assert layers_of_pairs(again, top=5) == layers_of_pairs(first, top=5)
    assert [side.outliers for side in again.scans] == [side.outliers for side in first.scans]
    _, other_way = paired(*sources[::-1], cache=cache)
    assert other_way == [3 * DOWN_BYTES] * 2  # the change from new to old is another
    # What a diff kept of each side is what a scan would have.
    checkpoint, projections = opened(sources[0])
    before = checkpoint.bytes_read
    scan(checkpoint, projections, top=5, cache=cache)
    assert checkpoint.bytes_read == before


def test_a_damaged_cache_is_read_over(hub, tmp_path):
    cache = ResultCache(tmp_path / "kept")
    for name, downs in (("old", random_downs(layers=1)), ("new", random_downs(layers=1, seed=1))):
        write_llama(tmp_path / name, downs)
        hub.add(f"owner/{name}", tmp_path / name)
    sources = [open_model(f"owner/{name}") for name in ("old", "new")]
    first, _ = paired(*sources, cache=cache)
    for path in (tmp_path / "kept").glob("*/*.json"):
        path.write_text(path.read_text().replace("squares", "sqares"))
    again, _ = paired(*sources, cache=cache)
    assert layers_of_pairs(again, top=5) == layers_of_pairs(first, top=5)
