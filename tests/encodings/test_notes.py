"""What is said of values that may not be the model's."""

import numpy as np
from checkpoints import random_downs, write_llama
from encoders import bitnet
from quantized import MODELS, float8, linears, open_folder, write

from analyzer.encodings.notes import notes

BITNET = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}


def notes_on(folder):
    checkpoint, projections = open_folder(folder)
    return notes([projection.matrix for projection in projections], checkpoint.config)


def test_of_plain_and_of_scaled_weights_nothing_is_said(tmp_path):
    write_llama(tmp_path / "plain", random_downs())
    write(tmp_path / "fp8", MODELS["fp8, blocks"]())
    assert notes_on(tmp_path / "plain") == notes_on(tmp_path / "fp8") == []


def test_floats_that_the_model_makes_ternary(tmp_path):
    write_llama(tmp_path / "floats", random_downs(), quantization_config=BITNET)
    write(tmp_path / "packed", linears(bitnet(divided=False), BITNET, dtype=""))
    [note] = notes_on(tmp_path / "floats")
    assert "bitnet" in note
    assert "ternary" in note
    assert notes_on(tmp_path / "packed") == []


def test_8_bit_floats_without_scales(tmp_path):
    write_llama(tmp_path, [float8(np.ones((8, 20), np.uint8), "F8_E4M3")[0]])
    [note] = notes_on(tmp_path)
    assert "no scale" in note
