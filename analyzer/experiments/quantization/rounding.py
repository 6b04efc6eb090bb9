"""Pure: values rounded to few levels, in groups that share a step; steps; clipping."""

from __future__ import annotations

import torch

from analyzer.experiments.quantization.grid import Group, Rounding, Shape

SMALLEST = 1e-5  # magnitude that activations are scaled by, as in SmoothQuant's code (mit-han-lab/smoothquant)


def round_matrix(matrix: torch.Tensor, rounding: Rounding) -> torch.Tensor:
    """Return a matrix [rows, cols] as it is once quantized and made floats again, in float32.

    Its shape must be made up of the rounding's groups.
    """
    groups = in_groups(matrix.float(), rounding.group)
    if rounding.z is not None:
        groups = clipped(groups, rounding.z)
    return out_of_groups(rounded(groups, rounding), rounding.group, (matrix.shape[0], matrix.shape[1]))


def rounded(groups: torch.Tensor, rounding: Rounding) -> torch.Tensor:
    """Return groups of values, [groups, size], each to the nearest of its levels; a group of equals stays as it is."""
    least, step = levels(groups, rounding)
    safe = torch.where(step > 0, step, 1.0)
    codes = groups.sub(least).div_(safe).round_()
    if rounding.symmetric:
        top = 2 ** (rounding.bits - 1) - 1
        codes.clamp_(-top, top)
    else:
        codes.clamp_(0, 2**rounding.bits - 1)
    return codes.mul_(step).add_(least)


def levels(groups: torch.Tensor, rounding: Rounding) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the value of code 0 and the step between levels of each group, [groups, 1] each."""
    if rounding.symmetric:
        step = groups.abs().amax(dim=1, keepdim=True) / (2 ** (rounding.bits - 1) - 1)
        return torch.zeros_like(step), step
    least, most = groups.amin(dim=1, keepdim=True), groups.amax(dim=1, keepdim=True)
    return least, (most - least) / (2**rounding.bits - 1)


def clipped(groups: torch.Tensor, z: float) -> torch.Tensor:
    """Return groups of values, magnitudes no larger than their group's mean plus z standard deviations of these."""
    mean, spread = mean_and_spread(groups)
    limit = (mean + z * spread).to(groups.dtype)
    return torch.minimum(torch.maximum(groups, -limit), limit)


def mean_and_spread(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of the magnitudes of each group, [groups, 1] in float64."""
    size = groups.shape[1]
    # By norms, which are faster than std_mean; in doubles, since one is taken from the other.
    mean = torch.linalg.vector_norm(groups, ord=1, dim=1, keepdim=True, dtype=torch.float64) / size
    square = torch.linalg.vector_norm(groups, ord=2, dim=1, keepdim=True, dtype=torch.float64).square() / size
    return mean, (square - mean.square()).clamp(min=0).sqrt()


def round_activations(entered: torch.Tensor, *, bits: int, per: str) -> torch.Tensor:
    """Return activations [tokens, channels] quantized symmetrically, a step for each token, or one for the tensor."""
    top = 2 ** (bits - 1) - 1
    largest = entered.abs().amax(dim=-1, keepdim=True) if per == "token" else entered.abs().amax()
    step: torch.Tensor = largest.clamp(min=SMALLEST) / top
    return (entered / step).round_().mul_(step)


def hold_out(entered: torch.Tensor, *, bits: int, per: str) -> torch.Tensor:
    """Return activations quantized but for the largest of all, which stays as it is (Yu et al., equation 1).

    Its place is taken by the median while the others are quantized.
    """
    place = int(entered.abs().argmax())
    others = entered.clone()
    others.view(-1)[place] = entered.median()
    quantized = round_activations(others, bits=bits, per=per)
    quantized.view(-1)[place] = entered.reshape(-1)[place]
    return quantized


def smoothing(largest: torch.Tensor, of_weights: torch.Tensor, *, alpha: float) -> torch.Tensor:
    """Return what SmoothQuant divides input channels by, and multiplies the weights' columns by, [channels].

    `largest` are the channels' largest magnitudes, `of_weights` those of the columns of all matrices that see them
    (Xiao et al., arXiv 2211.10438, equation 4; floors as in their code).
    """
    weights = of_weights.clamp(min=SMALLEST).pow(1 - alpha)
    return (largest.pow(alpha) / weights).clamp(min=SMALLEST)


def in_groups(matrix: torch.Tensor, group: Group) -> torch.Tensor:
    """Return a matrix's values by the groups that share a step, [groups, size]."""
    rows, cols = matrix.shape
    if group.kind == "tile":
        side = group.size
        tiles = matrix.reshape(rows // side, side, cols // side, side).transpose(1, 2)
        return tiles.reshape(-1, side * side)
    sizes = {"tensor": rows * cols, "row": cols}
    return matrix.reshape(-1, sizes.get(group.kind, group.size))


def out_of_groups(groups: torch.Tensor, group: Group, shape: Shape) -> torch.Tensor:
    """Return the matrix of this shape that `in_groups` made these groups of."""
    rows, cols = shape
    if group.kind == "tile":
        side = group.size
        return groups.reshape(rows // side, cols // side, side, side).transpose(1, 2).reshape(rows, cols)
    return groups.reshape(rows, cols)


def place_in_groups(row: int, col: int, group: Group, shape: Shape) -> tuple[int, int]:
    """Return in which group a value is, and at which place of it."""
    _, cols = shape
    if group.kind == "tile":
        side = group.size
        return row // side * (cols // side) + col // side, row % side * side + col % side
    size = {"tensor": shape[0] * cols, "row": cols}.get(group.kind, group.size)
    return divmod(row * cols + col, size)
