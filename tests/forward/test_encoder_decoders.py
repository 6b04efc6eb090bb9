"""Encoder-decoders against plain transformers: the decoder's stream and loss, edits in it, and its encoder alone."""

import encoder_decoders
import numpy as np
import pytest
import torch
import transformers
from encoder_decoders import LAYERS, STARTS, WIDTH
from models import PROMPT_IDS, TEXT_IDS, with_large_weights

from analyzer.analyze.running import load_model, open_runnable
from analyzer.base.errors import ForwardError
from analyzer.base.records import Coordinate
from analyzer.forward.checking import check_rows, check_trace
from analyzer.forward.edits import UNTOUCHED, zeroing
from analyzer.forward.losses.plain import losses
from analyzer.source.folder import FolderSource

WEIGHT = Coordinate(2, None, 5, 19, "decoder")


@pytest.fixture(scope="module", params=["t5", "bart", "mbart", "marian", "t5gemma"])
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model = encoder_decoders.build(request.param)
    with torch.no_grad():
        encoder_decoders.down(encoder_decoders.blocks(model)[2])[0].weight[5, 19] = 10.0
    return folder, encoder_decoders.save(model, folder)


def built(folder, tower=None, **options):
    return open_runnable(FolderSource(folder), tower=tower).build(**options)


def streams_of(model, ids):
    return torch.stack(encoder_decoders.seen(model, ids, list(encoder_decoders.blocks(model)))).numpy()


@pytest.mark.parametrize("length", [8, 9])
def test_the_decoder_runs_on_the_second_half_as_the_stock_model_does(saved, length):
    folder, model = saved
    runner, tokens = built(folder)
    ids = TEXT_IDS[3 : 3 + length]
    trace = runner.trace(ids)
    expected = streams_of(model, ids)
    assert trace.residual.shape == expected.shape == (LAYERS, (length + 1) // 2, WIDTH)
    np.testing.assert_allclose(trace.residual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert tokens.judged(ids) == (STARTS, *ids[length // 2 : -1])
    check_trace(runner, ids, trace)
    assert runner.is_causal(ids, trace)
    assert runner.tower == "decoder"


def test_the_loss_is_the_stock_model_s_own_of_the_second_half(saved):
    folder, model = saved
    runner, tokens = built(folder)
    window = tokens.window(TEXT_IDS)
    assert window.targets == tuple(TEXT_IDS[32:])
    (found,) = losses(runner, [window], [UNTOUCHED])
    assert found == pytest.approx(encoder_decoders.loss(model, TEXT_IDS), rel=1e-6)
    if "MBart" not in type(model).__name__:  # which starts from the last of its labels
        with torch.no_grad():
            own = model(input_ids=torch.tensor([TEXT_IDS[:32]]), labels=torch.tensor([TEXT_IDS[32:]])).loss.item()
        assert found == pytest.approx(own, rel=1e-6)


def test_rows_with_edits_in_the_decoder_share_the_encoder_s_run(saved):
    folder, model = saved
    runner, tokens = built(folder)
    matrix = encoder_decoders.down(encoder_decoders.blocks(model)[2])[0].weight
    windows = [tokens.window(TEXT_IDS), tokens.window(TEXT_IDS[::-1])]
    rows = []
    first = next(name for name in runner.blocks._blocks if "encoder" in name)
    whole = runner.blocks.rows.run

    def counting(name, forward, args, kwargs):
        def counted(*args, **kwargs):
            rows.append((args or tuple(kwargs.values()))[0].shape[0])
            return forward(*args, **kwargs)

        return whole(name, counted if name == first else forward, args, kwargs)

    runner.blocks.rows.run = counting
    found = losses(runner, windows, [UNTOUCHED, zeroing([WEIGHT])])
    assert rows == [2]
    untouched = np.mean([encoder_decoders.loss(model, ids) for ids in (TEXT_IDS, TEXT_IDS[::-1])])
    with torch.no_grad():
        kept, matrix[5, 19] = matrix[5, 19].item(), 0.0
        zeroed = np.mean([encoder_decoders.loss(model, ids) for ids in (TEXT_IDS, TEXT_IDS[::-1])])
        matrix[5, 19] = kept
    assert found == pytest.approx([untouched, zeroed], rel=1e-6)
    assert abs(zeroed - untouched) > 1e-4
    check_rows(runner, TEXT_IDS)


def test_blocks_of_both_stacks_come_and_go(saved):
    runner, _ = built(saved[0], keep_bytes=0)
    runner.trace(PROMPT_IDS)
    names = list(runner.blocks._blocks)
    assert len(names) == 3 + LAYERS
    assert sum("encoder" in name for name in names) == 3
    assert all(p.is_meta for name in names for p in runner.blocks.model.get_submodule(name).parameters())


def test_the_encoder_by_itself_reads_all_and_says_nothing(saved):
    folder, model = saved
    runner, tokens = built(folder, "encoder")
    blocks = list(encoder_decoders.blocks(model, "encoder"))
    expected = torch.stack(encoder_decoders.alone(model, PROMPT_IDS, blocks)).numpy()
    trace = runner.trace(PROMPT_IDS)
    assert trace.residual.shape == expected.shape == (3, 8, WIDTH)
    np.testing.assert_allclose(trace.residual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert tokens.judged(PROMPT_IDS) == tuple(PROMPT_IDS)
    assert not runner.has_loss
    check_rows(runner, TEXT_IDS)
    decoder = [p for name, p in runner.blocks.model.named_parameters() if "decoder." in name]
    assert sum(not p.is_meta and p.numel() > 0 for p in decoder) <= 1  # but for an embedding that is read by rows


def test_text_goes_in_and_logits_of_its_second_half_come_out(saved):
    folder, model = saved
    text = "apple banana cherry date elder"
    with torch.no_grad():
        expected = model(**encoder_decoders.inputs([1, 2, 3, 4, 5]), use_cache=False).logits[0].numpy()
    found = load_model(FolderSource(folder))
    np.testing.assert_allclose(found.logits(text), expected, rtol=0, atol=1e-4)
    with pytest.raises(ForwardError, match="cannot be run on 1 tokens: give 2 to"):
        found.logits("apple")


def test_a_row_that_comes_out_otherwise_is_refused(saved, monkeypatch):
    runner, _ = built(saved[0])
    both = runner.streams_and_states
    monkeypatch.setattr(runner, "streams_and_states", lambda *rows: [each * 1.01 for each in both(*rows)])
    with pytest.raises(ForwardError, match="comes out otherwise here"):
        check_rows(runner, TEXT_IDS)


def test_a_decoder_whose_stream_has_its_rows_second_runs_row_by_row(tmp_path):
    config = transformers.FSMTConfig(
        src_vocab_size=19,
        tgt_vocab_size=19,
        langs=["en", "de"],
        d_model=WIDTH,
        encoder_layers=3,
        decoder_layers=LAYERS,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        decoder_start_token_id=STARTS,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = with_large_weights(transformers.FSMTForConditionalGeneration(config).eval())
    model = encoder_decoders.save(model, tmp_path)
    ids, others = TEXT_IDS[:8], TEXT_IDS[8:16]
    runner, tokens = built(tmp_path)
    found = list(runner.streams([ids, others], [UNTOUCHED, zeroing([WEIGHT])]))
    assert runner.one_by_one
    np.testing.assert_allclose(found[0], streams_of(model, ids), rtol=0, atol=1e-5 * np.abs(found[0]).max())
    windows, weight = [tokens.window(ids), tokens.window(others)], model.model.decoder.layers[2].fc2.weight
    expected = []
    with torch.no_grad():
        for value in (weight[5, 19].item(), 0.0):
            weight[5, 19] = value
            expected.append(np.mean([encoder_decoders.loss(model, each) for each in (ids, others)]))
    assert losses(runner, windows, [UNTOUCHED, zeroing([WEIGHT])]) == pytest.approx(expected, rel=1e-6)
    assert abs(expected[1] - expected[0]) > 1e-4
    for some in (ids, ids[:6]):  # the decoder has as many tokens of these as there are rows
        runner, _ = built(tmp_path)
        check_rows(runner, some)
        assert runner.one_by_one
