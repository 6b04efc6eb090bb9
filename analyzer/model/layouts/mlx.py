"""Which models MLX's converters leave as they are but for the quantization, and where they stack experts.

Of others they shift norms, turn convolutions, split or fuse projections: a type is here where a model converted by
mlx-lm has every tensor's values, and the tests hold its logits against the stock model's.
"""

from __future__ import annotations

from collections.abc import Sequence

from analyzer.base.errors import ArchitectureError, shown

AS_IT_IS = frozenset({
    "cohere", "cohere2", "ernie4_5", "gemma", "gemma2", "gemma3", "gemma3_text", "glm", "glm4", "granite", "helium",
    "hunyuan_v1_dense", "llama", "ministral3", "mistral", "nemotron", "olmo2", "olmo3", "phi", "phi3", "qwen2",
    "qwen3", "seed_oss", "smollm3", "stablelm", "starcoder2",
})  # fmt: skip
# Of these, experts alone are stacked: what their tensors' names hold, and what that is in the stock checkpoint, with
# the expert's number.
IN_MLP = {".mlp.switch_mlp.": ".mlp.experts.{}."}
IN_BLOCK = {
    f".block_sparse_moe.switch_mlp.{one}": f".block_sparse_moe.experts.{{}}.{other}"
    for one, other in {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}.items()
}
STACKED = {
    **dict.fromkeys(("glm4_moe", "olmoe", "qwen2_moe", "qwen3_moe"), IN_MLP),
    **dict.fromkeys(("mixtral", "phimoe"), IN_BLOCK),
}


def stock_modules(model: str, model_type: str | None, module: str, experts: int | None) -> Sequence[str]:
    """Return what the stock checkpoint calls a module that MLX quantized; of stacked experts, one name for each.

    Raises ArchitectureError where that is not known of the model type.
    """
    stacked = STACKED.get(model_type or "", {})
    if experts is None:
        if stacked or model_type in AS_IT_IS:
            return [module]
    else:
        for held, name in stacked.items():
            before, found, after = module.partition(held)
            if found:
                return [before + name.format(expert) + after for expert in range(experts)]
    raise ArchitectureError(
        f"{model} is quantized by MLX, whose converters may lay tensors of {shown(model_type, 40)} anew "
        f"({shown(module, 80)}): it can be scanned, but not yet verified: use the model that it was made from"
    )
