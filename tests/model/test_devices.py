"""Where a model runs, in which floats, and what that place can bear."""

import pytest
import torch

from analyzer.base.errors import ForwardError, SettingsError
from analyzer.model.devices import bearable_bytes, pick_device, pick_dtype, row_bytes

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda:0", "mps"))


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_auto_is_cuda_where_there_is_one(two_gpus):
    assert pick_device("auto") == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda:1")
    assert pick_device("cpu") == CPU


def test_auto_is_the_cpu_elsewhere(no_gpu):
    assert pick_device("auto") == CPU


@pytest.mark.parametrize("name", ["cuda:2", "cuda:99"])
def test_a_device_beyond_the_last_is_one_line(two_gpus, name):
    with pytest.raises(ForwardError, match=f"there is no device {name} here: use --device auto"):
        pick_device(name)


@pytest.mark.parametrize("name", ["cpu:1", "xpu", "zap"])
def test_what_is_no_device_is_one_line(two_gpus, name):
    with pytest.raises(SettingsError, match=f"device is '{name}': give auto, "):
        pick_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_not_there_is_one_line(no_gpu, name):
    with pytest.raises(ForwardError, match=f"there is no device {name} here"):
        pick_device(name)


@pytest.mark.parametrize(
    ("name", "device", "stored", "dtype"),
    [
        ("auto", CPU, "BF16", torch.float32),
        ("auto", CPU, "F64", torch.float32),
        ("auto", CUDA, "BF16", torch.bfloat16),
        ("auto", CUDA, "F16", torch.float16),
        ("auto", MPS, "F16", torch.float16),
        ("auto", CUDA, "F64", torch.float32),
        ("auto", CUDA, "F8_E4M3", torch.float32),
        ("float16", CPU, "BF16", torch.float16),
        ("bfloat16", CUDA, "F32", torch.bfloat16),
        ("float32", CUDA, "BF16", torch.float32),
    ],
)
def test_floats_are_those_asked_for_or_that_suit_the_device(name, device, stored, dtype):
    assert pick_dtype(name, device, stored) == dtype


@pytest.mark.parametrize("name", ["zap", "float64"])
def test_no_other_floats_are_run_in(name):
    with pytest.raises(SettingsError, match=f"dtype is '{name}': give auto, float32, "):
        pick_dtype(name, CPU, "BF16")


def test_a_gpu_bears_a_part_of_what_is_free_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 << 30, 80 << 30))
    assert bearable_bytes(CUDA) == 6 << 30
    assert bearable_bytes(CPU) == bearable_bytes(MPS) == 1 << 30
    assert row_bytes(CUDA) == row_bytes(MPS) > row_bytes(CPU)
