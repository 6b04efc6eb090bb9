"""What shapes say: the width of a residual stream, which way round a matrix lies, what is no channel of the stream."""

import pytest
from layouts import CONFIG, HIDDEN, INNER, ROUTED, attention, dense, look, mlp, places

from analyzer.base.errors import ArchitectureError
from analyzer.projections.names import find_modules
from analyzer.projections.stacks import residual_widths, shapes_beside


def widths(shapes, *sizes, stacks=("model.layers",)):
    return residual_widths(set(stacks), stored(shapes), set(sizes))


def stored(shapes):
    return {name: each if isinstance(each[0], str) else ("BF16", each) for name, each in shapes.items()}


def test_the_width_is_what_most_kinds_of_tensors_have():
    vision = dense("visual.blocks", range(2), 12, 20)
    found = widths(dense() | vision, stacks=("model.layers", "visual.blocks"))
    assert found == {"model.layers": HIDDEN, "visual.blocks": 12}
    assert widths(dense(), INNER) == {"model.layers": HIDDEN}  # a config that names another does not change it


def test_of_sizes_as_frequent_the_config_tells():
    bare = {"model.layers.0.mlp.down_proj.weight": (HIDDEN, INNER)}
    assert widths(bare, HIDDEN, 99) == {"model.layers": HIDDEN}
    assert widths(bare, INNER) == {"model.layers": INNER}
    assert widths(bare) == widths(bare, HIDDEN, INNER) == widths({}) == {"model.layers": None}


def test_scales_and_packed_weights_do_not_count():
    packed = {f"model.layers.0.mlp.{name}.weight": ("U8", (HIDDEN, 12)) for name in ("down_proj", "x", "y")}
    scales = {f"model.layers.0.mlp.{name}.weight_scale": ("F32", (99, 99)) for name in ("down_proj", "x", "y", "z")}
    assert widths(attention("model.layers.0") | packed | scales) == {"model.layers": HIDDEN}


def test_what_could_turn_latent_rows_is_no_part_of_an_mlp():
    shapes = dense() | {"model.layers.1.back.weight": (HIDDEN, 12)}
    beside = shapes_beside(find_modules([name.removesuffix(".weight") for name in shapes]), stored(shapes))
    assert beside["model.layers.1"] == beside["model.layers.0"] | {(HIDDEN, 12)}
    assert not {(HIDDEN, INNER), (INNER, HIDDEN)} & beside["model.layers.0"]


def lying(found):
    return {(each.shape, each.matrix.transposed) for each in found.projections}


def conv1d(hidden=HIDDEN, inner=INNER):
    """Return blocks whose linears are all [in, out]."""
    linears = {"attn.c_attn": (hidden, 3 * hidden), "attn.c_proj": (hidden, hidden)}
    linears |= {"mlp.c_fc": (hidden, inner), "mlp.c_proj": (inner, hidden), "ln_1": (hidden,), "ln_2": (hidden,)}
    return {f"h.{layer}.{name}.weight": shape for layer in range(2) for name, shape in linears.items()}


@pytest.mark.parametrize("config", [{"model_type": "gpt2", "n_embd": HIDDEN}, {"model_type": "mine"}, {}])
def test_inputs_tell_which_way_round_a_down_projection_lies(config):
    assert lying(look(conv1d(), **config)) == {((HIDDEN, INNER), True)}
    linear = {name: shape[::-1] for name, shape in conv1d().items()}
    config = {**config, "model_type": "starcoder2"}
    assert lying(look(linear, **config)) == {((HIDDEN, INNER), False)}


def experts(down, **inputs):
    shapes = {}
    for layer in range(2):
        shapes |= attention(f"model.layers.{layer}") | {f"model.layers.{layer}.mlp.gate.weight": (4, HIDDEN)}
        shapes[f"model.layers.{layer}.mlp.experts.down_proj"] = down
        shapes |= {f"model.layers.{layer}.mlp.experts.{name}": shape for name, shape in inputs.items()}
    return shapes


@pytest.mark.parametrize("suffix", ["", ".weight"])
@pytest.mark.parametrize("hidden_size", [HIDDEN, None])
@pytest.mark.parametrize(
    ("shapes", "turned"),
    [
        (experts((4, HIDDEN, ROUTED), gate_up_proj=(4, 2 * ROUTED, HIDDEN)), False),
        (experts((4, ROUTED, HIDDEN), gate_up_proj=(4, HIDDEN, 2 * ROUTED)), True),
        (experts((4, HIDDEN, ROUTED), gate_proj=(4, ROUTED, HIDDEN), up_proj=(4, ROUTED, HIDDEN)), False),
        (experts((4, ROUTED, HIDDEN), gate_proj=(4, HIDDEN, ROUTED), up_proj=(4, HIDDEN, ROUTED)), True),
        (experts((4, ROUTED, HIDDEN)), True),
    ],
)
def test_fused_experts_both_ways(shapes, turned, hidden_size, suffix):
    shapes = {name + (suffix if ".experts." in name else ""): shape for name, shape in shapes.items()}
    found = look(shapes, model_type="new", num_experts=4, **({"hidden_size": hidden_size} if hidden_size else {}))
    assert lying(found) == {((HIDDEN, ROUTED), turned)}
    assert places(found)[0] == [f"{layer},{expert}" for layer in range(2) for expert in range(4)]
    assert found.unread == ()


def test_experts_that_no_name_calls_so():
    """JetMoE's: what projects into them has one more dimension too."""
    shapes = {}
    for layer in range(2):
        shapes |= attention(f"model.layers.{layer}") | {f"model.layers.{layer}.mlp.router.layer.weight": (4, HIDDEN)}
        shapes[f"model.layers.{layer}.mlp.input_linear.weight"] = (4, 2 * ROUTED, HIDDEN)
        shapes[f"model.layers.{layer}.mlp.output_linear.weight"] = (4, HIDDEN, ROUTED)
    found = look(shapes, model_type="jetmoe", hidden_size=HIDDEN, num_local_experts=4)
    assert places(found) == ([f"{layer},{expert}" for layer in range(2) for expert in range(4)], {(HIDDEN, ROUTED): 8})


SQUARE = (4, HIDDEN, HIDDEN)
NOTHING_TELLS = "is square, and neither its name nor what is beside it tells which side is its output"


def test_square_fused_experts():
    fused = [experts(SQUARE, gate_up_proj=shape) for shape in ((4, 2 * HIDDEN, HIDDEN), (4, HIDDEN, 2 * HIDDEN))]
    assert [lying(look(shapes, model_type="new")) for shapes in fused] == [
        {((HIDDEN, HIDDEN), False)},
        {((HIDDEN, HIDDEN), True)},
    ]
    apart = experts(SQUARE, gate_proj=SQUARE, up_proj=SQUARE)
    with pytest.raises(ArchitectureError, match=NOTHING_TELLS):
        look(apart, model_type="new")
    assert lying(look(apart, model_type="gpt_oss")) == {((HIDDEN, HIDDEN), True)}  # known to have inputs first


@pytest.mark.parametrize("model_type", ["new", "gpt_oss", "llama4_text"])
@pytest.mark.parametrize("container", ["experts", "switch_mlp"])
@pytest.mark.parametrize(
    "inputs", [{"gate_proj": SQUARE, "up_proj": SQUARE}, {"gate_up_proj": (4, 2 * HIDDEN, HIDDEN)}]
)
def test_square_experts_that_are_a_modules_weight(model_type, container, inputs):
    """As MLX has them: outputs first, whatever the parameters of this architecture have elsewhere."""
    shapes = {
        f"{name.replace('experts', container)}.weight": shape for name, shape in experts(SQUARE, **inputs).items()
    }
    assert lying(look(shapes, model_type=model_type)) == {((HIDDEN, HIDDEN), False)}


def test_what_projects_into_an_mlp_counts_for_more_than_the_architecture():
    turned = experts(SQUARE, gate_up_proj=(4, 2 * HIDDEN, HIDDEN))
    assert lying(look(turned, model_type="gpt_oss")) == {((HIDDEN, HIDDEN), False)}


def test_square_matrices_that_libraries_keep_either_way():
    with pytest.raises(ArchitectureError, match=NOTHING_TELLS):
        look(conv1d(inner=HIDDEN), model_type="mine")
    assert lying(look(conv1d(inner=HIDDEN), model_type="gpt2")) == {((HIDDEN, HIDDEN), True)}
    assert lying(look(dense(inner=HIDDEN), **CONFIG)) == {((HIDDEN, HIDDEN), False)}


def bottleneck(block, inner=16, width=8, hidden=32):
    """Return MobileBERT's block: what it works in is narrower than the stream between blocks."""
    linears = {"attention.self.query": (width, width), "attention.output.dense": (width, width)}
    linears |= {"attention.self.value": (width, hidden), "output.bottleneck.dense": (hidden, width)}
    linears |= {"bottleneck.input.dense": (width, hidden), "bottleneck.attention.dense": (width, hidden)}
    for place in ("", *(f"ffn.{number}." for number in range(3))):
        linears |= {f"{place}intermediate.dense": (inner, width), f"{place}output.dense": (width, inner)}
    return {f"{block}.{name}.weight": shape for name, shape in linears.items()}


def test_a_bottleneck_has_a_width_of_its_own():
    shapes = bottleneck("mobilebert.encoder.layer.0") | bottleneck("mobilebert.encoder.layer.1")
    config = {"model_type": "mobilebert", "hidden_size": 32, "true_hidden_size": 8, "num_hidden_layers": 2}
    found = look(shapes, **config)
    assert places(found) == ([f"{layer}.{mlp}" for layer in range(2) for mlp in range(4)], {(8, 16): 8})
    assert [each.module.split(".", 4)[4] for each in found.projections[:4]] == [
        "ffn.0.output.dense", "ffn.1.output.dense", "ffn.2.output.dense", "output.dense",
    ]  # fmt: skip
    assert found.unread == ()


def test_experts_that_work_in_a_latent():
    shapes = {}
    for layer in range(4):
        block = f"backbone.layers.{layer}"
        shapes[f"{block}.norm.weight"] = (HIDDEN,)
        if layer % 2 == 0:
            shapes |= {f"{block}.mixer.in_proj.weight": (50, HIDDEN), f"{block}.mixer.out_proj.weight": (HIDDEN, 32)}
            continue
        shapes |= {f"{block}.mixer.fc1_latent_proj.weight": (12, HIDDEN), f"{block}.mixer.gate.weight": (4, HIDDEN)}
        shapes |= {f"{block}.mixer.fc2_latent_proj.weight": (HIDDEN, 12)}
        shapes |= mlp(f"{block}.mixer.shared_experts", names=("up_proj", "down_proj"))
        for expert in range(4):
            shapes |= mlp(f"{block}.mixer.experts.{expert}", ROUTED, 12, ("up_proj", "down_proj"))
    found = look(shapes, model_type="nemotron_h", hidden_size=HIDDEN, n_routed_experts=4, num_hidden_layers=4)
    assert {(each.expert is None, each.shape, each.writes) for each in found.projections} == {
        (True, (HIDDEN, INNER), None),
        (False, (12, ROUTED), "latent"),
    }
    assert len(found.projections) == 2 * (4 + 1)
    assert found.unread == ()
