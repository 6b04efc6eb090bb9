"""What config.json says, wherever in it."""

import pytest

from analyzer.base.config import (
    HIDDEN_SIZE_KEYS,
    NUM_LAYERS_KEYS,
    hidden_sizes,
    language_part,
    model_types,
    quantization,
    quantization_name,
    size_in,
    sizes_in,
    ternary_when_run,
)

THINKER = {
    "model_type": "omni",
    "thinker_config": {
        "model_type": "thinker",
        "text_config": {"model_type": "text", "hidden_size": 16, "num_hidden_layers": 3},
        "vision_config": {"model_type": "vision", "hidden_size": 12, "depth": 2},
    },
}


def test_sizes_at_any_depth():
    assert sizes_in(THINKER, HIDDEN_SIZE_KEYS) == hidden_sizes(THINKER) == {16, 12}
    assert language_part(THINKER) == THINKER["thinker_config"]["text_config"]
    assert size_in(language_part(THINKER), NUM_LAYERS_KEYS) == 3
    assert model_types(THINKER) == {"omni", "thinker", "text", "vision"}


def test_a_config_without_parts_is_its_own_language_part():
    assert language_part({"hidden_size": 8}) == {"hidden_size": 8}
    assert language_part({"text_config": None, "n_embd": 8}) == {"text_config": None, "n_embd": 8}


def test_no_depth_is_endless():
    deep = {"hidden_size": 1}
    for _ in range(50):
        deep = {"text_config": deep}
    assert sizes_in(deep, HIDDEN_SIZE_KEYS) == set()
    assert size_in(language_part(deep), HIDDEN_SIZE_KEYS) is None


@pytest.mark.parametrize("nonsense", [0, -1, True, 4.0, "4", None, [4], {"n": 4}])
def test_a_size_is_a_positive_whole_number(nonsense):
    assert size_in({"hidden_size": nonsense, "d_model": 8}, HIDDEN_SIZE_KEYS) == 8
    assert sizes_in({"hidden_size": nonsense}, HIDDEN_SIZE_KEYS) == set()


def test_a_bottleneck_has_a_width_of_its_own():
    assert hidden_sizes({"hidden_size": 512, "true_hidden_size": 128}) == {128}


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({}, None),
        ({"quantization_config": {}}, None),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"text_config": {"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP4"}}}, "modelopt FP4"),
        ({"compression_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}},
         "compressed-tensors pack-quantized"),
        ({"quantization": {"bits": 4}}, None),
        ({"quantization_config": "nonsense"}, None),
    ],
)  # fmt: skip
def test_the_name_of_a_quantization(config, name):
    assert quantization_name(config) == name


def test_a_model_that_is_made_ternary():
    assert ternary_when_run({"quantization_config": {"quant_method": "bitnet"}})
    assert not ternary_when_run({"quantization_config": {"quant_method": "gptq"}})
    assert quantization({"quantization": {"group_size": 64}}) == {"group_size": 64}
