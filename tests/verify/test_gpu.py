"""The verdict on a GPU is that of the CPU, however its blocks come there."""

import pytest
import torch
from families import FAMILIES, build
from models import (
    MIXTURES,
    PLANTED,
    found_at,
    plant,
    plant_in,
    random_llama,
    save,
    sized,
    verify_folder,
    with_large_weights,
)

from analyzer.base.records import Coordinate

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
WAYS = ["resident", "streamed"]


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    if request.param == "streamed":
        monkeypatch.setattr("analyzer.forward.runner.bearable_bytes", lambda _: 0)
    return request.param


def test_the_planted_weight_is_found_on_cuda(tmp_path, way):
    folder = save(plant(random_llama()), tmp_path)
    on_cpu, on_gpu = (verify_folder(folder, device=device, dtype="float32") for device in ("cpu", "cuda"))
    assert (on_gpu.device, on_gpu.dtype, on_gpu.verdict) == ("cuda", "float32", "found")
    found, expected = found_at(on_gpu, PLANTED), found_at(on_cpu, PLANTED)
    assert (found.status, found.effect) == (expected.status, expected.effect)
    assert found.share == pytest.approx(expected.share, abs=1e-3)
    assert found.loss_zeroed == pytest.approx(expected.loss_zeroed, rel=1e-3)
    passes, loads = on_gpu.cost.passes, on_gpu.cost.block_loads
    assert loads == 6 if way == "resident" else loads > 6 * (passes - 2)  # of which some end early


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MIXTURES)
def test_one_experts_weight_is_found_on_cuda(tmp_path, way, name, dtype):
    model = with_large_weights(build(FAMILIES[name], **sized(name, 64, 5))).eval()
    expert = plant_in(model, name)
    result = verify_folder(save(model.to(getattr(torch, dtype)), tmp_path), device="cuda", dtype=dtype)
    assert found_at(result, Coordinate(1, expert, 5, 19)).status == "confirmed"
