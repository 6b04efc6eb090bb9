"""The names of MLPs in every architecture: data, not code.

The names of MLP modules inside a block come from llama.cpp's map of tensor names to roles (the `gguf` package), and
from what a down projection and the projections into its MLP are called beside each other. The stack of blocks, and
what holds the MLP inside a block, may be called anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

# A down projection's own name, in its MLP: what beside it projects into the MLP, in the order in which a guess is made;
# of several names in one tuple (gate and up) all are there.
INPUTS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "down_proj": (("gate_proj", "up_proj"), ("gate_up_proj",), ("up_gate_proj",), ("up_proj",)),
    "down": (("gate", "up"), ("gate_up",), ("up",)),
    "c_proj": (("w1", "w2"), ("c_fc",), ("c_fc_0", "c_fc_1")),
    "dense_4h_to_h": (("dense_h_to_4h",),),
    "fc_out": (("fc_in",),),
    "fc2": (("fc1",),),
    "fc1": (("fc0",),),
    "fc_2": (("fc_1",),),
    "linear_fc2": (("linear_fc1",),),
    "linear2": (("linear1",),),
    "linear_2": (("linear_1",),),
    "ff_out": (("ff_proj",),),
    "w2": (("w1", "w3"), ("w12",), ("w1",)),
    "w3": (("w1", "w2"), ("w12",)),
    "w2_weight": (("w13_weight",),),  # of Inkling, as the next
    "shared_w2_weight": (("shared_w13_weight",),),
    "w_out": (("w_in.w_0", "w_in.w_1"), ("w_in",)),
    "wo": (("wi_0", "wi_1"), ("wi",)),
    "Wo": (("Wi",),),
    "lin2": (("lin1",),),
    "output_linear": (("input_linear",),),
    "output_dense": (("intermediate_dense",),),
    "output.dense": (("intermediate.dense",), ("dense.dense",)),
    "output_query.dense": (("intermediate_query.dense",),),
    "output": (("intermediate",),),
    "dense2": (("dense1",),),
    "layer_2": (("layer_1",),),
    "proj_down": (("proj_up_gate", "proj_up"), ("proj_up",)),
    "2": (("0",),),
    "3": (("0",),),
    "value": (("key",),),
    "ffn_output": (("ffn",),),
    "mlp2_weight": (("mlp1_weight",),),  # gpt-oss as OpenAI stores it
    "ffn_down": (("ffn_gate", "ffn_up"), ("ffn_up",)),
    "ffn_down_exps": (("ffn_gate_exps", "ffn_up_exps"), ("ffn_gate_up_exps",), ("ffn_up_exps",)),
    "ffn_down_shexp": (("ffn_gate_shexp", "ffn_up_shexp"), ("ffn_up_shexp",)),
    "ffn_down_chexps": (("ffn_gate_chexps", "ffn_up_chexps"),),
    "ff_layer_2": (("ff_layer_1",),),
    "proj_2": (("proj_1",),),
    "conv2": (("conv1",),),
    "out_proj": (("in_proj",), ("up_proj",)),
    "weights_out": (("weights_in",),),
}
# Names of down projections that mean something else outside of what is called an MLP.
AMBIGUOUS = frozenset(
    {"value", "out_proj", "w3", "down", "linear2", "linear_2", "conv2", "wo", "output", "dense2", "layer_2", "2", "3"}
)
# Those that say nothing without what projects into the MLP.
TOLD_BY_INPUTS = frozenset({"fc1", "2", "3"})
MLP_WORDS = re.compile(
    r"mlp|ffn|(^|_)ff\d?($|_)|feed_?forward|expert|moe|channel_mix|dense_?relu_?dense", re.IGNORECASE
)
# What mixes tokens: attention, recurrences and their like.
MIXING_WORDS = re.compile(
    r"attn|attention|mamba|ssm|time_mix|retention|hyena|delta|short_conv|temporal_block|token_mixer|indexer|^(rec|gdn)$|^(self|cross)$",
    re.IGNORECASE,
)
# What chooses experts, also where it is an MLP itself.
ROUTERS = re.compile(r"(^|_)(router|gate$)", re.IGNORECASE)
# What else is no MLP, though it may hold one: adapters, norms, embeddings, convolutions.
OTHER_WORDS = re.compile(
    r"(^|_)(lora|adapter|conv|norm|ln|embed|rotary|pos|latent)s?(?=_|\d|$)|(layer|rms|group)_?norm|embeddings?$",
    re.IGNORECASE,
)
# Of what no MLP has, the projections that name a mixer of tokens wherever they are.
MIXERS = re.compile(
    r"^(q|k|v|qkv|o|query|key|value|query_key_value|kv)(_?(proj|lin|a_proj|b_proj))?$|^(in|out|x|dt)_proj$|^c_attn$|^Wqkv$"
    r"|^(dw_?|depthwise_)?conv(_?\dd)?$"
)
# What in a block turns the output of an MLP that blocks share (Zamba), or of experts, before the residual stream; where
# the output has another width than the stream, it is found without a name.
TURNING = ("linear", "mlp.post_expert_proj")

# Besides gguf's own; `{xid}` stands for the expert.
MORE_MODULES = (
    "fc2",  # opt, whisper
    "mlp.linear_fc2",  # qwen3_vl's vision tower
    "layer.DenseReluDense.wo",  # t5
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
)
# What a library puts around a linear map: PEFT's base layer, a clipped one.
WRAPPERS = ("base_layer", "linear")

# Their Conv1D stores `mlp.c_proj` as [in, out]; every other layer type stores [out, in].
CONV1D_MODEL_TYPES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
# Their fused experts are [experts, in, out]; those of all others are [experts, out, in].
INPUTS_FIRST_EXPERTS = frozenset({"gpt_oss", "llama4", "llama4_text", "aria", "aria_text", "openai_privacy_filter"})

# What a part of a stack's name calls it, where a model has several.
TOWERS = {
    "vision": ("vision", "visual", "image", "img", "vpm", "vit", "siglip"),
    "audio": ("audio", "speech"),
    "language": ("language", "llm"),
    "text": ("text",),
    "encoder": ("encoder", "enc"),
    "decoder": ("decoder", "dec"),
    "mtp": ("mtp", "nextn"),  # multi-token prediction
}
# Models whose blocks have no MLP at all.
WITHOUT_MLP = re.compile(r"mamba\d?|falcon_mamba|s4|hyena")


@cache
def known_tails() -> frozenset[str]:
    """Return what follows the block's number in every known name; no numbers of experts or sublayers are in it."""
    from gguf.constants import MODEL_TENSOR
    from gguf.tensor_mapping import TensorNameMap

    roles = (MODEL_TENSOR.FFN_DOWN, MODEL_TENSOR.FFN_DOWN_EXP, MODEL_TENSOR.FFN_DOWN_SHEXP)
    known = [name.partition("{bid}.")[2] for role in roles for name in TensorNameMap.block_mappings_cfg[role]]
    tails = (re.sub(r"\.(\{xid\}|\d+)(?=\.|$)", "", tail) for tail in [*known, *MORE_MODULES])
    # gguf takes the same name for whatever a file of its own has there; as a name it says too little.
    return frozenset(tails) - {"ffn.w3", "moe.linear_1"}


@cache
def last_words() -> frozenset[str]:
    """Return the last word of what a down projection is called, in every known name and beside its inputs."""
    return frozenset(name.rpartition(".")[2] for name in (*INPUTS, *known_tails()))
