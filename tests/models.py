"""Builds tiny real language models with their tokenizer, random or with a super weight planted in them."""

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

PROMPT = "apple banana cherry date elder fig grape hazel"
WORDS = [*PROMPT.split(), "iris", "juniper", "kiwi", "lemon", "mango", "nutmeg", "olive", "pear"]
TEXT = " ".join(WORDS * 4)
LAYERS, HIDDEN, INTERMEDIATE = 6, 128, 192
# What `plant` puts there: written by one weight, on the first token of PROMPT.
LAYER, ROW, COL, VALUE = 1, 77, 31, 2.0


def save_tokenizer(folder):
    """Save a tokenizer that makes one token of each of WORDS; 0 is the unknown one."""
    vocabulary = {word: number for number, word in enumerate(["<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)


def random_llama(seed=0, **config):
    torch.manual_seed(seed)
    sizes = {"hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    settings = {"vocab_size": len(WORDS) + 1, "max_position_embeddings": 64, **sizes, **heads, **config}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).eval()


def random_gpt2(seed=0):
    torch.manual_seed(seed)
    sizes = {"n_embd": HIDDEN, "n_inner": INTERMEDIATE, "n_layer": LAYERS, "n_head": 4}
    config = transformers.GPT2Config(vocab_size=len(WORDS) + 1, n_positions=64, **sizes)
    return transformers.GPT2LMHeadModel(config).eval()


def plant(model, *, value=VALUE, layer=LAYER, row=ROW, col=COL):
    """Make one weight write a super activation: its input channel answers to the first token of PROMPT alone."""
    with torch.no_grad():
        first = model.model.embed_tokens.weight[1]
        mlp = model.model.layers[layer].mlp
        mlp.gate_proj.weight[col] = first / first.norm() * 3
        mlp.up_proj.weight[col] = first / first.norm() * 3
        mlp.down_proj.weight[row, col] = value
    return model


def save(model, folder):
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder
