"""The embedding, read by rows, and the output head, multiplied in slices."""

import encoder_decoders
import pytest
import torch
import transformers
from gguf_models import write_gguf_model
from mlx_models import tiny_model, write_mlx
from models import (
    PROMPT_IDS,
    TEXT_IDS,
    hooked,
    load_plain,
    save_random,
    with_large_weights,
)
from safetensors.torch import load_file, save_file
from streamed import assert_close, check_equal, run, stored_bytes

from analyzer.analyze.running import open_runnable
from analyzer.base.records import Coordinate
from analyzer.checkpoint.shards import SINGLE
from analyzer.forward.checking import check_rows
from analyzer.forward.edits import UNTOUCHED, zeroing
from analyzer.forward.losses.plain import losses
from analyzer.source.opening import open_model


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A model whose embedding and head are larger than its blocks."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    return save_random("llama", folder, vocab_size=1000)


@pytest.mark.parametrize(
    ("name", "tied"),
    [
        ("llama", True),
        ("qwen2", True),
        ("gpt_neox", True),
        ("mixtral", True),
        ("gpt2", False),
        ("gemma", False),
        ("gemma3_text", False),
        ("falcon_old", False),
        ("bert", False),
        ("modernbert", False),
    ],
)
def test_tied_and_untied_embeddings(tmp_path, name, tied):
    save_random(name, tmp_path, tie_word_embeddings=tied)
    embedding = load_plain(name, tmp_path).model
    same = embedding.get_input_embeddings().weight is embedding.get_output_embeddings().weight
    assert same == tied
    check_equal(name, tmp_path, 0)


def test_a_tied_embedding_stored_as_the_head_alone(tmp_path):
    save_random("llama", tmp_path, tie_word_embeddings=True)
    tensors = load_file(tmp_path / SINGLE)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / SINGLE, metadata={"format": "pt"})
    check_equal("llama", tmp_path, 0)


def test_a_tied_head_reads_the_embedding_once_it_is_needed(tmp_path):
    save_random("llama", tmp_path, vocab_size=1000, tie_word_embeddings=True)
    model = hooked(tmp_path)
    model.trace([3, 4, 5])
    assert model.checkpoint.bytes_read < stored_bytes(tmp_path, of="embed_tokens")
    model.losses([[3, 4, 5]], [()])
    assert model.checkpoint.bytes_read < stored_bytes(tmp_path) + 10_000


def test_the_head_is_multiplied_in_slices(llama, monkeypatch):
    plain, model = load_plain("llama", llama), hooked(llama)
    monkeypatch.setattr("analyzer.model.ends.stored.HEAD_NUMBERS", 16 * 7)
    with torch.no_grad():
        expected = plain.model(input_ids=torch.tensor([PROMPT_IDS])).logits
    assert_close(run(model, [PROMPT_IDS])[1], expected)


def sliced(monkeypatch, folder, rows, tokens):
    """Return a model whose head is gone through by so many rows of the vocabulary and so many tokens at a time."""
    monkeypatch.setattr("analyzer.model.ends.stored.HEAD_NUMBERS", 16 * rows)
    monkeypatch.setattr("analyzer.model.ends.head.LOGIT_BYTES", 4 * rows * tokens)
    return hooked(folder)


@pytest.mark.parametrize(("rows", "tokens"), [(2000, 100), (70, 100), (300, 3)])
def test_likelihoods_are_those_of_the_whole_vocabulary(llama, monkeypatch, rows, tokens):
    model, ids = sliced(monkeypatch, llama, rows, tokens), [*range(1, 20), 999, 0]
    check_rows(model.runner, ids)
    assert model.blocks.output.in_parts
    with torch.no_grad():
        logits = load_plain("llama", llama).model(input_ids=torch.tensor([ids])).logits[0]
    expected = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
    found = model.likelihoods(model.states([ids], [UNTOUCHED])[0, :-1], torch.tensor(ids[1:]))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_head_that_needs_the_whole_vocabulary_gets_it(llama, monkeypatch):
    """As Chameleon does, which says of some tokens that they are none of a text's."""

    def without_one(_module, _args, output):
        output.logits[..., 500] = -100.0

    model, ids = sliced(monkeypatch, llama, 7, 100), [1, 2, 500, 3]
    model.blocks.model.register_forward_hook(without_one)
    check_rows(model.runner, PROMPT_IDS)
    assert not model.blocks.output.in_parts
    with torch.no_grad():
        logits = load_plain("llama", llama).model(input_ids=torch.tensor([ids])).logits[0]
    logits[:, 500] = -100.0
    expected = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:])).item()
    assert model.losses([ids], [()])[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("how", "large"), [("mlx", True), ("gguf", True), ("gguf", False)])
def test_a_quantized_head_is_decoded_in_slices_and_kept_where_it_is_small(tmp_path, monkeypatch, how, large, tied):
    """Slices of 70 rows, of tiles of 30; the embedding by the rows in use."""
    limit, value = ("HEAD_NUMBERS", 64 * 70) if large else ("HEAD_TOKENS", 70)
    monkeypatch.setattr(f"analyzer.model.ends.stored.{limit}", value)
    monkeypatch.setattr("analyzer.numbers.matrices.TILE_NUMBERS", 2 * 64 * 30)
    model = tiny_model("llama", vocab_size=1000, tie_word_embeddings=tied)
    quantized, floats = write_mlx(model, tmp_path) if how == "mlx" else write_gguf_model(model, tmp_path, "llama")
    found = []
    for source in (quantized, floats):
        runner, tokens = open_runnable(open_model(str(source))).build()
        found.append(losses(runner, [tokens.window(PROMPT_IDS), tokens.window([900, 3, 999])], [UNTOUCHED])[0])
        head = runner.blocks.model.get_output_embeddings()
        assert [len(each) for each in head.slices] == [70] * 14 + [20]
        assert (head._stored is None) == (large and source is quantized)
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_a_head_that_is_given_streams_that_predict_beside_the_main_one(tmp_path):
    config = transformers.ProphetNetConfig(
        vocab_size=19,
        hidden_size=32,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_encoder_layers=3,
        num_decoder_layers=3,
        num_encoder_attention_heads=4,
        num_decoder_attention_heads=4,
        max_position_embeddings=64,
        ngram=3,
        decoder_start_token_id=encoder_decoders.STARTS,
    )
    torch.manual_seed(0)
    model = with_large_weights(transformers.ProphetNetForConditionalGeneration(config).eval())
    model = encoder_decoders.save(model, tmp_path)
    runner, tokens = open_runnable(open_model(str(tmp_path))).build()
    (states,) = runner.states([TEXT_IDS], [UNTOUCHED])
    assert states.shape == (32, 1 + 3, 32)
    with torch.no_grad():
        expected = model(**encoder_decoders.inputs(TEXT_IDS), use_cache=False).logits[0]
    assert_close(runner.logits(states)[None], expected[None])
    assert_close(runner.logits(states[5:7])[None], expected[None, 5:7])
    weight = zeroing([Coordinate(1, None, 5, 19, "decoder")])
    row = model.prophetnet.decoder.layers[1].feed_forward.output.weight
    before = encoder_decoders.loss(model, TEXT_IDS)
    with torch.no_grad():
        row[5, 19] = 0.0
    found = losses(runner, [tokens.window(TEXT_IDS)], [UNTOUCHED, weight])
    assert found == pytest.approx([before, encoder_decoders.loss(model, TEXT_IDS)], rel=1e-6)
    assert found[0] != found[1]
    check_rows(runner, TEXT_IDS)
    assert any("streams that predict run beside its main one" in note for note in runner.notes)
