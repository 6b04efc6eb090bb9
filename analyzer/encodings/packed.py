"""What GPTQ and AWQ share: 4-bit integers, eight an int32, whose groups and zeros config.json describes."""

from __future__ import annotations

from dataclasses import dataclass

from analyzer.base.config import quantization, quantization_name
from analyzer.base.errors import shown
from analyzer.encodings.module import FLOAT_SCALES, StoredModule

PACKED_METHODS = ("gptq", "awq")


@dataclass(frozen=True)
class PackedIntegers:
    """The tensor `name` of the `stored` shape, its logical sizes, channels in a `group`, and its companions' names."""

    name: str
    stored: tuple[int, ...]
    rows: int
    cols: int
    group: int
    scales: str
    zeros: str


def find_packed(module: StoredModule, method: str) -> PackedIntegers | None:
    """Return the module's integers where config.json says that they were packed by this method, "gptq" or "awq".

    Null where the module has none, or by the other method. Raises ArchitectureError where they cannot be read.
    """
    name = f"{module.name}.qweight"
    dtype, shape = module.tensors.get(name, ("", ()))
    said = quantization(module.config)
    named, bits, group = said.get("quant_method"), said.get("bits", said.get("w_bit")), said.get("group_size")
    if dtype != "I32" or (named != method and named in PACKED_METHODS):
        return None
    if named != method:
        raise module.refused(
            name, f"is packed, but config.json says {quantization_name(module.config)}, not gptq or awq"
        )
    if bits != 4 or type(group) is not int or not (group == -1 or group > 0):
        raise module.refused(
            name, f"is {method} of {shown(bits, 20)} bits in groups of {shown(group, 20)}; only 4 bits can be read"
        )
    if len(shape) != 2 or 0 in shape:
        raise module.refused(name, f"has the shape {shown(shape, 60)}, not two dimensions")
    cols, rows = (8 * shape[0], shape[1]) if method == "gptq" else (shape[0], 8 * shape[1])
    if rows % 8 or cols % 8:
        raise module.refused(name, f"is packed, but {rows} x {cols} is no multiple of 8")
    group = cols if group == -1 else group
    groups = -(-cols // group)
    scales = module.companion(".scales", FLOAT_SCALES, [(groups, rows)])
    zeros = module.companion(".qzeros", ("I32",), [(groups, rows // 8)])
    return PackedIntegers(name, shape, rows, cols, group, scales, zeros)
