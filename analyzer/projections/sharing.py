"""Which blocks use one stored matrix: models that share weights between their blocks, by what their config says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analyzer.base.config import NUM_LAYERS_KEYS, size_in
from analyzer.base.errors import ArchitectureError
from analyzer.projections.names import ModuleName

MAX_BLOCKS = 4096  # that use one matrix: each of its outliers lists them


def layers_sharing(config: Mapping[str, Any], parsed: ModuleName) -> tuple[int, ...] | None:
    """Return the blocks that use the matrix of this name, null where it is that of its own block alone.

    Raises ArchitectureError where they would be more than any model has.
    """
    total = size_in(config, NUM_LAYERS_KEYS)
    if total is None:
        return None
    if parsed.stack.endswith("groups"):  # ALBERT
        groups = size_in(config, ("num_hidden_groups",)) or 1
        if total > MAX_BLOCKS:
            raise ArchitectureError(
                f"config.json says that {total} blocks share {groups} group(s) of weights: no model is that deep"
            )
        layers = tuple(layer for layer in range(total) if layer * groups // total == parsed.layer)
        return layers or None  # the first is where the group begins, be it the only one
    kinds = config.get("layers_block_type")
    if isinstance(kinds, list) and "shared" in parsed.mlp:  # Zamba
        hybrid = [layer for layer, kind in enumerate(kinds) if kind == "hybrid"]
        memories = config.get("num_mem_blocks")
        step = memories if type(memories) is int and memories > 0 else 1
        shared = hybrid[hybrid.index(parsed.layer) :: step] if parsed.layer in hybrid[:step] else []
        return tuple(shared) if len(shared) > 1 else None
    return None
