"""Checkpoints that people have, as tiny ones: every matrix at its place and the planted weight first, or one line."""

import numpy as np
import pytest
from checkpoints import DTYPES, write_config, write_tensors
from layouts import CONFIG, GATED, HIDDEN, INNER, ROUTED, attention, dense, mixture, mlp, without

from analyzer.analyze.running import open_runnable
from analyzer.analyze.scanning import scan_model
from analyzer.base.errors import ArchitectureError
from analyzer.scan.records import ScanSettings
from analyzer.source.folder import FolderSource

DECOY = 9.0  # in all that is no down projection: who ranks another tensor ranks these
EXPERTS = {**CONFIG, "n_routed_experts": 4}


def write(folder, shapes, planted, config):
    """Write a checkpoint of these shapes, small numbers with one large in `planted`, (name, *index)."""
    generator = np.random.default_rng(0)
    tensors = {}
    for name, shape in shapes.items():
        down = any(word in name for word in ("down", "fc2", "w2", "wo.", "ffn_output", "value", "output.dense"))
        values = generator.normal(0, 0.02, shape) if down and len(shape) > 1 else np.full(shape, DECOY)
        tensors[name] = values.astype(DTYPES["BF16"])
    name, *index = planted
    tensors[name][tuple(index)] = -5.0
    write_tensors(folder, tensors)
    write_config(folder, **config)


def scanned(folder, shapes, planted, **config):
    """Return what a scan finds: of each matrix (tower, layer, expert, shape), the first outlier, the whole result."""
    write(folder, shapes, planted, config)
    result = scan_model(FolderSource(folder), ScanSettings(top=1, use_cache=False))
    (best,) = result.outliers
    assert best.value == -5.0
    assert best.tensor == planted[0]
    found = [(each.tower, each.layer, each.expert, each.shape) for each in result.tensors]
    return found, str(best.coordinate), result


def of_layers(tower, layers, shape=(HIDDEN, INNER), experts=(None,)):
    return [(tower, layer, expert, shape) for layer in layers for expert in experts]


def check(folder, shapes, planted, expected, coordinate, **config):
    found, best, result = scanned(folder, shapes, planted, **config)
    assert sorted(found, key=str) == sorted(expected, key=str)
    assert best == coordinate
    assert result.unread == ()
    return result


@pytest.mark.parametrize(
    ("stack", "ahead"),
    [("model.layers", "model.mtp_layers.0"), ("model.layers", "mtp.layers.0"), ("model.layers", "model.mtp.0"),
     ("backbone.layers", "nextn.layers.0")],
)  # fmt: skip
def test_a_prediction_block_beside_the_stack(tmp_path, stack, ahead):
    shapes = dense(stack) | mlp(f"{ahead}.mlp") | {f"{ahead}.eh_proj.weight": (HIDDEN, 2 * HIDDEN)}
    expected = of_layers(None, range(3)) + of_layers("mtp", [0])
    for planted, coordinate in ((f"{stack}.2", "2,3,5"), (ahead, "mtp:0,3,5")):
        result = check(
            tmp_path, shapes, (f"{planted}.mlp.down_proj.weight", 3, 5), expected, coordinate, **CONFIG,
            num_nextn_predict_layers=1,
        )  # fmt: skip
        assert result.num_layers == 3


def test_a_prediction_block_beside_language_and_vision(tmp_path):
    vision = {}
    for layer in range(2):
        vision |= mlp(f"model.visual.blocks.{layer}.mlp", 20, 12, ("linear_fc1", "linear_fc2"))
    shapes = dense("model.language_model.layers") | dense("mtp.layers", range(1)) | vision
    expected = of_layers("language", range(3)) + of_layers("mtp", [0]) + of_layers("vision", range(2), (12, 20))
    check(
        tmp_path, shapes, ("model.visual.blocks.1.mlp.linear_fc2.weight", 3, 5), expected, "vision:1,3,5",
        model_type="qwen3_5", text_config=CONFIG, vision_config={"hidden_size": 12},
    )  # fmt: skip


@pytest.mark.parametrize("prefix", ["model.layers", "model.language_model.layers", "thinker.model.layers"])
@pytest.mark.parametrize("deeper", [False, True])
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("inner", ["mlp", "mtp_block.mlp"])
def test_prediction_blocks_inside_the_stack(tmp_path, prefix, deeper, blocks, inner):
    shapes = dense(prefix)
    for layer in range(3, 3 + blocks):
        shapes |= attention(f"{prefix}.{layer}") | mlp(f"{prefix}.{layer}.{inner}.experts.0", ROUTED)
        shapes |= {
            f"{prefix}.{layer}.eh_proj.weight": (HIDDEN, 2 * HIDDEN),
            f"{prefix}.{layer}.enorm.weight": (HIDDEN,),
        }
    config = {**CONFIG, "num_nextn_predict_layers": blocks}
    expected = of_layers(None, range(3)) + of_layers("mtp", range(3, 3 + blocks), (HIDDEN, ROUTED), (0,))
    planted = (f"{prefix}.3.{inner}.experts.0.down_proj.weight", 3, 5)
    result = check(
        tmp_path, shapes, planted, expected, "mtp:3,0,3,5", **({"text_config": config} if deeper else config)
    )
    assert result.num_layers == 3


@pytest.mark.parametrize("ahead", [{}, {"num_nextn_predict_layers": 1}, {"num_nextn_predict_layers": None}])
def test_more_blocks_than_the_config_knows_are_refused(tmp_path, ahead):
    write(tmp_path, dense(layers=range(5)), ("model.layers.1.mlp.down_proj.weight", 3, 5), {**CONFIG, **ahead})
    with pytest.raises(ArchitectureError, match=r"blocks up to layer 4, but config\.json says it has 3"):
        scan_model(FolderSource(tmp_path))


SWITCH = (
    *("mlp.switch_mlp", "block_sparse_moe.switch_mlp", "feed_forward.switch_glu", "moe.switch_mlp"),
    *("experts.switch_glu", "feed_forward.experts"),
)


@pytest.mark.parametrize("experts", [2, 5])
@pytest.mark.parametrize(
    ("container", "names"), [*((each, GATED) for each in SWITCH), ("mixer.switch_mlp", ("fc1", "fc2"))]
)
@pytest.mark.parametrize("prefix", ["model.layers", "language_model.model.layers"])
def test_experts_as_mlx_names_them(tmp_path, prefix, container, names, experts):
    shapes = dense(prefix, range(1))
    for layer in (1, 2):
        block = f"{prefix}.{layer}"
        shapes |= attention(block) | mlp(f"{block}.{container}", ROUTED, names=names, experts=(experts,))
        shapes |= mlp(f"{block}.mlp.shared_experts", ROUTED) | {f"{block}.mlp.gate.weight": (experts, HIDDEN)}
    expected = of_layers(None, [0]) + of_layers(None, [1, 2], (HIDDEN, ROUTED), (None, *range(experts)))
    planted = (f"{prefix}.2.{container}.{names[-1]}.weight", 1, 3, 5)
    result = check(tmp_path, shapes, planted, expected, "2,1,3,5", **CONFIG, n_routed_experts=experts)
    assert result.experts == experts
    assert {each.mlp for each in result.tensors} == {None}  # one MLP beside experts needs no number


@pytest.mark.parametrize("prefix", ["backbone.layers", "language_model.backbone.layers"])
def test_nemotron_reads_its_routed_experts(tmp_path, prefix):
    shapes = {f"{prefix}.{layer}.norm.weight": (HIDDEN,) for layer in range(4)}
    shapes |= {f"{prefix}.0.mixer.in_proj.weight": (50, HIDDEN), f"{prefix}.0.mixer.out_proj.weight": (HIDDEN, 32)}
    shapes |= {f"{prefix}.2.mixer.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
    for layer in (1, 3):
        shapes |= mlp(f"{prefix}.{layer}.mixer.shared_experts", names=("up_proj", "down_proj"))
        shapes |= {f"{prefix}.{layer}.mixer.gate.weight": (4, HIDDEN)}
        for expert in range(4):
            shapes |= mlp(f"{prefix}.{layer}.mixer.experts.{expert}", ROUTED, names=("up_proj", "down_proj"))
    expected = of_layers(None, [1, 3]) + of_layers(None, [1, 3], (HIDDEN, ROUTED), range(4))
    planted = (f"{prefix}.3.mixer.experts.2.down_proj.weight", 3, 5)
    config = {"model_type": "nemotron_h", "hidden_size": HIDDEN, "num_hidden_layers": 4, "n_routed_experts": 4}
    result = check(tmp_path, shapes, planted, expected, "3,2,3,5", **config)
    assert (result.num_layers, result.intermediate_size) == (4, None)


@pytest.mark.parametrize("ahead", ["mtp.0", "model.mtp.layers.0"])
def test_deepseeks_own_names(tmp_path, ahead):
    shapes = {}
    for block in ("layers.0", "layers.1", ahead):
        shapes |= {f"{block}.attn.wq_a.weight": (ROUTED, HIDDEN), f"{block}.attn.wo_b.weight": (HIDDEN, 10)}
        shapes |= {f"{block}.ffn_norm.weight": (HIDDEN,), f"{block}.ffn.gate.weight": (3, HIDDEN)}
        for expert in range(3):
            shapes |= mlp(f"{block}.ffn.experts.{expert}", ROUTED, names=("w1", "w3", "w2"))
        shapes |= mlp(f"{block}.ffn.shared_experts", names=("w1", "w3", "w2"))
    each = [(HIDDEN, ROUTED), range(3)]
    expected = of_layers(None, [0, 1]) + of_layers(None, [0, 1], *each)
    expected += of_layers("mtp", [0]) + of_layers("mtp", [0], *each)
    config = {"model_type": "deepseek_v4", "hidden_size": HIDDEN, "num_hidden_layers": 2, "n_routed_experts": 3}
    check(tmp_path, shapes, ("layers.1.ffn.experts.2.w2.weight", 3, 5), expected, "1,2,3,5", **config)


@pytest.mark.parametrize("prefix", ["model.layers", "base_model.model.model.layers"])
def test_a_model_with_adapters_attached(tmp_path, prefix):
    shapes = {name.replace("_proj.weight", "_proj.base_layer.weight"): each for name, each in dense(prefix).items()}
    for layer in range(3):
        for kind in ("speech", "vision"):
            down = f"{prefix}.{layer}.mlp.down_proj"
            shapes |= {f"{down}.lora_A.{kind}.weight": (4, INNER), f"{down}.lora_B.{kind}.weight": (HIDDEN, 4)}
    image = "model.embed_tokens_extend.image_embed.img_processor.encoder.layers"
    for layer in range(2):
        shapes |= mlp(f"{image}.{layer}.mlp", 20, 12, ("fc1", "fc2"))
    expected = of_layers("language", range(3)) + of_layers("vision", range(2), (12, 20))
    planted = (f"{prefix}.2.mlp.down_proj.base_layer.weight", 3, 5)
    check(tmp_path, shapes, planted, expected, "language:2,3,5", **{**CONFIG, "model_type": "phi4mm"})


def test_weights_that_are_made_ternary_as_they_run(tmp_path):
    said = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    planted = ("model.layers.2.mlp.down_proj.weight", 3, 5)
    result = check(
        tmp_path, dense(), planted, of_layers(None, range(3)), "2,3,5", **CONFIG, quantization_config=said
    )  # fmt: skip
    assert any("ternary" in note for note in result.notes)
    with pytest.raises(ArchitectureError, match="made ternary each time it runs"):
        open_runnable(FolderSource(tmp_path))


def test_mistrals_own_names(tmp_path):
    names = ("w1", "w3", "w2")
    shapes = {"layers.0.attention.wq.weight": (HIDDEN, HIDDEN), "layers.0.attention.wo.weight": (HIDDEN, HIDDEN)}
    shapes |= mlp("layers.0.feed_forward", names=names)
    for layer in (1, 2):
        shapes |= {f"layers.{layer}.gate.weight": (3, HIDDEN), f"layers.{layer}.ffn_norm.weight": (HIDDEN,)}
        for expert in range(3):
            shapes |= mlp(f"layers.{layer}.experts.{expert}", ROUTED, names=names)
    expected = of_layers(None, [0]) + of_layers(None, [1, 2], (HIDDEN, ROUTED), range(3))
    planted = ("layers.1.experts.2.w2.weight", 3, 5)
    check(tmp_path, shapes, planted, expected, "1,2,3,5", model_type="mistral", dim=HIDDEN, n_layers=3)


def test_layers_without_an_mlp(tmp_path):
    """A network pruned by search: another width, a linear map for an MLP, a layer with none and without its norm."""
    shapes = attention("model.layers.0") | mlp("model.layers.0.mlp") | attention("model.layers.1")
    shapes |= {"model.layers.1.mlp.linear_mlp.weight": (HIDDEN, HIDDEN)}
    shapes |= attention("model.layers.2") | mlp("model.layers.2.mlp", 8)
    shapes |= without(attention("model.layers.3"), "post_attention")
    expected = of_layers(None, [0]) + of_layers(None, [2], (HIDDEN, 8))
    config = {"model_type": "nemotron-nas", "hidden_size": HIDDEN, "num_hidden_layers": 4}
    result = check(tmp_path, shapes, ("model.layers.2.mlp.down_proj.weight", 3, 5), expected, "2,3,5", **config)
    assert result.intermediate_size is None


def test_one_matrix_in_many_layers(tmp_path):
    layer = "albert.encoder.albert_layer_groups.0.albert_layers.0"
    shapes = mlp(layer, names=("ffn", "ffn_output")) | {f"{layer}.attention.query.weight": (HIDDEN, HIDDEN)}
    config = {"model_type": "albert", "hidden_size": HIDDEN, "num_hidden_layers": 12, "num_hidden_groups": 1}
    result = check(tmp_path, shapes, (f"{layer}.ffn_output.weight", 3, 5), of_layers(None, [0]), "0,3,5", **config)
    assert result.num_layers == 12
    assert result.outliers[0].layers == tuple(range(12))
    assert [each.layers for each in open_runnable(FolderSource(tmp_path)).projections] == [tuple(range(12))]


def test_models_with_other_blocks(tmp_path):
    mamba = {f"backbone.layers.{n}.mixer.{k}_proj.weight": v for n in range(3)
             for k, v in {"in": (64, HIDDEN), "out": (HIDDEN, 32)}.items()}  # fmt: skip
    write(tmp_path / "m", mamba, ("backbone.layers.1.mixer.out_proj.weight", 3, 5), {"model_type": "mamba"})
    with pytest.raises(ArchitectureError, match="have no MLP"):
        scan_model(FolderSource(tmp_path / "m"))
    expected = of_layers(None, range(3))
    rwkv = {}
    for n in range(3):
        rwkv |= mlp(f"model.layers.{n}.ffn", names=("key", "value"))
        rwkv |= {
            f"model.layers.{n}.attn.{k}.weight": (HIDDEN, HIDDEN) for k in ("key", "value", "output", "receptance")
        }
    planted = ("model.layers.2.ffn.value.weight", 3, 5)
    check(tmp_path / "r", rwkv, planted, expected, "2,3,5", model_type="rwkv7", hidden_size=HIDDEN)
    griffin = {name.replace(".mlp.", ".mlp_block."): shape for name, shape in dense().items()}
    planted = ("model.layers.2.mlp_block.down_proj.weight", 3, 5)
    check(tmp_path / "g", griffin, planted, expected, "2,3,5", **{**CONFIG, "model_type": "recurrent_gemma"})


def test_an_mlp_and_experts_in_one_layer(tmp_path):
    shapes = {}
    for layer in range(2):
        block = f"model.language_model.layers.{layer}"
        shapes |= attention(block) | mlp(f"{block}.mlp") | {f"{block}.router.proj.weight": (3, HIDDEN)}
        shapes |= {
            f"{block}.experts.gate_up_proj": (3, 2 * ROUTED, HIDDEN),
            f"{block}.experts.down_proj": (3, HIDDEN, ROUTED),
        }
        clipped = mlp(f"model.vision_tower.encoder.layers.{layer}.mlp", 20, 12)
        shapes |= {name.replace("_proj.weight", "_proj.linear.weight"): shape for name, shape in clipped.items()}
    expected = of_layers("language", range(2)) + of_layers("language", range(2), (HIDDEN, ROUTED), range(3))
    expected += of_layers("vision", range(2), (12, 20))
    planted = ("model.language_model.layers.1.experts.down_proj", 2, 3, 5)
    text = {"model_type": "gemma4_text", "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_experts": 3}
    check(tmp_path, shapes, planted, expected, "language:1,2,3,5", model_type="gemma4", text_config=text)


@pytest.mark.parametrize(
    "prefix", ["model.language_model.layers", "model.model.model.layers", "layers", "llm.m.blocks"]
)
def test_prefixes_do_not_matter(tmp_path, prefix):
    planted = (f"{prefix}.2.mlp.down_proj.weight", 3, 5)
    check(tmp_path, dense(prefix), planted, of_layers(None, range(3)), "2,3,5", **CONFIG)
    planted = (f"{prefix}.2.mlp.experts.3.down_proj.weight", 3, 5)
    expected = of_layers(None, [0]) + of_layers(None, [1, 2], (HIDDEN, ROUTED), (None, *range(4)))
    check(tmp_path, mixture(prefix), planted, expected, "2,3,3,5", **EXPERTS)


def test_gpt_oss_as_openai_stores_it(tmp_path):
    """Under other names: `block.N.mlp.mlp2_weight`, in MXFP4, its codes two a byte, the low one first."""
    tensors = {}
    for layer in range(2):
        mlp2 = f"block.{layer}.mlp.mlp2_weight"
        tensors[f"{mlp2}.blocks"] = np.full((3, 32, 2, 16), 0x11, np.uint8)  # 0.5
        tensors[f"{mlp2}.scales"] = np.full((3, 32, 2), 127, np.uint8)  # 1
        tensors[f"block.{layer}.mlp.gate.weight"] = np.full((3, 32), DECOY, DTYPES["BF16"])
        tensors[f"block.{layer}.attn.qkv.weight"] = np.full((96, 32), DECOY, DTYPES["BF16"])
    tensors["block.1.mlp.mlp2_weight.blocks"][2, 5, 1, 3] = 0x17  # 6, and 0.5 after it
    write_tensors(tmp_path, tensors)
    write_config(tmp_path, model_type="gpt_oss", hidden_size=32, num_hidden_layers=2, num_experts=3)
    result = scan_model(FolderSource(tmp_path), ScanSettings(top=1, use_cache=False))
    assert [(each.layer, each.expert, each.shape, each.dtype) for each in result.tensors] == [
        (layer, expert, (32, 64), "MXFP4") for layer in range(2) for expert in range(3)
    ]
    assert (str(result.outliers[0].coordinate), result.outliers[0].value) == (f"1,2,5,{32 + 6}", 6.0)
    assert result.unread == ()


def test_a_bottleneck_is_not_taken_for_a_matrix_the_other_way_round(tmp_path):
    """MobileBERT's hidden size is that of the stream between blocks, not of what is inside of them."""
    block = "mobilebert.encoder.layer.0"
    shapes = {f"{block}.intermediate.dense.weight": (INNER, 8), f"{block}.output.dense.weight": (8, INNER)}
    shapes |= {f"{block}.attention.self.query.weight": (8, 8), f"{block}.output.bottleneck.dense.weight": (INNER, 8)}
    config = {"model_type": "mobilebert", "hidden_size": INNER, "intermediate_size": INNER, "true_hidden_size": 8}
    planted = (f"{block}.output.dense.weight", 3, 5)
    check(tmp_path, shapes, planted, [(None, 0, None, (8, INNER))], "0,3,5", **config)


def test_a_model_whose_tower_has_unread_parts_is_not_verified(tmp_path):
    shapes = dense() | {
        "model.layers.1.extra.fwd.weight": (INNER, HIDDEN),
        "model.layers.1.extra.bwd.weight": (HIDDEN, INNER),
    }
    write(tmp_path, shapes, ("model.layers.1.mlp.down_proj.weight", 3, 5), CONFIG)
    assert [each.count for each in scan_model(FolderSource(tmp_path)).unread] == [1]
    with pytest.raises(ArchitectureError, match=r"has parts that are not read: model\.layers\.\*\.extra\.bwd x 1"):
        open_runnable(FolderSource(tmp_path))


def test_what_is_asked_for_is_not_unread(tmp_path):
    shapes = dense() | {
        "model.layers.1.extra.fwd.weight": (INNER, HIDDEN),
        "model.layers.1.extra.bwd.weight": (HIDDEN, INNER),
    }
    write(tmp_path, shapes, ("model.layers.1.mlp.down_proj.weight", 3, 5), CONFIG)
    for settings in (ScanSettings(layers=(range(1), range(2, 3))), ScanSettings(pattern="*.mlp.down_proj.weight")):
        assert scan_model(FolderSource(tmp_path), settings).unread == ()
    (unread,) = scan_model(FolderSource(tmp_path), ScanSettings(layers=(range(1, 2),))).unread
    assert (unread.names, unread.count) == ("model.layers.*.extra.bwd", 1)
