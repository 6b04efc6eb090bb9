"""What the configurations of single model types need to be made tiny, beyond what rules by name can know."""

from __future__ import annotations

from typing import Any

from tiny_sizes import EXPERT_INNER

ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SMALL_CODES = {"base_channels": 32, "channel_multiplier": [1, 2], "latent_channels": 32, "embed_dim": 32}
SECTIONS = {"rope_parameters": {"mrope_section": [4, 2, 2]}}  # of half a head
# By model type: where a class needs what the rules cannot know, or has more in it than by default.
OVERRIDES: dict[str, dict[str, Any]] = {
    "apertus1p5": {"image_token_offset": 20, "audio_token_offset": 276, "text_config": {"vocab_size": 600}},
    "apertus1p5_vision_tokenizer": {**SMALL_CODES, "num_res_blocks": 1},
    "bamba": {"attn_layer_indices": [1, 3]},
    "bloom": {"n_layer": 4},
    "chameleon": {"vocabulary_map": {"<image>": 250, "IMGIMGA": 251, "IMGIMGB": 252}},
    "chameleon_vqgan": SMALL_CODES,
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"], "num_experts_per_tok": 2},
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": EXPERT_INNER},
    "distilbert": {"hidden_dim": 176},
    "dory": {
        "num_hidden_layers": 6,
        "n_input_layers": 2,
        "n_recurrent_layers": 2,
        "n_output_layers": 2,
        "layer_types": ["sliding_attention", "mlp", "full_attention", "mlp", "sliding_attention", "mlp"],
    },
    "dots3_note_text": {"head_dim": 24},
    "emu3": {"vocabulary_map": {"<image>": 250, "<|extra_200|>": 251}},
    "emu3_vqgan": {"base_channels": 32, "channel_multiplier": [1, 2], "embed_dim": 32},
    "ernie4_5_vl_moe_text": {
        "moe_intermediate_size": [EXPERT_INNER, 88],
        "rope_parameters": {"mrope_section": [3, 3, 2]},
    },
    "florence_vision": {
        "depths": [1, 1, 2, 1],
        "embed_dim": [16, 32, 64, 96],
        "num_heads": [2, 2, 4, 4],
        "num_groups": [2, 2, 4, 4],
        "projection_dim": 64,
    },
    "gemma3n_text": {"num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gemma4_assistant": {"text_config": {"enable_moe_block": False}},
    "gemma4_text": {
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": EXPERT_INNER,
    },
    "glm4v_moe_text": {"rope_parameters": {"mrope_section": [2, 1, 1]}},
    "glm4v_text": SECTIONS,
    "glm5_next_text": {"index_kpool": 4},
    "glm_ocr_text": SECTIONS,
    "granite4_vision": {
        "deepstack_layer_map": [[-2, 0], [-1, 1]],
        "downsample_rate": "1/2",
        "vision_config": {"hidden_size": 64},
    },
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2},
    "hunyuan_vl_text": SECTIONS,
    "janus_vqgan": SMALL_CODES,
    "led": {"attention_window": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "llama4_vision_model": {"projector_input_dim": 64, "projector_output_dim": 64, "intermediate_size": 192},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "mllama_text_model": {"num_hidden_layers": 6, "cross_attention_layers": [1, 4]},
    "mobilebert": {"true_hidden_size": 32, "intra_bottleneck_size": 32},
    "molmo2_adapter": {"vision_feature_layer": [2, 1]},
    "molmo2_vision": {"image_size": [56, 56], "num_position_embeddings": 16},
    "nemotron_h": {"moe_latent_size": 24},
    "paddleocr_vl_text": SECTIONS,
    "perceiver": {
        "self_attention_widening_factor": 2,
        "num_self_attends_per_block": 3,
        "d_latents": 96,
        "num_latents": 16,
    },
    "phi4_multimodal_audio": {
        "depthwise_separable_out_channel": 80,
        "ext_pw_out_channel": 80,
        "nemo_conv_channels": 80,
    },
    "qwen2_5_omni_text": SECTIONS,
    "qwen2_5_vl_text": SECTIONS,
    "qwen2_vl_text": SECTIONS,
    "reformer": {"feed_forward_size": 176, "axial_pos_shape": [8, 16], "axial_pos_embds_dim": [32, 32]},
    "step3p5": {"sliding_window": 8},
    "vibevoice_acoustic_tokenizer_encoder": {"num_filters": 4, "depths": [1] * 7},
    "wavtokenizer_encoder": {"codebook_dim": 80, "decoder_attention_num_groups": 16},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 5, "layers_block_type": ["linear_attention", "hybrid"] * 2 + ["linear_attention"]},
    "zamba2": {
        "num_hidden_layers": 6,
        "layers_block_type": ["linear_attention", "hybrid"] * 3,
        "hybrid_layer_ids": [1, 3, 5],
        "num_mem_blocks": 2,
    },
}
# Where a configuration cannot be made of nothing: what it is made of.
BASES: dict[str, dict[str, Any]] = {
    "gemma4_assistant": {
        "text_config": {"model_type": "gemma4_text", "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    }
}

# Fields that are null by default, and are filled where a model cannot be built without them.
FILLED: dict[str, int | None] = {
    "head_dim": None,  # of the tower's kind
    "num_key_value_heads": 4,
    "vocab_size": 300,
    "pad_token_id": 0,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
    "q_lora_rank": 24,
}
