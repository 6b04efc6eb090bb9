"""One stored matrix that several blocks use: which they are, where it is, how many blocks the model has."""

import pytest
from layouts import HIDDEN, INNER, attention, look, mlp

from analyzer.base.errors import ArchitectureError
from analyzer.projections.projection import num_layers_of


def albert(groups, inner=1):
    shapes = {}
    for group in range(groups):
        for number in range(inner):
            layer = f"albert.encoder.albert_layer_groups.{group}.albert_layers.{number}"
            shapes |= mlp(layer, names=("ffn", "ffn_output")) | {f"{layer}.attention.query.weight": (HIDDEN, HIDDEN)}
            shapes[f"{layer}.full_layer_layer_norm.weight"] = (HIDDEN,)
    return shapes


ALBERT = {"model_type": "albert", "hidden_size": HIDDEN, "num_hidden_layers": 12}
ALL = tuple(range(12))


@pytest.mark.parametrize(
    ("groups", "inner", "expected"),
    [
        (1, 1, [(0, None, ALL)]),
        (3, 1, [(0, None, ALL[:4]), (4, None, ALL[4:8]), (8, None, ALL[8:])]),
        (1, 2, [(0, 0, ALL), (0, 1, ALL)]),
        (
            5,
            1,
            [(0, None, (0, 1, 2)), (3, None, (3, 4)), (5, None, (5, 6, 7)), (8, None, (8, 9)), (10, None, (10, 11))],
        ),
    ],
)
def test_albert_has_groups_of_blocks(groups, inner, expected):
    """The block `i` of ALBERT is of the group int(i / (blocks / groups)); `layer` is the first of a group."""
    found = look(albert(groups, inner), **ALBERT, num_hidden_groups=groups, inner_group_num=inner)
    assert [(each.layer, each.mlp, each.layers) for each in found.projections] == expected
    assert {each.tower for each in found.projections} == {None}
    assert num_layers_of(found.projections) == 12
    assert found.unread == ()
    for _, _, layers in expected:
        assert all(int(layer / (12 / groups)) == int(layers[0] / (12 / groups)) for layer in layers)


def test_without_a_number_of_groups_there_is_one():
    found = look(albert(1), **ALBERT)
    assert [each.layers for each in found.projections] == [ALL]
    assert found.unread == ()


def test_a_depth_that_no_model_has_is_refused():
    with pytest.raises(ArchitectureError, match="1000000000 blocks share 1 group"):
        look(albert(1), **ALBERT | {"num_hidden_layers": 10**9})


HYBRID = ["mamba", "hybrid", "mamba", "hybrid", "mamba", "hybrid"]


def zamba(blocks):
    shapes = {}
    for layer in range(6):
        shapes |= {f"model.layers.{layer}.mamba.in_proj.weight": (64, HIDDEN)}
        shapes |= {f"model.layers.{layer}.input_layernorm.weight": (HIDDEN,)}
    for layer in blocks:
        block = f"model.layers.{layer}.shared_transformer"
        shapes |= attention(block) | mlp(f"{block}.feed_forward", names=("gate_up_proj", "down_proj"))
        shapes[f"{block}.feed_forward.gate_up_proj.weight"] = (2 * INNER, HIDDEN)
    return shapes


@pytest.mark.parametrize(
    ("blocks", "expected"), [((1,), [(1, (1, 3, 5))]), ((1, 3), [(1, (1, 5)), (3, None)])]
)  # fmt: skip
def test_zamba_shares_an_mlp_among_its_hybrid_blocks(blocks, expected):
    config = {"model_type": "zamba2", "hidden_size": HIDDEN, "num_hidden_layers": 6, "layers_block_type": HYBRID}
    found = look(zamba(blocks), **config, num_mem_blocks=len(blocks))
    assert [(each.layer, each.layers) for each in found.projections] == expected
    assert found.unread == ()


def test_other_models_share_nothing():
    config = {"hidden_size": HIDDEN, "num_hidden_layers": 6, "num_hidden_groups": 2, "layers_block_type": ["attention"]}
    shapes = {}
    for layer in range(6):
        shapes |= attention(f"model.layers.{layer}") | mlp(f"model.layers.{layer}.mlp")
    assert {each.layers for each in look(shapes, **config).projections} == {None}
