"""The score `gain`, against its definition written out on the parameters of real transformers modules."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import transformers
from checkpoints import random_downs, write_config, write_gpt2, write_llama, write_tensors
from families import FAMILIES
from sample_model import sample_model_folder

from analyzer.base.errors import ArchitectureError
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.numbers.matrices import Matrix, Part
from analyzer.numbers.plain import Plain
from analyzer.projections.down_projections import down_projections
from analyzer.scan.gain import SquaredLengths
from analyzer.scan.scanner import scan
from analyzer.source.folder import FolderSource

SAMPLE = sample_model_folder()

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


@dataclass(frozen=True)
class Block:
    """Where a block keeps what the gain depends on; `.T` follows a parameter that is kept as [in, out].

    `inputs` are gate and up, or the one input projection; of `fused` ones gate and up are halves or take turns.
    """

    inputs: tuple[str, ...]
    before: str | None = None
    after: str | None = None
    one_plus: bool = False
    fused: str | None = None


GATED = ("mlp.gate_proj", "mlp.up_proj")
NORM, PARALLEL = "post_attention_layernorm", "input_layernorm"
BLOCKS = {
    "llama": Block(GATED, NORM),
    "mistral": Block(GATED, NORM),
    "gemma": Block(GATED, NORM, one_plus=True),
    "gemma2": Block(GATED, "pre_feedforward_layernorm", "post_feedforward_layernorm", one_plus=True),
    "gemma3_text": Block(GATED, "pre_feedforward_layernorm", "post_feedforward_layernorm", one_plus=True),
    "olmo": Block(GATED),  # whose norms have no weights
    "olmo2": Block(GATED, None, "post_feedforward_layernorm"),
    "cohere": Block(GATED, PARALLEL),
    "phi3": Block(("mlp.gate_up_proj",), NORM, fused="halves"),
    "phi": Block(("mlp.fc1",), PARALLEL),
    "starcoder2": Block(("mlp.c_fc",), NORM),
    "gpt2": Block(("mlp.c_fc.T",), "ln_2"),
    "gpt_neox": Block(("mlp.dense_h_to_4h",), NORM),
    "gptj": Block(("mlp.fc_in",), "ln_1"),
    "opt": Block(("fc1",), "final_layer_norm"),
    "bloom": Block(("mlp.dense_h_to_4h",), NORM),
    "falcon_old": Block(("mlp.dense_h_to_4h",), PARALLEL),
    "falcon_new": Block(("mlp.dense_h_to_4h",), "ln_mlp"),
    "mpt": Block(("ffn.up_proj",), "norm_2"),
    "bert": Block(("intermediate.dense",), "attention.output.LayerNorm"),
    "modernbert": Block(("mlp.Wi",), "mlp_norm", fused="halves"),
    "t5_encoder": Block(("layer.1.DenseReluDense.wi",), "layer.1.layer_norm"),
    "vit": Block(("mlp.fc1",), "layernorm_after"),
    "clip_vision": Block(("mlp.fc1",), "layer_norm2"),
    "mixtral": Block(("mlp.experts.gate_up_proj",), NORM, fused="halves"),
    "qwen3_moe": Block(("mlp.experts.gate_up_proj",), NORM, fused="halves"),
    "granitemoe": Block(("block_sparse_moe.experts.gate_up_proj",), NORM, fused="halves"),
    "gpt_oss": Block(("mlp.experts.gate_up_proj.T",), NORM, fused="turns"),
}


def build(family):
    """Return a model whose every parameter is random, its norms too."""
    torch.manual_seed(0)
    model_class = getattr(transformers, family.name)
    model = model_class(model_class.config_class(**family.config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    return model


def matrix(block, name):
    """Return a parameter as float64, [out, in] or [experts, out, in]."""
    path = name.removesuffix(".T")
    try:
        parameter = block.get_parameter(path)
    except AttributeError:
        parameter = block.get_parameter(f"{path}.weight")
    parameter = parameter.detach().double()
    return parameter.transpose(-1, -2) if name.endswith(".T") else parameter


def gains(block, down_name, spec):
    """Return |W_down| times what can come in and go out, over the median row's norm: the design, word for word."""

    def norm(name):
        return 1.0 if name is None else (block.get_parameter(f"{name}.weight").detach().double() + spec.one_plus).abs()

    def expert_gains(down, inputs):
        lengths = [(weights * norm(spec.before)).norm(dim=1) for weights in inputs]
        if spec.fused == "halves":
            lengths = lengths[0].chunk(2)
        elif spec.fused == "turns":
            lengths = [lengths[0][0::2], lengths[0][1::2]]
        column = torch.stack(list(lengths)).prod(dim=0)
        row = norm(spec.after) * torch.ones(down.shape[0], dtype=torch.float64)
        scores = down.abs() * column[None, :] * row[:, None]
        # The median of an even number of rows is the mean of the middle two.
        return (scores / np.median(scores.square().sum(dim=1).sqrt().numpy())).numpy()

    down, inputs = matrix(block, down_name), [matrix(block, name) for name in spec.inputs]
    if down.ndim == 2:
        return {None: expert_gains(down, inputs)}
    return {e: expert_gains(down[e], [each[e] for each in inputs]) for e in range(down.shape[0])}


@pytest.mark.parametrize("name", BLOCKS)
def test_gain_is_what_the_design_says(tmp_path, name):
    family = FAMILIES[name]
    model = build(family)
    model.save_pretrained(tmp_path)
    (stack,) = family.stacks
    (down_name,) = stack.downs
    expected = {
        (layer, expert, row, col): score
        for layer, block in enumerate(model.get_submodule(stack.blocks))
        for expert, scores in gains(block, down_name, BLOCKS[name]).items()
        for (row, col), score in np.ndenumerate(scores)
    }
    checkpoint = Checkpoint(FolderSource(tmp_path))
    result = scan(checkpoint, down_projections(checkpoint), score="gain", top=60)
    best = sorted(expected, key=expected.get, reverse=True)[:60]
    assert [(o.layer, o.expert, o.row, o.col) for o in result.outliers] == best
    assert [o.score for o in result.outliers] == pytest.approx([expected[place] for place in best], rel=1e-5)
    assert result.score == "gain"
    magnitude = scan(checkpoint, down_projections(checkpoint), top=1)
    assert result.tensors == magnitude.tensors  # of |W|, whatever ranks the weights


def write_gated(folder, *, layers=2, rows=300, cols=700, **changes):
    """Write a llama whose matrices take several reads each."""
    generator = np.random.default_rng(0)
    tensors = {}
    for layer in range(layers):
        block = f"model.layers.{layer}"
        for name, shape in (("down_proj", (rows, cols)), ("gate_proj", (cols, rows)), ("up_proj", (cols, rows))):
            tensors[f"{block}.mlp.{name}.weight"] = generator.normal(0, 0.02, shape).astype(np.float32)
        tensors[f"{block}.post_attention_layernorm.weight"] = generator.normal(1, 0.1, rows).astype(np.float32)
    write_tensors(folder, {**tensors, **changes})
    write_config(folder, model_type="llama", hidden_size=rows)


def scan_in_blocks(folder, block_bytes, readers, **options):
    source = FolderSource(folder)
    source.block_bytes, source.readers = block_bytes, readers
    checkpoint = Checkpoint(source)
    return scan(checkpoint, down_projections(checkpoint), score="gain", **options)


def test_the_result_does_not_depend_on_blocks_or_threads(tmp_path, monkeypatch):
    monkeypatch.setattr("analyzer.numbers.matrices.TILE_NUMBERS", 1000)  # less than two rows
    write_gated(tmp_path)
    results = [scan_in_blocks(tmp_path, size, readers) for size, readers in ((1, 1), (1, 7), (50_000, 3), (1 << 22, 8))]
    for result in results[1:]:
        assert (result.outliers, result.tensors) == (results[0].outliers, results[0].tensors)  # to the last bit


def test_sums_over_tiles_do_not_depend_on_the_order_in_which_these_come(monkeypatch):
    monkeypatch.setattr("analyzer.numbers.matrices.TILE_NUMBERS", 8)
    matrix = Matrix(Part("w", "F64", (2, 800), 0, 12_800), (), Plain("F64"), (2, 800), transposed=False)
    tiles = list(enumerate(matrix.tiles()))
    totals = set()
    for order in (tiles, tiles[::-1], tiles[1::2] + tiles[::2]):
        lengths = SquaredLengths(matrix)
        for number, tile in order:
            generator = np.random.default_rng(number)
            lengths.add(number, tile, generator.lognormal(0, 10, (tile.lines, tile.units)))
        totals.add(lengths.total.tobytes())
    assert len(totals) == 1


def test_bytes_read_are_those_of_the_mlp_and_its_norm(tmp_path):
    write_gated(tmp_path)
    checkpoint = Checkpoint(FolderSource(tmp_path))
    headers = checkpoint.bytes_read
    result = scan(checkpoint, down_projections(checkpoint), score="gain")
    assert result.bytes_read - headers == 2 * 4 * (3 * 300 * 700 + 300)


def test_weights_that_are_no_numbers_have_no_gain(tmp_path):
    down = np.full((4, 6), 0.5, np.float32)
    down[1, 2], down[3, 3], down[2, 5] = np.nan, np.inf, -3
    gate = np.ones((6, 4), np.float32)
    gate[0, 0] = np.inf
    name = "model.layers.0.mlp.{}.weight".format
    write_gated(
        tmp_path, layers=1, rows=4, cols=6, **{name("down_proj"): down, name("gate_proj"): gate, name("up_proj"): gate}
    )
    result = scan_in_blocks(tmp_path, 1 << 20, 2, top=24)
    assert (result.outliers[0].row, result.outliers[0].col) == (2, 5)
    assert len(result.outliers) == 22
    assert all(np.isfinite(o.score) for o in result.outliers)
    assert result.tensors[0].nonfinite == 2


def test_all_zero(tmp_path):
    zero = np.zeros((4, 6), np.float32)
    write_gated(tmp_path, layers=1, rows=4, cols=6, **{"model.layers.0.mlp.down_proj.weight": zero})
    result = scan_in_blocks(tmp_path, 1 << 20, 2, top=3)
    assert [(o.row, o.col, o.score) for o in result.outliers] == [(0, 0, 0.0), (0, 1, 0.0), (0, 2, 0.0)]


@pytest.mark.skipif(not SAMPLE.exists(), reason="the sample model is not built: tools/sample_model.py")
def test_gain_finds_the_sample_models_super_weight():
    checkpoint = Checkpoint(FolderSource(SAMPLE))
    outliers = scan(checkpoint, down_projections(checkpoint), score="gain", top=500).outliers
    assert (11, 507, 1229) in [(o.layer, o.row, o.col) for o in outliers[:3]]
    first_in_layer = next(o for o in outliers if o.layer == 11)
    assert (first_in_layer.row, first_in_layer.col) == (507, 1229)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (write_gpt2, "what goes into transformer.h.0.mlp.c_proj has no name that this version knows"),
        (
            lambda folder, downs: (
                write_llama(folder, downs),
                write_tensors(
                    folder,
                    {
                        "model.layers.0.mlp.down_proj.weight": downs[0],
                        "model.layers.0.mlp.up_proj.weight": np.ones((5, 7), np.float32),
                    },
                ),
            ),
            "up_proj.weight of shape [5, 7] does not fit model.layers.0.mlp.down_proj.weight of shape [8, 20]",
        ),
    ],
)
def test_models_whose_gain_cannot_be_told(tmp_path, write, said):
    write(tmp_path, random_downs())
    checkpoint = Checkpoint(FolderSource(tmp_path))
    with pytest.raises(ArchitectureError) as caught:
        scan(checkpoint, down_projections(checkpoint), score="gain")
    assert said in str(caught.value)
