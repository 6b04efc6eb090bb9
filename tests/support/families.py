"""Tiny models of every family: how each is configured, where its down projections are, where a weight is planted."""

from dataclasses import dataclass

import torch
import transformers

HIDDEN, DENSE, ROUTED, SHARED = 16, 24, 40, 32
VISION_HIDDEN, VISION_DENSE = 20, 28
DECOY = 99.0  # larger than what is planted: in every parameter that is no down projection

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
TOKENS = {"vocab_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {"hidden_size": HIDDEN, "intermediate_size": DENSE, "num_hidden_layers": 3, "max_position_embeddings": 64}
TEXT = {**TOKENS, **SIZES, **HEADS}
GPT = {**TOKENS, "n_embd": HIDDEN, "n_inner": DENSE, "n_layer": 3, "n_head": 4, "n_positions": 64}
FALCON = {**TOKENS, "hidden_size": HIDDEN, "ffn_hidden_size": DENSE, "num_hidden_layers": 3, "num_attention_heads": 4}
BLOOM = {**TOKENS, "hidden_size": HIDDEN, "n_layer": 3, "n_head": 4}
OPT = {**TEXT, "ffn_dim": DENSE, "word_embed_proj_dim": HIDDEN}
T5 = {**TOKENS, "d_model": HIDDEN, "d_ff": DENSE, "d_kv": 4, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4}
BART = {
    **TOKENS,
    "d_model": HIDDEN,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_ffn_dim": DENSE,
    "decoder_ffn_dim": ROUTED,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "decoder_start_token_id": 1,
}
WHISPER = {**BART, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": ROUTED}
QWEN2_MOE = {**TEXT, **EXPERTS, "shared_expert_intermediate_size": SHARED, "mlp_only_layers": [0]}
MLA = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4}
DEEPSEEK = {
    **TEXT,
    **MLA,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": ROUTED,
    "n_group": 1,
    "topk_group": 1,
}
LOCAL_EXPERTS = {**TEXT, "num_local_experts": 4, "num_experts_per_tok": 2}
LLAMA4 = {**LOCAL_EXPERTS, "num_experts_per_tok": 1, "num_hidden_layers": 4, "interleave_moe_layer_step": 2}
LLAMA4 |= {"intermediate_size_mlp": ROUTED}
VISION = {
    "hidden_size": VISION_HIDDEN,
    "intermediate_size": VISION_DENSE,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
CLIP = {"text_config": {**TOKENS, **SIZES, "num_attention_heads": 4}, "vision_config": VISION}
QWEN_VISION = {"depth": 2, "num_heads": 4, "patch_size": 8}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 0]}}


@dataclass(frozen=True)
class Stack:
    """A stack of blocks: its tower, where the model keeps the blocks, and the down projections a block can have.

    `downs` maps the name of a parameter within a block to (rows, cols); `.T` follows the name where the module
    keeps it as [cols, rows].
    """

    tower: str | None
    blocks: str
    downs: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Family:
    """A class of transformers, its config, its stacks of blocks, and how many down projections they have in all.

    `plants` has (tower, layer, expert, row, col, value) of the weight to find, each for a model of its own.
    """

    name: str
    config: dict
    stacks: tuple[Stack, ...]
    places: int = 3
    plants: tuple[tuple, ...] = ((None, 2, None, 5, 19, -50.0),)


def one_stack(blocks, down, shape=(HIDDEN, DENSE)):
    return (Stack(None, blocks, {down: shape}),)


def two_stacks(*stacks):
    """Return what a Family has of two stacks: the stacks, how many down projections, a weight to find in each."""
    (first, _, _, layers, _), (second, _, _, more, _) = stacks
    return {
        "stacks": tuple(Stack(tower, blocks, {down: shape}) for tower, blocks, down, _, shape in stacks),
        "places": layers + more,
        "plants": ((first, layers - 1, None, 15, 21, 50.0), (second, more - 1, None, 3, 23, -50.0)),
    }


def llama_like(name):
    return Family(f"{name}ForCausalLM", TEXT, one_stack("model.layers", "mlp.down_proj.weight"))


LLAVA_VISION = ("vision", "model.vision_tower.encoder.layers", "mlp.fc2.weight", 2, (VISION_HIDDEN, VISION_DENSE))
LLAVA = two_stacks(
    ("language", "model.language_model.layers", "mlp.down_proj.weight", 3, (HIDDEN, DENSE)), LLAVA_VISION
)
CLIP_STACKS = two_stacks(
    ("text", "text_model.encoder.layers", "mlp.fc2.weight", 3, (HIDDEN, DENSE)),
    ("vision", "vision_model.encoder.layers", "mlp.fc2.weight", 2, (VISION_HIDDEN, VISION_DENSE)),
)
T5_STACKS = two_stacks(
    ("encoder", "encoder.block", "layer.1.DenseReluDense.wo.weight", 2, (HIDDEN, DENSE)),
    ("decoder", "decoder.block", "layer.2.DenseReluDense.wo.weight", 3, (HIDDEN, DENSE)),
)
BART_STACKS = two_stacks(
    ("encoder", "model.encoder.layers", "fc2.weight", 2, (HIDDEN, DENSE)),
    ("decoder", "model.decoder.layers", "fc2.weight", 3, (HIDDEN, ROUTED)),
)
BARE_WHISPER_STACKS = two_stacks(
    ("encoder", "encoder.layers", "fc2.weight", 2, (HIDDEN, DENSE)),
    ("decoder", "decoder.layers", "fc2.weight", 3, (HIDDEN, ROUTED)),
)
DEEPSEEK_STACK = Stack(
    None,
    "model.layers",
    {
        "mlp.down_proj.weight": (HIDDEN, DENSE),
        "mlp.experts.down_proj": (HIDDEN, ROUTED),
        "mlp.shared_experts.down_proj.weight": (HIDDEN, 2 * ROUTED),
    },
)
DEEPSEEK_PLANTS = (
    (None, 1, 3, 5, 38, 50.0),
    (None, 2, None, 14, 77, -50.0),  # in the shared experts
    (None, 0, None, 15, 23, 50.0),  # in the dense layer
)
QWEN2_MOE_STACK = Stack(
    None,
    "model.layers",
    {
        "mlp.down_proj.weight": (HIDDEN, DENSE),
        "mlp.experts.down_proj": (HIDDEN, ROUTED),
        "mlp.shared_expert.down_proj.weight": (HIDDEN, SHARED),
    },
)
QWEN2_MOE_PLANTS = ((None, 1, 2, 7, 38, -50.0), (None, 2, None, 14, 31, 50.0), (None, 0, None, 2, 17, 50.0))
ROUTED_PLANTS = ((None, 2, 3, 7, 22, -50.0),)


def llama4_stack(tower, blocks):
    downs = {
        "feed_forward.down_proj.weight": (HIDDEN, ROUTED),
        "feed_forward.experts.down_proj.T": (HIDDEN, DENSE),
        "feed_forward.shared_expert.down_proj.weight": (HIDDEN, DENSE),
    }
    return Stack(tower, blocks, downs)


FAMILIES = {
    "llama": llama_like("Llama"),
    "mistral": llama_like("Mistral"),
    "qwen2": llama_like("Qwen2"),
    "qwen3": llama_like("Qwen3"),
    "gemma": llama_like("Gemma"),
    "gemma2": llama_like("Gemma2"),
    "gemma3_text": llama_like("Gemma3"),
    "phi3": llama_like("Phi3"),
    "olmo": llama_like("Olmo"),
    "olmo2": llama_like("Olmo2"),
    "stablelm": llama_like("StableLm"),
    "cohere": llama_like("Cohere"),
    "phi": Family("PhiForCausalLM", TEXT, one_stack("model.layers", "mlp.fc2.weight")),
    "starcoder2": Family("Starcoder2ForCausalLM", TEXT, one_stack("model.layers", "mlp.c_proj.weight")),
    "gpt2": Family("GPT2LMHeadModel", GPT, one_stack("transformer.h", "mlp.c_proj.weight.T")),
    "gpt_neox": Family("GPTNeoXForCausalLM", TEXT, one_stack("gpt_neox.layers", "mlp.dense_4h_to_h.weight")),
    "gptj": Family("GPTJForCausalLM", {**GPT, "rotary_dim": 4}, one_stack("transformer.h", "mlp.fc_out.weight")),
    "opt": Family("OPTForCausalLM", OPT, one_stack("model.decoder.layers", "fc2.weight")),
    "bloom": Family(
        "BloomForCausalLM", BLOOM, one_stack("transformer.h", "mlp.dense_4h_to_h.weight", (HIDDEN, 4 * HIDDEN))
    ),
    "falcon_old": Family(
        "FalconForCausalLM",
        {**FALCON, "new_decoder_architecture": False},
        one_stack("transformer.h", "mlp.dense_4h_to_h.weight"),
    ),
    "falcon_new": Family(
        "FalconForCausalLM",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
        one_stack("transformer.h", "mlp.dense_4h_to_h.weight"),
    ),
    "mpt": Family(
        "MptForCausalLM",
        {"vocab_size": 32, "d_model": HIDDEN, "n_layers": 3, "n_heads": 4, "max_seq_len": 64},
        one_stack("transformer.blocks", "ffn.down_proj.weight", (HIDDEN, 4 * HIDDEN)),
    ),
    "bert": Family("BertForMaskedLM", TEXT, one_stack("bert.encoder.layer", "output.dense.weight")),
    "modernbert": Family(
        "ModernBertForMaskedLM",
        {**TEXT, "cls_token_id": 1, "sep_token_id": 2},
        one_stack("model.layers", "mlp.Wo.weight"),
    ),
    "vit": Family(
        "ViTForImageClassification",
        VISION,
        one_stack("vit.layers", "mlp.fc2.weight", (VISION_HIDDEN, VISION_DENSE)),
        places=2,
        plants=((None, 1, None, 18, 27, 50.0),),
    ),
    # Without a head most families save their tensors under shorter names.
    "llama_bare": Family("LlamaModel", TEXT, one_stack("layers", "mlp.down_proj.weight")),
    "gpt2_bare": Family("GPT2Model", GPT, one_stack("h", "mlp.c_proj.weight.T")),
    "gpt_neox_bare": Family("GPTNeoXModel", TEXT, one_stack("layers", "mlp.dense_4h_to_h.weight")),
    "opt_bare": Family("OPTModel", OPT, one_stack("decoder.layers", "fc2.weight")),
    "bloom_bare": Family("BloomModel", BLOOM, one_stack("h", "mlp.dense_4h_to_h.weight", (HIDDEN, 4 * HIDDEN))),
    "bert_bare": Family("BertModel", TEXT, one_stack("encoder.layer", "output.dense.weight")),
    "t5_encoder": Family(
        "T5EncoderModel",
        T5,
        one_stack("encoder.block", "layer.1.DenseReluDense.wo.weight"),
        places=2,
        plants=((None, 1, None, 3, 23, -50.0),),
    ),
    "clip_vision": Family(
        "CLIPVisionModel",
        VISION,
        one_stack("encoder.layers", "mlp.fc2.weight", (VISION_HIDDEN, VISION_DENSE)),
        places=2,
        plants=((None, 1, None, 18, 27, 50.0),),
    ),
    # Encoder-decoders, and models of text and images.
    "t5": Family("T5ForConditionalGeneration", T5, **T5_STACKS),
    "t5_gated": Family("T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu"}, **T5_STACKS),
    "bart": Family("BartForConditionalGeneration", {**BART, "max_position_embeddings": 16}, **BART_STACKS),
    "whisper": Family("WhisperForConditionalGeneration", WHISPER, **BART_STACKS),
    "whisper_bare": Family("WhisperModel", WHISPER, **BARE_WHISPER_STACKS),
    "clip": Family("CLIPModel", CLIP, **CLIP_STACKS),
    "siglip": Family("SiglipModel", CLIP, **CLIP_STACKS),
    "llava": Family(
        "LlavaForConditionalGeneration",
        {
            "text_config": {**TEXT, "model_type": "llama"},
            "vision_config": {**VISION, "model_type": "clip_vision_model"},
            "image_token_index": 31,
        },
        **LLAVA,
    ),
    "gemma3": Family(
        "Gemma3ForConditionalGeneration",
        {"text_config": TEXT, "vision_config": VISION, "mm_tokens_per_image": 4, "image_token_index": 31},
        **LLAVA,
    ),
    "qwen2_vl": Family(
        "Qwen2VLForConditionalGeneration",
        {
            "text_config": {**TEXT, **MROPE},
            # Here `hidden_size` is the language model's; the blocks of the vision tower are `embed_dim` wide.
            "vision_config": {**QWEN_VISION, "embed_dim": VISION_HIDDEN, "hidden_size": HIDDEN, "mlp_ratio": 2},
        },
        **two_stacks(
            ("language", "model.language_model.layers", "mlp.down_proj.weight", 3, (HIDDEN, DENSE)),
            ("vision", "model.visual.blocks", "mlp.fc2.weight", 2, (VISION_HIDDEN, 2 * VISION_HIDDEN)),
        ),
    ),
    "qwen2_5_vl": Family(
        "Qwen2_5_VLForConditionalGeneration",
        {"text_config": {**TEXT, **MROPE}, "vision_config": {**QWEN_VISION, **VISION, "out_hidden_size": HIDDEN}},
        **two_stacks(
            ("language", "model.language_model.layers", "mlp.down_proj.weight", 3, (HIDDEN, DENSE)),
            ("vision", "model.visual.blocks", "mlp.down_proj.weight", 2, (VISION_HIDDEN, VISION_DENSE)),
        ),
    ),
    # Mixtures of experts; a shared expert has no number.
    "mixtral": Family(
        "MixtralForCausalLM",
        LOCAL_EXPERTS,
        one_stack("model.layers", "mlp.experts.down_proj"),
        places=3 * 4,
        plants=ROUTED_PLANTS,
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        {**TEXT, **EXPERTS},
        one_stack("model.layers", "mlp.experts.down_proj", (HIDDEN, ROUTED)),
        places=3 * 4,
        plants=((None, 1, 2, 7, 38, -50.0),),
    ),
    "granitemoe": Family(
        "GraniteMoeForCausalLM",
        LOCAL_EXPERTS,
        one_stack("model.layers", "block_sparse_moe.experts.down_proj"),
        places=3 * 4,
        plants=ROUTED_PLANTS,
    ),
    "gpt_oss": Family(
        "GptOssForCausalLM",
        LOCAL_EXPERTS,
        one_stack("model.layers", "mlp.experts.down_proj.T"),
        places=3 * 4,
        plants=ROUTED_PLANTS,
    ),
    "deepseek_v2": Family(
        "DeepseekV2ForCausalLM", DEEPSEEK, (DEEPSEEK_STACK,), places=1 + 2 * (4 + 1), plants=DEEPSEEK_PLANTS
    ),
    "deepseek_v3": Family(
        "DeepseekV3ForCausalLM", DEEPSEEK, (DEEPSEEK_STACK,), places=1 + 2 * (4 + 1), plants=DEEPSEEK_PLANTS
    ),
    "qwen2_moe": Family(
        "Qwen2MoeForCausalLM", QWEN2_MOE, (QWEN2_MOE_STACK,), places=1 + 2 * (4 + 1), plants=QWEN2_MOE_PLANTS
    ),
    "llama4_text": Family(
        "Llama4ForCausalLM",
        LLAMA4,
        (llama4_stack(None, "model.layers"),),
        places=2 + 2 * (4 + 1),
        plants=((None, 3, 2, 7, 22, -50.0), (None, 1, None, 4, 18, 50.0), (None, 2, None, 14, 39, 50.0)),
    ),
    "llama4": Family(
        "Llama4ForConditionalGeneration",
        {
            "text_config": LLAMA4,
            "vision_config": {**VISION, "vision_output_dim": 12, "projector_input_dim": 12, "projector_output_dim": 12},
        },
        (
            llama4_stack("language", "language_model.model.layers"),
            Stack("vision", "vision_model.model.layers", {"mlp.fc2.weight": (VISION_HIDDEN, VISION_DENSE)}),
        ),
        places=2 + 2 * (4 + 1) + 2,
        plants=(
            ("language", 3, 2, 7, 22, -50.0),
            ("language", 1, None, 4, 18, 50.0),
            ("vision", 1, None, 18, 27, 50.0),
        ),
    ),
    "qwen3_vl_moe": Family(
        "Qwen3VLMoeForConditionalGeneration",
        {
            "text_config": {**TEXT, **EXPERTS, **MROPE},
            "vision_config": {
                **QWEN_VISION,
                **VISION,
                "out_hidden_size": HIDDEN,
                "deepstack_visual_indexes": [0],
                "num_position_embeddings": 16,
            },
        },
        (
            Stack("language", "model.language_model.layers", {"mlp.experts.down_proj": (HIDDEN, ROUTED)}),
            Stack("vision", "model.visual.blocks", {"mlp.linear_fc2.weight": (VISION_HIDDEN, VISION_DENSE)}),
        ),
        places=3 * 4 + 2,
        plants=(("language", 1, 2, 7, 38, -50.0), ("vision", 1, None, 18, 27, 50.0)),
    ),
}


def build(family, **config):
    torch.manual_seed(0)
    model_class = getattr(transformers, family.name)
    return model_class(model_class.config_class(**{**family.config, **config}))


def down_views(model, family):
    """Return every down projection of the model, a view of the module's own weight, [rows, cols]."""
    views = {}
    for stack in family.stacks:
        for layer, block in enumerate(model.get_submodule(stack.blocks)):
            for name in stack.downs:
                try:
                    weight = block.get_parameter(name.removesuffix(".T")).data
                except AttributeError:  # not every block has experts, and those that have are not dense
                    continue
                weight = weight.mT if name.endswith(".T") else weight
                for expert, view in enumerate(weight) if weight.ndim == 3 else [(None, weight)]:
                    assert (stack.tower, layer, expert) not in views
                    views[stack.tower, layer, expert] = view
    return views


def plant(model, family, weight):
    """Fill the down projections with small weights but for one, and every other parameter with a larger one.

    Returns the shape of each down projection.
    """
    tower, layer, expert, row, col, value = weight
    for parameter in model.parameters():
        parameter.data.view(-1)[0] = DECOY
    views = down_views(model, family)
    for view in views.values():
        view.normal_(0, 0.02)
    views[tower, layer, expert][row, col] = value
    return {place: tuple(view.shape) for place, view in views.items()}
