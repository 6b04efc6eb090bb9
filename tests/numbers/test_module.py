"""A module as a checkpoint stores it, and the names of its kind."""

import pytest

from analyzer.numbers.module import starred


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("model.layers.3.mlp.experts.12.w2", "model.layers.*.mlp.experts.*.w2"),
        ("block.1.mlp.experts.expert_3.wo", "block.*.mlp.experts.expert_*.wo"),
        ("block.1.moe.expert3.wo", "block.*.moe.expert*.wo"),
        ("h.0.conv1d.w2", "h.*.conv1d.w2"),
    ],
)
def test_a_pattern_has_a_star_for_each_number(name, pattern):
    assert starred(name) == pattern
