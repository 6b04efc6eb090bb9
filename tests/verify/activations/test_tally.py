"""What is told over all prompts, against plain models of transformers that run each prompt alone, with hooks."""

from collections import Counter

import numpy as np
import pytest
import torch
import transformers
from coverage import prepare
from encoder_decoders import blocks as blocks_of
from encoder_decoders import build as build_encoder_decoder
from encoder_decoders import down
from encoder_decoders import plant as plant_in_decoder
from encoder_decoders import save as save_encoder_decoder
from encoder_decoders import seen as seen_in_decoder
from families import FAMILIES, build
from models import (
    FEEDING,
    LAYER,
    PROMPT,
    ROW,
    WORDS,
    load_plain,
    plant,
    plant_in,
    random_llama,
    save,
    save_random,
    settings,
    sized,
    streams,
    verify_folder,
    with_large_weights,
)
from tiny_models import Kind
from tiny_models import build as build_kind
from tiny_text import save_tokenizer

from analyzer.analyze.verifying import verify_model
from analyzer.base.records import Coordinate
from analyzer.forward.runner import Runner
from analyzer.source.folder import FolderSource
from analyzer.verify.activations.detection import are_large, detect
from analyzer.verify.settings import Thresholds

PROMPTS = (
    "apple banana cherry",
    "iris juniper kiwi lemon",
    "pear olive nutmeg mango apple lemon kiwi juniper",
    "grape apple grape fig apple hazel fig fig grape",
    PROMPT,  # which is the prompt again, and counts once
)
DENSE = ("llama", "gpt2", "bert", "opt", "falcon_new", "gemma2", "phi3", "gpt_neox")
BEGIN = 18  # <s>


def ids_of(prompt):
    return [WORDS.index(word) + 1 for word in prompt.split()]


EVERY = [ids_of(prompt) for prompt in dict.fromkeys((PROMPT, *PROMPTS))]


def largest_seen(model, modules, run, prompts=None):
    """The largest magnitude of what modules take and give, over prompts that run alone: {module: (in, out)}."""
    found = {}

    def hook(module, args, kwargs, output):
        taken = args[0] if args else next(iter(kwargs.values()))
        given = output if isinstance(output, torch.Tensor) else output[0]
        here = taken.abs().max().item(), given.abs().max().item()
        found[module] = tuple(map(max, found.get(module, (0, 0)), here))

    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in modules]
    for ids in prompts or EVERY:
        run(model, ids)
    for handle in handles:
        handle.remove()
    return found


@torch.no_grad()
def whole(model, ids):
    model(input_ids=torch.tensor([ids]), use_cache=False)


def has(block, name):
    return name in dict(block.named_modules())


def assert_are(headroom, expected, *, rtol=1e-4):
    """`expected`: by layer, what MLPs take, what their down projections take, what MLPs give."""
    found = [(each.mlp_input, each.down_input, each.mlp_output) for each in headroom.layers]
    np.testing.assert_allclose(found, expected, rtol=rtol)


@pytest.mark.parametrize("name", [name for name in DENSE if name in FAMILIES])
def test_magnitudes_are_those_of_each_prompt_alone(tmp_path, name):
    plain = load_plain(name, save_random(name, tmp_path))
    headroom = verify_folder(tmp_path, prompts=PROMPTS).headroom
    parts = []
    for block in plain.blocks:
        last = next(each for each in FEEDING if has(block, each))
        first = "mlp.gate_up_proj" if has(block, "mlp.gate_up_proj") else FEEDING[last][0]
        parts.append((block.get_submodule(first), block.get_submodule(last)))
    seen = largest_seen(plain.model, [module for pair in parts for module in pair], whole)
    assert_are(headroom, [(seen[first][0], *seen[last]) for first, last in parts])
    stream = [torch.stack(streams(plain.model, plain.blocks, ids)).abs().amax(dim=(1, 2, 3)) for ids in EVERY]
    np.testing.assert_allclose([each.residual for each in headroom.layers], torch.stack(stream).amax(dim=0), rtol=1e-4)
    assert (headroom.prompts, headroom.unseen) == (len(EVERY), ())


def test_a_masked_model_is_never_padded(tmp_path, monkeypatch):
    """However little a token makes of what follows: the median of all changes may be too small to tell."""
    save_random("bert", tmp_path)
    ran, streams_of = [], Runner.streams

    def recorded(runner, prompts, *args, **kwargs):
        ran.extend(prompts)
        return streams_of(runner, prompts, *args, **kwargs)

    monkeypatch.setattr(Runner, "is_causal", lambda *_: True)
    monkeypatch.setattr(Runner, "streams", recorded)
    verify_folder(tmp_path, prompts=PROMPTS)
    assert {len(ids) for ids in ran} == {len(ids) for ids in EVERY}


def test_magnitudes_and_routing_of_a_mixture(tmp_path):
    model = with_large_weights(build(FAMILIES["qwen2_moe"], **sized("qwen2_moe", 16, 5))).eval()
    expert = plant_in(model, "qwen2_moe")
    save(model, tmp_path)
    result = verify_folder(tmp_path, prompts=PROMPTS)
    plain = load_plain("qwen2_moe", tmp_path)
    mlps = [block.mlp for block in plain.blocks]
    chosen, weights, entered, given = Counter(), Counter(), Counter(), Counter()

    def hook(module, args):
        layer = next(number for number, mlp in enumerate(mlps) if module in mlp.children())
        hidden, index, weight = args
        for each in index.unique().tolist():
            tokens, place = torch.where(index == each)
            gate, up = (hidden[tokens] @ module.gate_up_proj[each].T).chunk(2, dim=-1)
            inner = module.act_fn(gate) * up
            entered[layer] = max(entered[layer], inner.abs().max().item())
            given[layer] = max(given[layer], (inner @ module.down_proj[each].T).abs().max().item())
            chosen[layer, each] += len(tokens)
            weights[layer, each] += weight[tokens, place].sum().item()

    handles = [mlp.experts.register_forward_pre_hook(hook) for mlp in mlps if has(mlp, "experts")]
    shared = [mlp.shared_expert.down_proj if has(mlp, "experts") else mlp.down_proj for mlp in mlps]
    assert 0 < len(handles) < len(mlps)  # some blocks are dense
    seen = largest_seen(plain.model, [*mlps, *shared], whole)
    for handle in handles:
        handle.remove()
    expected = [
        (seen[mlp][0], max(entered[layer], seen[down][0]), max(given[layer], seen[down][1], seen[mlp][1]))
        for layer, (mlp, down) in enumerate(zip(mlps, shared, strict=True))
    ]
    assert any(given[layer] > seen[mlp][1] for layer, mlp in enumerate(mlps))  # before the router's weight
    assert_are(result.headroom, expected)
    tokens = sum(map(len, EVERY))
    assert {(each.layer, each.expert) for each in result.routing} == {(w.layer, w.expert) for w in result.super_weights}
    assert (1, expert) in {(each.layer, each.expert) for each in result.routing}
    for each in result.routing:
        place = each.layer, each.expert
        assert (each.chosen, each.tokens) == (chosen[place], tokens)
        assert each.mean_weight == pytest.approx(weights[place] / chosen[place], rel=1e-4)


def test_experts_that_all_tokens_go_through_are_chosen_where_something_is_left(tmp_path):
    """Llama 4 multiplies the router's weight into what enters: it is not seen, but who was chosen is."""
    model = with_large_weights(build(FAMILIES["llama4_text"], **sized("llama4_text", 16, 5))).eval()
    expert = plant_in(model, "llama4_text")
    save(model, tmp_path)
    result = verify_folder(tmp_path, prompts=PROMPTS)
    plain, chosen = load_plain("llama4_text", tmp_path), Counter()
    router = plain.blocks[1].feed_forward.router
    top = plain.model.config.get_text_config().num_experts_per_tok

    def hook(_module, _args, output):
        logits = output[-1]
        chosen.update(logits.topk(top, dim=-1).indices.flatten().tolist())

    handle = router.register_forward_hook(hook)
    for ids in EVERY:
        whole(plain.model, ids)
    handle.remove()
    (routing,) = [each for each in result.routing if (each.layer, each.expert) == (1, expert)]
    assert (routing.chosen, routing.tokens, routing.mean_weight) == (chosen[expert], sum(map(len, EVERY)), None)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_of_an_encoder_decoder_it_is_the_decoder(tmp_path, name):
    model = save_encoder_decoder(plant_in_decoder(build_encoder_decoder(name)), tmp_path)
    prompts = [prompt for prompt in PROMPTS if len(prompt.split()) > 4]
    result = verify_folder(tmp_path, prompts=prompts)
    blocks = blocks_of(model)
    downs, firsts = [], []
    for block in blocks:
        module, (around, _, last) = down(block)
        feeding = {"wo": ("wi", "wi_0"), "fc2": ("fc1",)}[last]
        first = next(n for f in feeding for n in [f"{around}.{f}" if around else f] if has(block, n))
        downs.append(module)
        firsts.append(block.get_submodule(first))
    ids = [ids_of(prompt) for prompt in dict.fromkeys((PROMPT, *prompts))]
    seen = largest_seen(model, [*firsts, *downs], lambda model, each: seen_in_decoder(model, each, blocks), ids)
    assert_are(result.headroom, [(seen[first][0], *seen[last]) for first, last in zip(firsts, downs, strict=True)])
    assert (result.headroom.prompts, result.headroom.tower) == (len(ids), "decoder")
    if name == "t5":
        assert result.sinks.positions[0].position == 0
        assert result.sinks.tokens[0].token == result.tokens[0]  # what the decoder starts from
    assert result.prefix is None  # what stands before a decoder's start is nothing that it was trained on


def test_experts_that_are_not_looked_into_are_said(tmp_path):
    """The experts of Muse Spark write a latent: what their MLPs take and give is seen, what is inside is not."""
    prepare()
    build_kind(Kind("muse_spark", "MuseSparkForConditionalGeneration")).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    result = verify_model(FolderSource(tmp_path), settings(prompts=PROMPTS))
    layers = {each.layer: each for each in result.headroom.layers}
    assert result.headroom.unseen
    for layer in result.headroom.unseen:
        assert layers[layer].down_input is None
        assert layers[layer].mlp_input > 0 < layers[layer].mlp_output


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = save(plant(random_llama()), tmp_path_factory.mktemp("models") / "planted")
    return verify_folder(folder, prompts=PROMPTS), load_plain("llama", folder)


def streams_alone(plain):
    return [torch.stack(streams(plain.model, plain.blocks, ids))[:, 0].numpy() for ids in EVERY]


def test_formats_overflow_from_the_first_layer_that_is_past_them(planted):
    headroom = planted[0].headroom
    assert (headroom.float16.limit, headroom.float16.overflows_from) == (65504.0, None)
    largest = headroom.layers[LAYER]
    assert headroom.float16.largest == max(largest.residual, largest.mlp_output) > 448
    assert (headroom.float16.layer, headroom.float8_e4m3.layer) == (LAYER, LAYER)
    assert (headroom.float8_e4m3.limit, headroom.float8_e4m3.overflows_from) == (448.0, LAYER)


def test_massive_channels_are_those_of_each_prompt_alone(planted):
    result, plain = planted
    every = streams_alone(plain)
    massive = np.stack([are_large(stream, Thresholds()).any(axis=1) for stream in every])  # [prompts, layers, channels]
    largest = np.stack([np.abs(stream).max(axis=1) for stream in every]).max(axis=0)
    assert {each.channel for each in result.massive_channels} == set(np.flatnonzero(massive.any(axis=(0, 1))).tolist())
    magnitudes = [each.magnitude for each in result.massive_channels]
    assert magnitudes == sorted(magnitudes, reverse=True)
    for each in result.massive_channels:
        here = massive[:, :, each.channel]
        assert each.layers == tuple(np.flatnonzero(here.any(axis=0)).tolist())
        np.testing.assert_allclose(each.magnitudes, largest[list(each.layers), each.channel], rtol=1e-4)
        assert each.prompts == here.any(axis=1).sum()
        carrying = [{a.channel for a in detect(s, range(6), [""] * s.shape[1], Thresholds())[0]} for s in every]
        assert each.carrying == sum(each.channel in channels for channels in carrying)
        most = [(are_large(s, Thresholds())[:, :, each.channel].mean(axis=1) > 0.5).any() for s in every]
        assert each.everywhere == sum(most)
    assert result.massive_channels[0].channel == ROW


def test_sinks_are_those_of_each_prompt_alone(planted):
    result, plain = planted
    positions, tokens, start, first = Counter(), Counter(), Counter(), Counter()
    for ids, stream in zip(EVERY, streams_alone(plain), strict=True):
        found = detect(stream, range(6), [""] * len(ids), Thresholds())[0]
        at = {each.position for each in found if each.positions <= len(ids) / 2}
        positions.update(at)
        tokens.update({ids[position] for position in at})
        start.update({ids[0]} if 0 in at else ())
        for token in {ids[position] for position in at if position}:
            first[token] += 1 + ids[1:].index(token) in at
    found = {each.position: (each.prompts, each.of) for each in result.sinks.positions}
    assert found == {p: (n, sum(len(ids) > p for ids in EVERY)) for p, n in positions.items()}
    assert result.sinks.prompts == len(EVERY)
    for each in result.sinks.tokens:
        having = sum(each.id in ids for ids in EVERY)
        assert (each.prompts, each.of, each.token) == (tokens[each.id], having, WORDS[each.id - 1])
        assert (each.at_start, each.first) == (start[each.id], first[each.id])
    assert {each.id for each in result.sinks.tokens} == set(tokens)
    assert result.prefix.ids[-1] == BEGIN
    assert result.prefix.tokens[-1] == "<s>"


def test_a_model_without_super_activations_has_no_sink_and_no_prefix(tmp_path):
    result = verify_folder(save(random_llama(), tmp_path), prompts=PROMPTS)
    assert (result.sinks.positions, result.sinks.tokens, result.prefix, result.routing) == ((), (), None, ())


def test_prompts_without_special_tokens_are_not_counted(tmp_path):
    folder = save(plant(random_llama()), tmp_path)
    save_tokenizer(folder, bos=True)
    result = verify_folder(folder, prompts=PROMPTS)
    assert result.sinks.prompts == len(EVERY)
    plain = load_plain("llama", folder)
    mlps = [block.mlp for block in plain.blocks]
    seen = largest_seen(plain.model, mlps, whole, [[BEGIN, *ids] for ids in EVERY])
    found = [(each.mlp_input, each.mlp_output) for each in result.headroom.layers]
    np.testing.assert_allclose(found, [seen[mlp] for mlp in mlps], rtol=1e-4)


def test_weights_asked_for_and_an_early_stop_have_the_prompt_alone(tmp_path):
    folder = save(plant(random_llama()), tmp_path)
    asked = verify_folder(folder, weights=(Coordinate(LAYER, None, ROW, 0),)).headroom
    assert (asked.prompts, len(asked.layers)) == (1, 6)
    early = verify_folder(folder, early_stop=True)
    assert (early.headroom.prompts, early.headroom.unseen) == (1, ())
    assert [each.layer for each in early.headroom.layers] == [each.layer for each in early.layers]
    told = [(each.mlp_input, each.down_input, each.mlp_output) for each in asked.layers[: len(early.layers)]]
    assert_are(early.headroom, told, rtol=1e-5)  # rows run one by one there


def test_no_pass_is_made_for_it(tmp_path, monkeypatch):
    from analyzer.verify.activations.tally import Tally

    folder = save(plant(random_llama()), tmp_path)
    passes = verify_folder(folder, prompts=PROMPTS).cost.passes
    monkeypatch.setattr(
        "analyzer.forward.blocks.figures._Watched.hung_up", lambda _: transformers.utils.ContextManagers([])
    )
    monkeypatch.setattr(Tally, "told", lambda *_, **__: {})
    assert verify_folder(folder, prompts=PROMPTS).cost.passes == passes
