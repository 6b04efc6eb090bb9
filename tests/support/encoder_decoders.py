"""Builds tiny encoder-decoders of transformers with their tokenizer, random or with a weight planted in one stack."""

import torch
import transformers
from models import PROMPT_IDS, WORDS, save_tokenizer, with_large_weights

WIDTH, INNER, LAYERS = 64, 96, 5
VOCABULARY = len(WORDS) + 3
STARTS = 2  # the token that decoders start from
FEEDING = {"wo": ("wi",), "fc2": ("fc1",), "down_proj": ("gate_proj", "up_proj")}


def t5():
    """One embedding for both stacks, positions as a bias that the first block makes, no bias else, a norm before."""
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        d_kv=16,
        d_ff=INNER,
        num_layers=3,
        num_decoder_layers=LAYERS,
        num_heads=4,
        decoder_start_token_id=STARTS,
        pad_token_id=0,
        eos_token_id=1,
    )
    return transformers.T5ForConditionalGeneration(config)


def bart():
    """Biases everywhere, learned positions, norms after."""
    return transformers.BartForConditionalGeneration(transformers.BartConfig(**_like_bart()))


def mbart():
    """BART with its norms before, and one more at the end."""
    return transformers.MBartForConditionalGeneration(transformers.MBartConfig(**_like_bart()))


def marian():
    """BART with sinusoids for positions, which are not stored."""
    config = transformers.MarianConfig(**_like_bart(), decoder_vocab_size=VOCABULARY)
    return transformers.MarianMTModel(config)


def t5gemma():
    """Embeddings of their own for both stacks, capped logits, norms before and after, its own way to start."""
    part = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 64,
        "bos_token_id": STARTS,
        "pad_token_id": 0,
    }
    config = transformers.T5GemmaConfig(
        encoder=transformers.T5GemmaModuleConfig(**part, num_hidden_layers=3),
        decoder=transformers.T5GemmaModuleConfig(**part, num_hidden_layers=LAYERS, is_decoder=True),
        vocab_size=VOCABULARY,
        bos_token_id=STARTS,
    )
    return transformers.T5GemmaForConditionalGeneration(config)


def seamless():
    """Stacks that their names do not tell apart from those of other towers, and embeddings tied across them."""
    config = transformers.SeamlessM4TConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        encoder_layers=3,
        decoder_layers=LAYERS,
        encoder_ffn_dim=INNER,
        decoder_ffn_dim=INNER,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        max_position_embeddings=64,
        decoder_start_token_id=STARTS,
        pad_token_id=0,
    )
    return transformers.SeamlessM4TForTextToText(config)


def _like_bart():
    sizes = {f"{stack}_{name}": size for stack in ("encoder", "decoder") for name, size in _stack().items()}
    tokens = {"decoder_start_token_id": STARTS, "pad_token_id": 0, "bos_token_id": 3, "eos_token_id": 1}
    common = {"vocab_size": VOCABULARY, "d_model": WIDTH, "max_position_embeddings": 64, "forced_eos_token_id": None}
    return {**common, **tokens, **sizes, "encoder_layers": 3}


def _stack():
    return {"layers": LAYERS, "attention_heads": 4, "ffn_dim": INNER}


BUILDERS = {build.__name__: build for build in (t5, bart, mbart, marian, t5gemma, seamless)}


def save(model, folder):
    """Save a model with its tokenizer, and return it as `from_pretrained` has it."""
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return type(model).from_pretrained(folder, attn_implementation="eager").eval()


def build(name):
    torch.manual_seed(0)
    model = with_large_weights(BUILDERS[name]().eval())
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.copy_(torch.linspace(-1, 1, VOCABULARY)[None])
    return model


def blocks(model, stack="decoder"):
    """Return the blocks of a stack."""
    found = model.get_decoder() if stack == "decoder" else model.get_encoder()
    return found.block if hasattr(found, "block") else found.layers


def down(block):
    """Return the linear that is a block's down projection, and the name of it."""
    return next((m, n.rpartition(".")) for n, m in block.named_modules() if n.rpartition(".")[2] in FEEDING)


def inputs(ids, start=STARTS):
    """Return what a stock model is called with: the first half, and for the decoder the second, shifted."""
    middle = len(ids) // 2
    return {"input_ids": torch.tensor([ids[:middle]]), "decoder_input_ids": torch.tensor([[start, *ids[middle:-1]]])}


def seen(model, ids, modules, *, entering=False):
    """Return what modules give, or are given, while the stock model runs these ids: [T, width] each."""
    found = {}

    def hook(module, args, output=None):
        value = args[0] if entering else output
        found[module] = (value if isinstance(value, torch.Tensor) else value[0]).clone()

    handles = [m.register_forward_pre_hook(hook) if entering else m.register_forward_hook(hook) for m in modules]
    with torch.no_grad():
        model(**inputs(ids), use_cache=False)
    for handle in handles:
        handle.remove()
    return [found[module].reshape(-1, found[module].shape[-1]) for module in modules]


def loss(model, ids):
    """Return the mean loss of the second half of these ids, of which the encoder reads the first."""
    with torch.no_grad():
        logits = model(**inputs(ids), use_cache=False).logits[0]
    return torch.nn.functional.cross_entropy(logits.double(), torch.tensor(ids[len(ids) // 2 :])).item()


@torch.no_grad()
def plant(model, stack="decoder", *, layer=1, row=5, col=19, ratio=500.0):
    """Have one weight of a stack write a super activation of `ratio` times the median, on its first token of PROMPT."""
    here = blocks(model, stack)
    matrix, (around, _, name) = down(here[layer])
    feeding = [here[layer].get_submodule(f"{around}.{each}" if around else each) for each in FEEDING[name]]
    run = alone if stack == "encoder" else seen
    (entered,) = run(model, PROMPT_IDS, feeding[:1], entering=True)
    for linear in feeding:
        linear.weight[col] = torch.linalg.pinv(entered)[:, 0] * 4
        if linear.bias is not None:
            linear.bias[col] = 0
    matrix.weight[row] = 0
    matrix.weight[row, col] = 1.0
    scale = matrix.weight[row, col : col + 1]
    norm = getattr(here[layer], "post_feedforward_layernorm", None)
    if norm is not None:
        matrix.weight[row, col] = 30.0
        norm.weight[row] = 1.0
        scale = norm.weight[row : row + 1]
    for _ in range(8):
        streams = torch.stack(run(model, PROMPT_IDS, list(here)))[layer:]
        scale *= ratio / (streams[:, 0, row].abs() / streams.abs().flatten(1).median(dim=1).values).min()
    return model


def alone(model, ids, modules, *, entering=False):
    """Return what modules of the encoder give, or are given, while it reads all of these ids."""
    whole = model.forward
    try:
        model.forward = lambda **_: model.get_encoder()(input_ids=torch.tensor([ids]))
        return seen(model, ids, modules, entering=entering)
    finally:
        model.forward = whole
