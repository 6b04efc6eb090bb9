"""Where a model runs, in which floats, and what that place can bear."""

from __future__ import annotations

import torch

from analyzer.base.errors import ForwardError
from analyzer.base.settings import check_device, check_dtype

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KEEP_BYTES = 1 << 30  # on a CPU, a model whose blocks take no more stays in memory
CPU_ROW_BYTES = 1 << 27  # what the rows that a block runs at once may take; a CPU gains nothing from more
GPU_ROW_BYTES = 1 << 31


def pick_device(name: str) -> torch.device:
    """Return the device of a name, auto being CUDA where there is one.

    Raises SettingsError where it is no device's name, ForwardError where it is not there.
    """
    check_device(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    available = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }.get(device.type, 0)
    if (device.index or 0) >= available:
        raise ForwardError(f"there is no device {name} here: use --device auto")
    return device


def pick_dtype(name: str, device: torch.device, stored: str) -> torch.dtype:
    """Return the dtype of a name; auto is float32 on a CPU, elsewhere that of what is `stored` as F16 or BF16.

    Anything else that is stored runs in float32: GPUs lack float64. Raises SettingsError for any other name.
    """
    check_dtype(name)
    if name in DTYPES:
        return DTYPES[name]
    if device.type == "cpu":
        return torch.float32
    return {"F16": torch.float16, "BF16": torch.bfloat16}.get(stored, torch.float32)


def bearable_bytes(device: torch.device) -> int:
    """Return how many bytes of blocks may stay on a device."""
    if device.type == "cuda":
        return int(0.6 * torch.cuda.mem_get_info(device)[0])
    return KEEP_BYTES


def row_bytes(device: torch.device) -> int:
    """Return how many bytes the rows that a block runs at once may take."""
    return CPU_ROW_BYTES if device.type == "cpu" else GPU_ROW_BYTES
