"""What is not read of a model is said, or refused; of a model that is read whole nothing is said."""

import re

import pytest
from layouts import CONFIG, HIDDEN, INNER, ROUTED, attention, dense, look, mixture, mlp, places, stored_as, without

from analyzer.base.errors import ArchitectureError
from analyzer.base.records import Unread
from analyzer.projections.down_projections import find_down_projections

EXPERTS = {**CONFIG, "n_routed_experts": 4}
BY_UNKNOWN_NAME = "looks like a down projection, by a name that is not known"
ODD = ("fwd", "bwd")  # an MLP that nobody knows


def refuses(said, shapes, **config):
    with pytest.raises(ArchitectureError) as caught:
        look(shapes, **config)
    message = str(caught.value)
    assert "\n" not in message
    assert said in message
    return message


def odd_mlps(place="extra", layers=range(3), stack="model.layers", hidden=HIDDEN, inner=INNER):
    shapes = {}
    for layer in layers:
        shapes |= mlp(f"{stack}.{layer}.{place}", inner, hidden, ODD)
    return shapes


@pytest.mark.parametrize("layers", [(0, 1, 2), (1,)])
def test_a_second_mlp_by_unknown_names_is_said(layers):
    found = look(dense() | odd_mlps(layers=layers), **CONFIG)
    assert len(found.projections) == 3
    assert found.unread == (Unread("model.layers.*.extra.bwd", len(layers), (HIDDEN, INNER), BY_UNKNOWN_NAME),)


@pytest.mark.parametrize("config", [CONFIG, {}, {"text_config": CONFIG}, {"model_type": "x"}])
def test_it_is_said_whatever_the_config_says(config):
    assert [each.count for each in look(dense() | odd_mlps(), **config).unread] == [3]


def test_a_non_gated_and_a_fused_input_tell_too():
    for name, shape in {"both": (2 * INNER, HIDDEN), "one": (INNER, HIDDEN)}.items():
        beside = {f"model.layers.1.extra.{name}.weight": shape, "model.layers.1.extra.out.weight": (HIDDEN, INNER)}
        assert [each.names for each in look(dense() | beside, **CONFIG).unread] == ["model.layers.*.extra.out"]


def test_a_whole_tower_by_unknown_names_is_refused():
    tower = odd_mlps("mlp", range(2), "vision_tower.blocks", 12, 20)
    message = refuses("in vision_tower.blocks by names that this version does not know", dense() | tower, **CONFIG)
    assert message.endswith("scan them with --tensors 'vision_tower.blocks.*.mlp.bwd.weight'")
    assert "[12, 20] x 2" in message
    language = odd_mlps("mlp", stack="model.language_model.layers")
    for layer in range(3):
        language |= attention(f"model.language_model.layers.{layer}")
    vision = dense("model.visual.blocks", range(2), 12, 20)
    refuses("in model.language_model.layers by names", language | vision, text_config=CONFIG)


def test_all_experts_by_unknown_names_are_refused():
    """The shared experts and the dense layer alone would be a plausible, wrong ranking."""
    shapes = without(mixture(), ".mlp.experts.")
    for layer in (1, 2):
        for expert in range(4):
            shapes |= mlp(f"model.layers.{layer}.moe.expert{expert}", ROUTED, names=ODD)
    message = refuses("has down projections of experts by names", shapes, **EXPERTS)
    assert "model.layers.*.moe.expert*.bwd.weight [16, 8] x 8" in message
    assert message.endswith("--tensors 'model.layers.*.moe.expert*.bwd.weight'")
    tensors = {name: ("BF16", shape) for name, shape in shapes.items()}
    found = find_down_projections("m", tensors, EXPERTS, pattern="model.layers.*.moe.expert*.bwd.weight")
    assert places(found)[0] == [f"{layer},{expert}" for layer in (1, 2) for expert in range(4)]
    assert found.unread == ()


@pytest.mark.parametrize("lying", [lambda rows, cols: (4, rows, cols), lambda rows, cols: (4, cols, rows)])
@pytest.mark.parametrize("gates", [("a_in", "b_in"), ("a_in",)])
def test_of_fused_experts_only_the_down_projection_is_proposed(lying, gates):
    if gates == ("a_in",) and lying(1, 2) == (4, 2, 1):
        pytest.skip("[experts, in, out] of one input is [experts, out, in] of the other way about")
    shapes = dense()
    for layer in range(3):
        block = f"model.layers.{layer}.experts"
        shapes |= {f"{block}.{name}": lying(ROUTED, HIDDEN) for name in gates}
        shapes[f"{block}.z_out"] = lying(HIDDEN, ROUTED)
    message = refuses("of experts by names", shapes, **EXPERTS)
    assert message.endswith("--tensors 'model.layers.*.experts.z_out'")
    assert "_in" not in message


@pytest.mark.parametrize(
    "shapes",
    [
        {"linear_1": (4, ROUTED, HIDDEN), "linear_v": (4, ROUTED, HIDDEN), "linear_2": (4, HIDDEN, ROUTED)},
        {"linear_1": (4, HIDDEN, ROUTED), "linear_v": (4, HIDDEN, ROUTED), "linear_2": (4, ROUTED, HIDDEN)},
    ],
)
def test_an_input_of_experts_by_another_name_is_no_candidate(shapes):
    experts = {
        f"model.layers.{layer}.mlp.experts.{name}": shape for layer in range(3) for name, shape in shapes.items()
    }
    found = look(dense() | experts, **CONFIG)
    assert found.unread == ()
    assert places(found)[1] == {(HIDDEN, INNER): 3, (HIDDEN, ROUTED): 12}


def test_an_unreadable_encoding_in_one_layer_is_said():
    found = look(stored_as(dense(), "U8", "layers.1.mlp.down_proj"), **CONFIG)
    assert places(found)[0] == ["0", "2"]
    assert found.unread == (
        Unread("model.layers.*.mlp.down_proj", 1, None, "stored by an unknown quantization"),
    )  # fmt: skip


def test_an_unreadable_encoding_of_a_layers_experts_is_said():
    found = look(stored_as(mixture(), "U8", "layers.2.mlp.experts"), **EXPERTS)
    assert [(each.names, each.count) for each in found.unread] == [("model.layers.*.mlp.experts.*.down_proj", 4)]


@pytest.mark.parametrize("part", ["mlp.", ".mlp.experts."])
def test_an_unreadable_encoding_of_all_experts_or_layers_is_refused(part):
    shapes = stored_as(mixture(), "U8", part)
    refuses("is stored as U8 by an unknown quantization", shapes, **EXPERTS)
    config = {**EXPERTS, "quantization_config": {"quant_method": "newq"}}
    refuses("is stored as U8 by newq", shapes, **config)


ENDS = [".W_q", ".trellis", ".weight_v", ".parametrizations.weight.original0", ".weight._data"]


@pytest.mark.parametrize("end", ENDS)
def test_a_way_of_storing_that_no_name_here_tells_is_said(end):
    """Of these tensors none has the name of a matrix that is known."""

    def otherwise(shapes, *parts):
        return {
            name.removesuffix(".weight") + end if any(part in name for part in parts) else name: shape
            for name, shape in shapes.items()
        }

    found = look(otherwise(dense(), "layers.1.mlp."), **CONFIG, quantization_config={"quant_method": "newq"})
    assert places(found)[0] == ["0", "2"]
    why = "stored by " + {".W_q": "hqq", ".weight._data": "quanto"}.get(end, "newq")
    assert found.unread == (Unread("model.layers.*.mlp.down_proj", 1, None, why),)
    refuses(f"experts.0.down_proj{end} is stored as BF16", otherwise(mixture(), ".mlp.experts."), **EXPERTS)
    refuses(f"layers.0.mlp.down_proj{end} is stored as BF16", otherwise(dense(), ".mlp."), **CONFIG)


@pytest.mark.parametrize("end", [".qweight", ".weight_packed"])
def test_a_packed_mlp_by_an_unknown_name_is_said(end):
    shapes = dense() | {f"model.layers.{n}.second_mlp.{name}{end}": (3, 4) for n in range(3) for name in ("fwd", "bwd")}
    why = "packed, in an MLP, by a name that is not known"
    assert [(each.names, each.count, each.shape, each.why) for each in look(shapes, **CONFIG).unread] == [
        ("model.layers.*.second_mlp.bwd", 3, None, why),
        ("model.layers.*.second_mlp.fwd", 3, None, why),
    ]


@pytest.mark.parametrize("place", ["post", "position", "lnx", "conversion"])
def test_words_that_only_begin_as_those_of_norms_and_convolutions_do(place):
    assert [each.count for each in look(dense() | odd_mlps(place), **CONFIG).unread] == [3]


def test_an_unreadable_tower_is_refused():
    vision = dense("model.visual.blocks", range(2), 12, 20)
    shapes = stored_as(dense() | vision, "U8", "visual.blocks.0.mlp", "visual.blocks.1.mlp")
    refuses("visual.blocks.0.mlp.down_proj.weight is stored as U8", shapes, text_config=CONFIG)


WHOLE = {
    "dense": (dense(), CONFIG),
    "no config": (dense(), {}),
    "mixture": (mixture(), EXPERTS),
    "other numbers": (mixture(experts=13), {**CONFIG, "num_experts": 13}),
    "no number of experts in the config": (mixture(), CONFIG),
    "a dense model of a kind that can have experts": (dense(), EXPERTS),
    "prediction block": (dense() | dense("mtp.layers", range(1)), CONFIG),
    "prediction block in the stack": (dense(layers=range(4)), {**CONFIG, "num_nextn_predict_layers": 1}),
    "pruned": (  # the block without an MLP has no norm for it either
        without(dense(), "layers.1.mlp", "layers.1.post_attention"), {**CONFIG, "model_type": "nemotron-nas"},
    ),
    "a linear map in place of an MLP": (
        without(dense(), "layers.1.mlp") | {"model.layers.1.mlp.linear_mlp.weight": (HIDDEN, HIDDEN)}, CONFIG,
    ),
    "latent attention": (
        dense() | {f"model.layers.{n}.self_attn.{k}.weight": v for n in range(3) for k, v in {
            "kv_a_proj_with_mqa": (10, HIDDEN), "kv_b_proj": (32, ROUTED), "q_a_proj": (ROUTED, HIDDEN),
            "q_b_proj": (32, ROUTED), "fwd": (INNER, HIDDEN), "bwd": (HIDDEN, INNER)}.items()}, CONFIG,
    ),
    "adapters": (
        dense() | {f"model.layers.{n}.{k}.weight": v for n in range(3) for k, v in {
            "mlp.down_proj.lora_A": (4, INNER), "mlp.down_proj.lora_B": (HIDDEN, 4), "adapter.down": (4, HIDDEN),
            "adapter.up": (HIDDEN, 4), "mlp.adapter_layer.in": (4, HIDDEN), "mlp.adapter_layer.out": (HIDDEN, 4),
        }.items()}, CONFIG,
    ),
    "recurrent blocks": (
        without(dense(), "layers.1.self_attn") | {f"model.layers.1.{k}": v for k, v in {
            "mamba.in_proj.weight": (64, HIDDEN), "mamba.out_proj.weight": (HIDDEN, 32), "mamba.A_log": (32, 4),
            "mamba.x_proj.weight": (5, 32), "mamba.dt_proj.weight": (32, 4), "mamba.conv1d.weight": (32, 1, 4),
        }.items()}, CONFIG,
    ),
    "mixers": (
        without(dense(), "layers.1.self_attn") | {"model.layers.1.mixer.in_proj.weight": (32, HIDDEN),
                                                  "model.layers.1.mixer.out_proj.weight": (HIDDEN, 32)}, CONFIG,
    ),
    "attention by other names": (
        dense() | {f"model.layers.{n}.{k}.weight": v for n in range(3) for k, v in {
            "sa.q": (INNER, HIDDEN), "sa.kv": (INNER, HIDDEN), "sa.proj": (HIDDEN, INNER),
            "indexer.wk": (INNER, HIDDEN), "indexer.back": (HIDDEN, INNER), "token_mixer.a": (INNER, HIDDEN),
            "token_mixer.b": (HIDDEN, INNER)}.items()}, CONFIG,
    ),
    "inputs of each layer, and maps of low rank": (
        dense() | {f"model.layers.{n}.{k}.weight": v for n in range(3) for k, v in {
            "per_layer_input_gate": (6, HIDDEN), "per_layer_projection": (HIDDEN, 6), "laurel.linear_left": (4, HIDDEN),
            "laurel.linear_right": (HIDDEN, 4)}.items()}, CONFIG,
    ),
    "routers and norms": (
        dense() | {f"model.layers.{n}.{k}.weight": v for n in range(3) for k, v in {
            "mlp.router.fwd": (4, HIDDEN), "mlp.router.bwd": (HIDDEN, 4), "pre_norm.a": (4, HIDDEN),
            "pre_norm.b": (HIDDEN, 4), "pos_embed.a": (4, HIDDEN), "pos_embed.b": (HIDDEN, 4)}.items()}, CONFIG,
    ),
    "embeddings and heads": (
        dense() | {"model.embed_tokens.weight": (50, HIDDEN), "lm_head.weight": (50, HIDDEN),
                   "score.0.dense.weight": (HIDDEN, INNER)}, CONFIG,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_nothing_is_said_of_what_is_read_whole(name):
    shapes, config = WHOLE[name]
    found = look(shapes, **config)
    assert found.unread == ()
    assert found.projections


def test_what_is_no_candidate_is_never_proposed():
    names = {
        "self_attn.o_proj": (HIDDEN, HIDDEN), "self_attn.out": (HIDDEN, INNER), "self_attn.in": (INNER, HIDDEN),
        "mixer.out_proj": (HIDDEN, 32), "mixer.in_proj": (32, HIDDEN), "mlp.router.out": (HIDDEN, 4),
        "mlp.router.in": (4, HIDDEN), "adapter.down": (4, HIDDEN), "adapter.up": (HIDDEN, 4),
        "pre_norm.out": (HIDDEN, 4), "pre_norm.in": (4, HIDDEN), "odd.fwd": (INNER, HIDDEN), "odd.bwd": (HIDDEN, INNER),
    }  # fmt: skip
    shapes = {f"net.{layer}.{name}.weight": shape for layer in range(3) for name, shape in names.items()}
    message = refuses("no MLP down projection that this version knows", shapes, hidden_size=HIDDEN)
    assert re.findall(r"net\.\*\S+", message) == ["net.*.odd.bwd.weight", "net.*.odd.bwd.weight'"]


@pytest.mark.parametrize("model_type", ["mamba", "mamba2", "falcon_mamba"])
def test_models_without_mlps_are_called_so(model_type):
    shapes = {f"backbone.layers.{n}.mixer.{k}.weight": v for n in range(3) for k, v in
              {"in_proj": (64, HIDDEN), "out_proj": (HIDDEN, 32), "x_proj": (5, 32)}.items()}  # fmt: skip
    message = refuses("is a state-space model, whose blocks have no MLP", shapes, model_type=model_type)
    assert "--tensors" not in message
    assert "--tensors" not in refuses("no MLP", shapes, model_type="a_new_one", hidden_size=HIDDEN)
