"""What GPTQ and AWQ share, whoever made them: integers in int32, and what tells their layout."""

from __future__ import annotations

from dataclasses import dataclass

from analyzer.base.config import quantization, quantization_name
from analyzer.base.errors import shown
from analyzer.numbers.module import FLOAT_SCALES, StoredModule

GPTQ, GPTQ_V2, AWQ, AWQ_GEMV = "gptq", "gptq_v2", "awq gemm", "awq gemv"
# AutoRound's layouts are theirs; what it calls its own stores zeros as GPTQ's second version does.
AUTO_ROUND = {
    "auto_gptq": GPTQ,
    "gptq": GPTQ,
    "gptqmodel": GPTQ_V2,
    "auto_round": GPTQ_V2,
    "auto_awq": AWQ,
    "awq": AWQ,
}


@dataclass(frozen=True)
class PackedIntegers:
    """The tensor `name` of a `stored` shape, its layout, scales and zeros, and what config.json says of groups."""

    name: str
    stored: tuple[int, int]
    layout: str
    scales: str
    scales_shape: tuple[int, int]
    zeros: str
    zeros_shape: tuple[int, int]
    told_group: int | None

    def group(self, cols: int, groups: int) -> int | None:
        """Return how many input channels share a scale, null where that cannot be told."""
        told = cols if self.told_group == -1 else self.told_group
        if told and -(-cols // told) == groups:
            return told
        return cols // groups if cols % groups == 0 else None


def find_packed(module: StoredModule) -> PackedIntegers | None:
    """Return the module's integers, with float scales and packed zeros; null where it has none.

    Raises ArchitectureError where what belongs to them is missing, or config.json tells no layout that is known here.
    """
    if not module.has(".qweight", ("I32",)):
        return None
    name = f"{module.name}.qweight"
    shapes = []
    for end, dtypes in ((".qweight", ("I32",)), (".scales", FLOAT_SCALES), (".qzeros", ("I32",))):
        shape = module.shape(end)
        module.companion(end, dtypes, [shape])
        if len(shape) != 2 or 0 in shape:
            raise module.refused(module.name + end, f"has the shape {shown(list(shape), 60)}, not two dimensions")
        shapes.append((shape[0], shape[1]))
    group = quantization(module.config).get("group_size")
    told = group if type(group) is int and (group == -1 or group > 0) else None
    stored, scales, zeros = shapes
    layout = _layout(module, name)
    return PackedIntegers(name, stored, layout, f"{module.name}.scales", scales, f"{module.name}.qzeros", zeros, told)


def _layout(module: StoredModule, name: str) -> str:
    said = quantization(module.config)
    method = said.get("quant_method")
    known: str | None
    if method == "gptq":
        version = said.get("checkpoint_format", said.get("format", GPTQ))
        known = version if version in (GPTQ, GPTQ_V2) else None
    elif method == "awq":
        version = said.get("version", said.get("format", "gemm"))
        known = {"gemm": AWQ, "gemv": AWQ_GEMV}.get(str(version).lower())
    elif method in ("auto-round", "intel/auto-round"):
        version = said.get("packing_format", "auto_round:gptq")
        known = AUTO_ROUND.get(str(version).removeprefix("auto_round:"))
    else:
        raise module.refused(
            name, f"is packed, but config.json says {quantization_name(module.config)}, not gptq, awq or auto-round"
        )
    if known is None:
        raise module.refused(name, f"is packed by {method} in the format {shown(version, 30)}, which cannot be read")
    return known
