"""Which stored tensors make up a module's matrix, and how they are encoded: asks each encoding in turn."""

from __future__ import annotations

from analyzer.base.config import quantization_name
from analyzer.base.errors import UnreadableError, shown
from analyzer.encodings.bitsandbytes import find_4_bits
from analyzer.encodings.bitsandbytes import find_int8 as find_bnb_int8
from analyzer.encodings.fp4 import find_gpt_oss, find_mxfp4, find_nvfp4
from analyzer.encodings.fp8 import find_fp8
from analyzer.encodings.ggml import find_ggml
from analyzer.encodings.integers.awq import find_awq
from analyzer.encodings.integers.bitnet import find_bitnet
from analyzer.encodings.integers.compressed import find_int8, find_pack_quantized
from analyzer.encodings.integers.gptq import find_gptq
from analyzer.encodings.mlx import find_mlx
from analyzer.numbers.matrices import Matrix
from analyzer.numbers.module import StoredModule, StoredTensors
from analyzer.numbers.plain import find_plain

FINDERS = (
    find_ggml, find_plain, find_fp8, find_gpt_oss, find_mxfp4, find_nvfp4, find_mlx, find_gptq, find_awq,
    find_pack_quantized, find_4_bits, find_bnb_int8, find_int8, find_bitnet,
)  # fmt: skip
MAX_COMPANION_BYTES = 1 << 26  # scales are held whole; those of the largest known tensor are 15 MB

# What a module's own name is followed by in the name of the tensor that holds its matrix.
STORED_AS = (".weight", ".qweight", "_blocks", ".blocks", ".weight_packed", "")
UNREADABLE = {  # what tells a quantization, by the end of a tensor's name
    ".weight.absmax": "bitsandbytes (4-bit)",
    ".SCB": "bitsandbytes (int8)",
    ".codebooks": "aqlm",
    ".W_q": "hqq",
    ".weight._data": "quanto",
}


def find_matrices(checkpoint: StoredTensors, module: str) -> list[Matrix] | None:
    """Return a module's matrix or, for fused experts, one for each; null where the checkpoint has no such module.

    A matrix of fused experts is taken as [experts, rows, cols]; `turned` has it the other way round. Raises
    ArchitectureError where the matrix is stored in a way that cannot be read, by the name of its quantization, or
    where its scales are missing or do not fit it; SourceError where a tensor that describes others cannot be read.
    """
    suffix = next((suffix for suffix in STORED_AS if module + suffix in checkpoint.tensors), None)
    if suffix is None:
        return None
    stored = StoredModule(checkpoint, module)
    matrices = next((found for find in FINDERS if (found := find(stored))), None)
    if matrices is None:
        raise _unreadable(stored, module + suffix)
    for companion in matrices[0].companions:
        if companion.stop - companion.start > MAX_COMPANION_BYTES:
            raise stored.refused(
                companion.tensor, f"of shape {shown(list(companion.shape), 60)} is too large for scales"
            )
    return matrices


def unreadable_as(checkpoint: StoredTensors, module: str, name: str) -> UnreadableError:
    """Return the error about a module of which a tensor of this name is stored, and none that can be read."""
    return _unreadable(StoredModule(checkpoint, module), name)


def _unreadable(module: StoredModule, name: str) -> UnreadableError:
    """Return the error about a quantization that is not known here, by its name: the tensor's own, or the model's."""
    ends = (said for end, said in UNREADABLE.items() if module.name + end in module.tensors)
    method = next(ends, None) or quantization_name(module.config) or "an unknown quantization"
    return UnreadableError(
        f"{module.checkpoint.model}: {shown(name)} is stored as {module.tensors[name][0]} by {method}, which cannot be "
        "scanned: use the model that it was made from",
        method,
    )
