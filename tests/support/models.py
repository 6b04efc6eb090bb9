"""Builds tiny real language models with their tokenizer, random or with a super weight planted in them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from families import FAMILIES, build, down_views
from tiny_text import PROMPT, PROMPT_IDS, TEXT, TEXT_IDS, WORDS, save_tokenizer

from analyzer.analyze.verifying import verify_model
from analyzer.base.records import Coordinate
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.forward.edits import zeroing
from analyzer.forward.losses.plain import losses, token_losses
from analyzer.forward.runner import Runner
from analyzer.model.tokens import Tokens, Window
from analyzer.projections.down_projections import down_projections
from analyzer.scan.records import ScanSettings
from analyzer.source.folder import FolderSource
from analyzer.verify.settings import VerifySettings

torch.set_num_threads(1)  # more of them, on matrices as small as these, only wait for each other

LAYERS, HIDDEN, INTERMEDIATE = 6, 128, 192
# What `plant` puts there: written by one weight, on the first token of PROMPT.
LAYER, ROW, COL, VALUE = 1, 77, 31, 2.0
# The families that the forward pass is tested with.
MIXTURES = ("deepseek_v2", "deepseek_v3", "mixtral", "qwen2_moe", "qwen3_moe", "granitemoe", "gpt_oss", "llama4_text")
MASKED = ("bert", "modernbert")
DENSE = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "olmo", "olmo2"),
    *("gpt2", "gpt_neox", "gptj", "opt", "bloom", "falcon_old", "falcon_new", "mpt", "starcoder2", "stablelm"),
    *("cohere", *MASKED),
)


def random_llama(seed=0, **config):
    torch.manual_seed(seed)
    sizes = {"hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    settings = {"vocab_size": len(WORDS) + 3, "max_position_embeddings": 64, **sizes, **heads, **config}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).eval()


def plant(model, *, value=VALUE, layer=LAYER, row=ROW, col=COL):
    """Make one weight write a super activation: its input channel answers to the first token of PROMPT alone."""
    with torch.no_grad():
        first = model.model.embed_tokens.weight[1]
        mlp = model.model.layers[layer].mlp
        mlp.gate_proj.weight[col] = first / first.norm() * 3
        mlp.up_proj.weight[col] = first / first.norm() * 3
        mlp.down_proj.weight[row, col] = value
    return model


def cue(model, layer, row, col, word, *, value=0.12):
    """Have one weight tell the head, through a channel of its own, what follows a word: nothing else does."""
    token = WORDS.index(word) + 1
    (entered,) = arguments(model, model.model.layers[layer].mlp, TEXT_IDS)
    with torch.no_grad():
        for block in model.model.layers:
            block.mlp.down_proj.weight[row] = 0
            block.self_attn.o_proj.weight[row] = 0
        mlp = model.model.layers[layer].mlp
        only = torch.linalg.pinv(entered[0]) @ (3.0 * (torch.tensor(TEXT_IDS) == token))
        mlp.gate_proj.weight[col] = mlp.up_proj.weight[col] = only
        mlp.down_proj.weight[row, col] = value
        model.lm_head.weight[:, row] = 0
        model.lm_head.weight[token + 1, row] = 1
    return model


def save(model, folder):
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


class Hooked:
    """The analyzer's runner of a model with its tokens, asked in ids and in coordinates to zero."""

    def __init__(self, checkpoint, folder, **options):
        self.runner = Runner(checkpoint, down_projections(checkpoint), folder, **options)
        sizes = {"vocabulary": self.runner.vocabulary, "max_tokens": self.runner.max_tokens}
        self.tokens = Tokens(self.runner.name, folder, masked=self.runner.masked, **sizes)

    def __getattr__(self, name):
        return getattr(self.runner, name)

    def trace(self, ids, zeroed=(), **options):
        return self.runner.trace(ids, zeroing(zeroed), **options)

    def streams(self, prompts, sets, **options):
        return np.stack(list(self.runner.streams(prompts, [zeroing(zeroed) for zeroed in sets], **options)))

    def losses(self, windows, sets, *progress):
        windows = [window if isinstance(window, Window) else self.tokens.window(window) for window in windows]
        return losses(self.runner, windows, [zeroing(zeroed) for zeroed in sets], *progress)

    def token_losses(self, pairs):
        return token_losses(self.runner, pairs)

    def predicted(self, windows):
        return sum(len(self.tokens.window(window).places) for window in windows)


def hooked(folder, **options):
    """Return the analyzer's model of a local folder."""
    return Hooked(Checkpoint(FolderSource(Path(folder))), Path(folder), **options)


def with_large_weights(model, seed=1):
    """Make of a newly built model, whose weights are so small that nothing matters, one where everything does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "bias" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.mul_(5)
    return model


def sized(name, width, layers):
    """Return what in a family's config makes it so wide and deep."""
    config = FAMILIES[name].config
    sizes = dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), width)
    sizes |= dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"), width * 3 // 2)
    sizes |= dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers"), layers)
    if "qk_rope_head_dim" not in config:
        sizes["head_dim"] = width // 4
    return {key: size for key, size in sizes.items() if key in config}


@dataclass(frozen=True)
class Plain:
    """A model of transformers as `from_pretrained` makes it of a folder: what the analyzer's must equal."""

    name: str
    folder: Path
    model: transformers.PreTrainedModel

    @property
    def body(self):
        return self.model.get_submodule(FAMILIES[self.name].stacks[0].blocks.partition(".")[0])

    @property
    def blocks(self):
        return self.model.get_submodule(FAMILIES[self.name].stacks[0].blocks)

    @property
    def downs(self):
        """Each down projection by (layer, expert), a view of the module's own weight, [rows, cols]."""
        return {place[1:]: view for place, view in down_views(self.model, FAMILIES[self.name]).items()}


def load_plain(name, folder, **options):
    model_class = getattr(transformers, FAMILIES[name].name)
    return Plain(name, Path(folder), model_class.from_pretrained(folder, **options).eval())


def save_random(name, folder, *, save_options=None, **config):
    """Save a tiny random model of a family, with a weight that matters at (5, 19) of every down projection."""
    model = with_large_weights(build(FAMILIES[name], **config))
    for view in down_views(model, FAMILIES[name]).values():
        view[5, 19] = 10.0
    model.save_pretrained(folder, **(save_options or {}))
    save_tokenizer(folder)
    return folder


# The linear maps that feed a down projection: of its gate and of what the gate multiplies, or but one.
FEEDING = {
    "mlp.down_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.fc2": ("mlp.fc1",),
    "fc2": ("fc1",),
    "mlp.c_proj": ("mlp.c_fc",),
    "mlp.dense_4h_to_h": ("mlp.dense_h_to_4h",),
    "mlp.fc_out": ("mlp.fc_in",),
    "ffn.down_proj": ("ffn.up_proj",),
    "output.dense": ("intermediate.dense",),
    "mlp.Wo": ("mlp.Wi", "mlp.Wi"),
}
POST_NORMS = dict.fromkeys(("gemma2", "gemma3_text", "olmo2"), "post_feedforward_layernorm")


@torch.no_grad()
def plant_in(model, name, *, layer=1, row=5, col=19, ratio=500.0):
    """Have one weight write a super activation of `ratio` times the median, on the first token of PROMPT.

    Its inner channel is made to answer to that token alone. Returns the weight's expert, null where there is none.
    """
    family = FAMILIES[name]
    blocks = model.get_submodule(family.stacks[0].blocks)
    if name == "bert":
        _make_room_in_bert(model, blocks, row)
    expert, entered, channels = _inner_channel(model, name, blocks[layer], layer, col)
    for weights, bias in channels:
        weights[...] = torch.linalg.pinv(entered)[:, 0] * 4  # 4 of the first token, 0 of the others
        if bias is not None:
            bias[...] = 0
    weights = down_views(model, family)[None, layer, expert][row]
    weights[:] = 0
    weights[col] = 1
    if name == "bert":
        scales = [block.output.LayerNorm.weight[row : row + 1] for block in blocks[layer:]]
    elif name in POST_NORMS:
        scales = [blocks[layer].get_submodule(POST_NORMS[name]).weight[row : row + 1]]
        scales[0][...] = 1
    else:
        scales = [weights[col : col + 1]]
    if scales[0].data_ptr() != weights[col : col + 1].data_ptr():
        weights[col] = 30  # however large it is, a norm follows
    for _ in range(8):
        stream = torch.stack(streams(model, blocks, PROMPT_IDS))[layer:, 0]  # [layers, T, hidden]
        reached = (stream[:, 0, row].abs() / stream.abs().flatten(1).median(dim=1).values).min()
        for scale in scales:
            scale *= ratio / reached
    return expert


def streams(model, blocks, ids):
    """Return the residual stream after each block, [rows, T, hidden], by hooks on a plain model of transformers."""
    found = []

    def hook(_module, _args, output):
        found.append((output[0] if isinstance(output, tuple) else output).clone())

    handles = [block.register_forward_hook(hook) for block in blocks]
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return [stream.reshape(1, len(ids), -1) for stream in found]


def arguments(model, module, ids):
    """Return the arguments with which a module of a plain model is called."""
    found = []
    handle = module.register_forward_pre_hook(lambda _, args: found.append([arg.clone() for arg in args]))
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]), use_cache=False)
    handle.remove()
    return found[0]


def _inner_channel(model, name, block, layer, col):
    """Return the expert, what enters its MLP, [T, hidden], and (weights, bias) of each half of its inner channel."""
    views = down_views(model, FAMILIES[name])
    if (None, layer, 0) in views:
        experts = next(module for module in block.modules() if hasattr(module, "gate_up_proj"))
        hidden, *routing = arguments(model, experts, PROMPT_IDS)
        if routing:
            expert = int(routing[0][0, routing[1][0].argmax()])
        else:  # Llama 4: every expert has all tokens, scaled by how much it is meant to have them
            hidden = hidden.reshape(len(experts.gate_up_proj), len(PROMPT_IDS), -1)
            expert = int(hidden[:, 0].abs().sum(dim=-1).argmax())
            hidden = hidden[expert]
        width = views[None, layer, expert].shape[1]
        weights = experts.gate_up_proj[expert]
        weights = weights.T if name in ("gpt_oss", "llama4_text") else weights
        places = (2 * col, 2 * col + 1) if name == "gpt_oss" else (col, width + col)
        biases = getattr(experts, "gate_up_proj_bias", None)
        return expert, hidden, [(weights[place], None if biases is None else biases[expert, place]) for place in places]
    feeding = FEEDING[next(down for down in FEEDING if _has(block, down))]
    if _has(block, "mlp.gate_up_proj"):
        feeding = ("mlp.gate_up_proj", "mlp.gate_up_proj")
    width = views[None, layer, None].shape[1]
    channels = []
    for half, module in enumerate(map(block.get_submodule, feeding)):
        place = col + (half * width if feeding[0] == feeding[-1] and len(feeding) == 2 else 0)
        weights = module.weight.T if isinstance(module, transformers.pytorch_utils.Conv1D) else module.weight
        channels.append((weights[place], None if module.bias is None else module.bias[place : place + 1]))
    entered = arguments(model, block.get_submodule(feeding[0]), PROMPT_IDS)[0]
    return None, entered.reshape(len(PROMPT_IDS), -1), channels


def _has(block, name):
    try:
        block.get_submodule(name)
    except AttributeError:
        return False
    return True


def _make_room_in_bert(model, blocks, row):
    """Let nothing but a planted weight write a channel of BERT, and center all else.

    Each of its blocks ends in a norm that takes the mean away. A channel of v makes the mean v / hidden_size, and so
    the median: it is seen as large only where the norms scale it up, and they would do so with any mean.
    """
    others = [channel for channel in range(model.config.hidden_size) if channel != row]
    embeddings = model.bert.embeddings
    tables = [embeddings.word_embeddings, embeddings.position_embeddings, embeddings.token_type_embeddings]
    rows = [table.weight.T for table in tables]
    norms = [embeddings.LayerNorm]
    for block in blocks:
        for part in (block.attention.output, block.output):
            rows += [part.dense.weight, part.dense.bias[:, None]]
            norms.append(part.LayerNorm)
    for matrix in rows:  # [hidden, ...]
        matrix[others] -= matrix[others].mean(dim=0)
        matrix[row] = 0
    for norm in norms:
        norm.weight.fill_(1)
        norm.bias.zero_()


PLANTED = Coordinate(LAYER, None, ROW, COL)


def verify_folder(folder, prompt=PROMPT, text=TEXT, **options):
    scan = ScanSettings(**{key: options.pop(key) for key in ("top", "score") if key in options})
    return verify_model(FolderSource(folder), settings(prompt, text, **options), scan=scan)


def settings(prompt=PROMPT, text=TEXT, prompts=(), **options):
    """Return what a verification here is asked for: no prompts beside the one, where none are given."""
    return VerifySettings(prompt=prompt, text=text, prompts=tuple(prompts), **options)


def found_at(result, coordinate):
    return next(w for w in result.super_weights if w.coordinate == coordinate)
