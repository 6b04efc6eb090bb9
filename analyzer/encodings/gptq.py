"""GPTQ's 4-bit integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.base.config import quantization
from analyzer.base.errors import CheckpointError, shown
from analyzer.encodings.encoding import INT32, NIBBLES, Companions, Float32, Tile
from analyzer.encodings.floats import FORMATS, Unsigned
from analyzer.encodings.matrices import Matrix
from analyzer.encodings.module import StoredModule
from analyzer.encodings.packed import find_packed


@dataclass(frozen=True)
class GPTQ:
    """4-bit integers, eight consecutive input channels an int32 (arXiv 2210.17323, as AutoGPTQ stores them).

    The value is scale * (number - zero), where the first version of the format stores each int32 of zeros less
    0x11111111. `group` is the number of input channels that share a scale, where no g_idx names each one's.
    """

    group: int
    first_version: bool
    named_groups: bool
    name = "GPTQ-4bit"
    unit = INT32
    expand = (8, 1)
    decoded = FORMATS["F32"]

    def decode(self, units: NDArray[Any], tile: Tile, companions: Companions) -> Unsigned:
        """See Encoding.decode; companions are scales [groups, out], zeros [groups, out / 8], perhaps g_idx [in]."""
        scales, zeros, *g_idx = companions
        inputs = slice(8 * tile.line, 8 * (tile.line + tile.lines))
        outputs = np.arange(tile.first, tile.first + tile.units)
        if self.named_groups:
            groups: NDArray[Any] = g_idx[0][inputs].view(np.int32)
            if groups.min() < 0 or groups.max() >= scales.shape[0]:
                raise CheckpointError(f"names a group outside of its {scales.shape[0]} in g_idx: download it again")
        else:
            groups = np.arange(inputs.start, inputs.stop) // self.group
        numbers = (units[:, None, :] >> NIBBLES[None, :, None]) & 15  # [lines, 8, units]
        # Scales and zeros of the tile's groups first, then of each channel: groups are many channels long.
        present, which = np.unique(groups, return_inverse=True)
        packed = zeros + np.uint32(0x11111111) if self.first_version else zeros
        zero = (packed[np.ix_(present, outputs // 8)] >> NIBBLES[outputs % 8]) & 15
        scale = scales[np.ix_(present, outputs)].astype(np.float32)
        values: Float32 = numbers.reshape(8 * tile.lines, tile.units).astype(np.float32)
        values -= zero.astype(np.float32)[which]
        values *= scale[which]
        return values.view(np.uint32)


def find_gptq(module: StoredModule) -> list[Matrix] | None:
    """Return GPTQ's integers, [cols / 8, rows]; null where the module has none."""
    packed = find_packed(module, "gptq")
    if packed is None:
        return None
    said = quantization(module.config)
    version = said.get("checkpoint_format", said.get("format", "gptq"))
    if version not in ("gptq", "gptq_v2"):
        raise module.refused(
            packed.name, f"is gptq in the format {shown(version, 20)}; only gptq and gptq_v2 can be read"
        )
    named = f"{module.name}.g_idx" in module.tensors
    names = [packed.scales, packed.zeros]
    if named:
        names.append(module.companion(".g_idx", ("I32",), [(packed.cols,)]))
    encoding = GPTQ(packed.group, first_version=version == "gptq", named_groups=named)
    companions = tuple(module.whole(name) for name in names)
    return [Matrix(module.whole(packed.name), companions, encoding, (packed.rows, packed.cols), transposed=True)]
