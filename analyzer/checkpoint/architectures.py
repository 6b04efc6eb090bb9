"""The names of down projections in every architecture: data, not code.

The names of MLP modules inside a block come from llama.cpp's map of tensor names to roles (the `gguf` package),
extended with what its converters rename before they look a name up. The stack of blocks may be called anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

# Besides gguf's own; `{xid}` stands for the expert.
MORE_MODULES = (
    "fc2",  # opt, whisper
    "mlp.linear_fc2",  # qwen3_vl's vision tower
    "layer.1.DenseReluDense.wo",  # t5's encoder
    "layer.2.DenseReluDense.wo",  # t5's decoder
    "mlp.experts.{xid}.down_proj",  # qwen2_moe, qwen3_moe, olmoe, deepseek
    "block_sparse_moe.experts.{xid}.w2",  # mixtral, phimoe
    "feed_forward.experts.{xid}.down_proj",  # jamba
    "mlp.experts.down_proj",  # fused
    "block_sparse_moe.experts.down_proj",  # granitemoe as transformers 5 holds it
    "mlp.experts.fc2",  # aria
    "ffn_down",  # of any GGUF file, as the four that follow
    "ffn_down_exps",
    "ffn_down_shexp",
    "ffn_down_chexps",
    "ffn_down.{xid}",
)

# Their Conv1D stores `mlp.c_proj` as [in, out]; every other layer type stores [out, in].
CONV1D_MODEL_TYPES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
# Their fused experts are [experts, in, out]; those of all others are [experts, out, in].
INPUTS_FIRST_EXPERTS = frozenset({"gpt_oss", "llama4", "llama4_text", "aria", "aria_text", "openai_privacy_filter"})

# What a part of a stack's name calls it, where a model has several.
TOWERS = {
    "vision": ("vision", "visual", "image", "vpm", "vit", "siglip"),
    "audio": ("audio", "speech"),
    "language": ("language", "llm"),
    "text": ("text",),
    "encoder": ("encoder", "enc"),
    "decoder": ("decoder", "dec"),
    "mtp": ("mtp",),  # multi-token prediction
}
NUMBER = re.compile(r"(?<![^.])\d{1,5}(?![^.])", re.ASCII)  # between dots


@dataclass(frozen=True, slots=True)
class BlockName:
    """What a module's name says: its stack of blocks, the block's number there, and the expert."""

    stack: str
    layer: int
    expert: int | None

    @property
    def block(self) -> str:
        """The block's own name."""
        return f"{self.stack}.{self.layer}"


def parse_down_projection(name: str) -> BlockName | None:
    """Return what the name of a down projection (a module's, without `.weight`) says; null for any other name."""
    match = _pattern().fullmatch(name)
    if match is None:
        return None
    expert = next((int(value) for key, value in match.groupdict().items() if value and key.startswith("xid")), None)
    return BlockName(match["stack"], int(match["layer"]), expert)


@cache
def _pattern() -> re.Pattern[str]:
    """One expression for all names; the groups of its alternatives are numbered to be distinct."""
    from gguf.constants import MODEL_TENSOR
    from gguf.tensor_mapping import TensorNameMap

    roles = (MODEL_TENSOR.FFN_DOWN, MODEL_TENSOR.FFN_DOWN_EXP, MODEL_TENSOR.FFN_DOWN_SHEXP)
    known = [name.partition("{bid}.")[2] for role in roles for name in TensorNameMap.block_mappings_cfg[role]]
    alternatives = []
    for number, module in enumerate(sorted({*known, *MORE_MODULES})):
        alternatives.append(re.escape(module).replace(re.escape("{xid}"), rf"(?P<xid{number}>\d{{1,5}})"))
    return re.compile(rf"(?P<stack>[\w.-]+)\.(?P<layer>\d{{1,5}})\.(?:{'|'.join(alternatives)})", re.ASCII)
