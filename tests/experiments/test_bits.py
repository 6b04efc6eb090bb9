"""Flipped bits on a planted model: new values by torch's own view of the bits, losses by edited weights."""

import math

import pytest
import torch
from models import PLANTED, plant, random_llama, save
from plainly import losses, times, windows

from analyzer.base.errors import ForwardError
from analyzer.base.records import Coordinate
from analyzer.experiments import bits

INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def flipped(value, bit, dtype):
    stored = torch.tensor(value, dtype=dtype).view(INTEGERS[dtype]).item()
    size = dtype.itemsize * 8
    new = (stored ^ (1 << bit)) & ((1 << size) - 1)
    new -= (1 << size) if new >= 1 << (size - 1) else 0
    return torch.tensor(new, dtype=INTEGERS[dtype]).view(dtype).item()


def test_every_bit_of_a_float32_against_the_edited_weight(planted, run):
    folder, plain = planted
    batch = windows(folder, 12)
    document = run(bits.EXPERIMENT).as_json()
    arms = document["arms"][1:]
    assert [arm["bit"] for arm in arms] == list(range(31, -1, -1))
    assert [arm["part"] for arm in arms] == ["sign"] + ["exponent"] * 8 + ["mantissa"] * 23
    for arm in arms:
        new = flipped(2.0, arm["bit"], torch.float32)
        assert arm["new"] == (new if math.isfinite(new) else None)
        if arm["bit"] % 4 == 3:
            with times(plain, {PLANTED: new / 2.0}):
                after = losses(plain, batch)
            assert arm["nll"] == pytest.approx(after.mean(), abs=1e-4)
    worst = max(arms, key=lambda arm: arm["nll"])
    assert worst["fatal"] == (worst["delta"] >= document["fatal_nats"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_bits_are_those_of_the_stored_floats(run, tmp_path, dtype):
    save(plant(random_llama().to(dtype)), tmp_path)
    value = 1.5703125
    arms = run(bits.EXPERIMENT, folder=save(plant(random_llama(), value=value).to(dtype), tmp_path)).as_json()["arms"]
    assert {arm["bit"]: arm["new"] for arm in arms[1:]} == {
        bit: pytest.approx(new) if math.isfinite(new := flipped(value, bit, dtype)) else None for bit in range(16)
    }


def test_a_flip_that_gives_no_number_is_fatal(run, tmp_path):
    folder = save(plant(random_llama(), value=1.5).to(torch.bfloat16), tmp_path)
    top = next(arm for arm in run(bits.EXPERIMENT, folder=folder).as_json()["arms"] if arm.get("bit") == 14)
    assert (top["new"], top["nll"], top["fatal"]) == (None, None, True)


def test_a_weight_that_is_zero_is_refused(planted, run, tmp_path):
    model = plant(random_llama(), value=0.0)
    with pytest.raises(ForwardError, match="1,77,31 is 0, which no factor changes"):
        run(bits.EXPERIMENT, folder=save(model, tmp_path))


def test_each_weight_has_its_bits(run):
    arms = run(bits.EXPERIMENT, weights=(PLANTED, Coordinate(3, None, 5, 19))).as_json()["arms"]
    assert [arm.get("of") for arm in arms].count("3,5,19") == 32
