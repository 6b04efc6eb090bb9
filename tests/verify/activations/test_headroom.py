"""Magnitudes against the limits of formats."""

from analyzer.verify.activations.headroom import headroom_of

MLPS = {
    0: {"mlp_input": 3.0, "down_input": 70_000.0, "mlp_output": 5.0},
    2: {"mlp_input": 3.0, "mlp_output": 449.0},
    4: {},
}


def test_the_first_layer_past_a_limit_and_the_largest_of_all():
    headroom = headroom_of(3, {0: 100.0, 1: 90_000.0, 2: 80.0}, MLPS, ())
    assert headroom.float16.overflows_from == 0
    assert (headroom.float16.largest, headroom.float16.layer, headroom.float16.where) == (90_000.0, 1, "residual")
    assert headroom.float8_e4m3.overflows_from == 0
    assert [each.down_input for each in headroom.layers] == [70_000.0, None, None]


def test_the_limits_themselves_are_held():
    headroom = headroom_of(1, {0: 448.0, 1: 65504.0}, {}, ())
    assert (headroom.float16.overflows_from, headroom.float8_e4m3.overflows_from) == (None, 1)


def test_what_was_not_seen_is_told_of_layers_that_ran_and_have_an_mlp():
    headroom = headroom_of(1, {0: 1.0, 1: 1.0, 2: 1.0}, MLPS, {0})
    assert headroom.unseen == (0, 2)  # 1 has none, and 4 did not run
    assert headroom_of(1, {0: 1.0, 1: 1.0}, MLPS, ()).unseen == ()
