"""The matrices of a model's blocks, quantized as they are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from analyzer.base.config import model_types
from analyzer.experiments.controls.others import Places
from analyzer.experiments.quantization.grid import Rounding, Shape
from analyzer.experiments.quantization.rounding import round_matrix
from analyzer.forward.linears import experts_of, linears_of
from analyzer.forward.runner import Runner
from analyzer.projections.architectures import INPUTS_FIRST_EXPERTS


@dataclass(frozen=True)
class StoredMatrix:
    """A stored tensor that a block multiplies by: the linear map's name, null for experts; how its numbers lie."""

    linear: str | None
    stored: tuple[int, ...]
    inputs_first: bool

    @property
    def shape(self) -> Shape:
        """Output and input channels, of each expert where there are several."""
        rows, cols = self.stored[-2:]
        return (cols, rows) if self.inputs_first else (rows, cols)

    def matrices(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor's matrices, [experts or 1, rows, cols], in float32."""
        matrices = tensor.float().reshape(-1, *self.stored[-2:])
        return matrices.transpose(1, 2) if self.inputs_first else matrices

    def laid(self, matrices: torch.Tensor) -> torch.Tensor:
        """Return matrices as the tensor has them."""
        return (matrices.transpose(1, 2) if self.inputs_first else matrices).reshape(self.stored)


def matrices_of(runner: Runner) -> dict[str, StoredMatrix]:
    """Return what the blocks of the stack multiply by, by the stored tensor's name: linear maps and fused experts."""
    linears: dict[str, tuple[str, bool]] = {}  # by the parameter's name
    experts: set[str] = set()
    for block in runner.stack:
        for name, module in linears_of(block).items():
            linears[f"{name}.weight"] = name, not isinstance(module, torch.nn.Linear)
        names = {module: f"{block.name}.{name}" for name, module in block.module.named_modules()}
        for writer in (writer for mlp in block.mlps for writer in mlp.writers if writer.downs):
            for module in (writer.module, *experts_of(writer)):
                inside = module.named_parameters(recurse=False)
                least = 3 if module is writer.module else 2  # a router may be there too
                experts |= {f"{names[module]}.{name}" for name, each in inside if least <= each.ndim <= 3}
    experts_first = bool(model_types(runner.checkpoint.config) & INPUTS_FIRST_EXPERTS)
    found = {}
    for name, target in sorted(runner.blocks.targets.items()):
        shape = runner.checkpoint.tensors[name].record.shape
        if target in linears:
            found[name] = StoredMatrix(linears[target][0], shape, linears[target][1])
        elif target in experts and len(shape) > 1:
            found[name] = StoredMatrix(None, shape, experts_first and len(shape) == 3)
    return found


class Quantized:
    """A change of tensors: matrices quantized as they are loaded, but for weights that are kept as they are.

    `factors`, by linear map, multiply its columns before they are quantized and divide them after (SmoothQuant).
    """

    def __init__(
        self,
        rounding: Rounding,
        matrices: Mapping[str, StoredMatrix],
        kept: Places,
        factors: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.rounding, self._matrices, self._kept, self._factors = rounding, matrices, kept, factors or {}

    def __call__(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor of this name as the model gets it, in float32 where it is quantized."""
        stored = self._matrices.get(name)
        if stored is None:
            return tensor
        quantized = [self.rounded(stored, each) for each in stored.matrices(tensor)]
        found = stored.laid(torch.stack(quantized)).contiguous()
        if name in self._kept:
            kept = torch.from_numpy(self._kept[name])
            found.view(-1)[kept] = tensor.reshape(-1)[kept].float()
        return found

    def rounded(self, stored: StoredMatrix, matrix: torch.Tensor) -> torch.Tensor:
        """Return one matrix of a stored tensor quantized, none of its weights kept, [rows, cols] in float32."""
        factors = self._factors.get(stored.linear or "")
        if factors is None:
            return round_matrix(matrix, self.rounding)
        return round_matrix(matrix * factors, self.rounding) / factors
