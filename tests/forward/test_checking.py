"""The engine against the stock model, on models that keep something from block to block beside the stream."""

import numpy as np
import pytest
import torch
import transformers
from models import TEXT_IDS, save_tokenizer, settings, with_large_weights
from transformers import AttentionInterface

from analyzer.analyze.running import open_runnable
from analyzer.analyze.verifying import verify_model
from analyzer.base.errors import ForwardError
from analyzer.forward.checking import check_rows, check_trace, run_like
from analyzer.forward.edits import UNTOUCHED, zeroing
from analyzer.forward.losses.plain import losses
from analyzer.forward.observers import observed
from analyzer.model import rows
from analyzer.model.tokens import Window
from analyzer.source.folder import FolderSource

SMALL = {"vocab_size": 19, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


def gemma4():
    """Its last blocks take keys and values from blocks before them, out of a dictionary that these write into."""
    config = transformers.Gemma4TextConfig(
        **SMALL,
        intermediate_size=96,
        num_hidden_layers=6,
        num_kv_shared_layers=3,
        layer_types=["sliding_attention", "full_attention"] * 3,
        per_layer_config={},
        sliding_window=8,
        vocab_size_per_layer_input=19,
        hidden_size_per_layer_input=8,
    )
    return transformers.Gemma4ForCausalLM(config)


def zaya():
    """Each router adds what the router of the block before it had, which the blocks hand on."""
    config = transformers.ZayaConfig(
        **SMALL,
        num_hidden_layers=4,
        moe_intermediate_size=48,
        num_experts=4,
        router_hidden_size=16,
        layer_types=["hybrid"] * 4,
        tie_word_embeddings=False,
    )
    return transformers.ZayaForCausalLM(config)


@pytest.fixture(scope="module", params=[gemma4, zaya], ids=["gemma4", "zaya"])
def saved(request, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / request.param.__name__
    model = with_large_weights(request.param().eval())
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder, type(model).from_pretrained(folder, attn_implementation="eager").eval()


def runner_of(folder):
    return open_runnable(FolderSource(folder)).build()[0]


def plain_loss(model, ids):
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits.double(), torch.tensor(ids[1:])).item()


TEXTS = [TEXT_IDS, TEXT_IDS[::-1], [*TEXT_IDS[3:], *TEXT_IDS[:3]]]


def windows():
    return [Window(tuple(ids), tuple(range(len(ids) - 1)), tuple(ids[1:])) for ids in TEXTS]


def test_rows_that_go_through_each_block_by_themselves_come_out_as_the_stock_model_has_them(saved):
    folder, model = saved
    runner = runner_of(folder)
    edits = [UNTOUCHED, zeroing([runner.some_weight(1)]), zeroing([runner.some_weight(3)])]
    with runner.blocks.rows.one_at_a_time():
        (found, *_) = losses(runner, windows(), edits)
    assert found == pytest.approx(np.mean([plain_loss(model, ids) for ids in TEXTS]), rel=1e-6)
    check_rows(runner, TEXT_IDS)
    assert not runner.one_by_one


def test_rows_are_told_apart_though_the_text_is_one_word(saved, monkeypatch):
    runner = runner_of(saved[0])
    monkeypatch.setattr(rows, "_joined", of_the_first_rows_alone)
    check_rows(runner, [3] * 64)
    assert runner.one_by_one


def test_an_early_stop_lets_no_rows_run_together(saved, monkeypatch):
    seen = []
    monkeypatch.setattr("analyzer.verify.verification.search", lambda runner, *_, **__: seen.append(runner.one_by_one))
    with pytest.raises(AttributeError):
        verify_model(FolderSource(saved[0]), settings(early_stop=True))
    assert seen == [True]


def of_the_first_rows_alone(values, counts, back):
    """Split the stream, and of all else that a block gives or writes take what it gave of the rows that came first."""
    stream, *rest = values[0] if isinstance(values[0], tuple) else (values[0],)
    if isinstance(stream, torch.Tensor):
        whole = torch.cat([value[0] if isinstance(value, tuple) else value for value in values])[back]
        return (whole, *rest) if isinstance(values[0], tuple) else whole
    return values[0]


def test_a_splitting_of_rows_that_is_wrong_is_seen_and_rows_then_go_one_by_one(saved, monkeypatch):
    folder, model = saved
    runner = runner_of(folder)
    monkeypatch.setattr(rows, "_joined", of_the_first_rows_alone)
    check_rows(runner, TEXT_IDS)
    assert runner.one_by_one
    (found,) = losses(runner, windows(), [UNTOUCHED])
    assert found == pytest.approx(np.mean([plain_loss(model, ids) for ids in TEXTS]), rel=1e-6)


def test_what_comes_out_otherwise_even_so_is_refused(saved, monkeypatch):
    folder, _ = saved
    runner = runner_of(folder)
    both = runner.streams_and_states
    monkeypatch.setattr(runner, "streams_and_states", lambda *rows: [each * 1.0001 for each in both(*rows)])
    with pytest.raises(ForwardError, match=r"comes out otherwise here than the stock model by itself"):
        check_rows(runner, TEXT_IDS)
    trace = runner.trace(TEXT_IDS)
    check_trace(runner, TEXT_IDS, trace)
    trace.residual[2] *= 1.0001
    with pytest.raises(ForwardError, match="comes out otherwise"):
        check_trace(runner, TEXT_IDS, trace)


def test_what_a_run_prints_has_passed_the_check(saved, monkeypatch):
    folder, _ = saved
    verify_model(FolderSource(folder), settings())
    monkeypatch.setattr("analyzer.forward.checking.TOLERANCES", {"float32": (-1.0, 1e-5)})
    with pytest.raises(ForwardError, match="comes out otherwise"):
        verify_model(FolderSource(folder), settings())
    monkeypatch.setattr("analyzer.forward.checking.TOLERANCES", {"float32": (1e-6, -1.0)})
    with pytest.raises(ForwardError, match="comes out otherwise"):
        verify_model(FolderSource(folder), settings(early_stop=True))


@pytest.mark.parametrize(
    ("values", "counts"),
    [
        ([torch.zeros(2, 3), torch.zeros(1, 3)], (2, 2)),
        ([torch.zeros(3), torch.ones(3)], (1, 1)),
        ([(torch.zeros(1), 1), (torch.zeros(1), 2)], (1, 1)),
        ([{"a": 1}, {"b": 1}], (1, 1)),
        ([None, torch.zeros(1)], (1, 1)),
    ],
    ids=range(5),
)
def test_what_has_no_rows_and_is_not_the_same_in_all_is_not_split(values, counts):
    with pytest.raises(rows.UnsplittableError):
        rows._joined(values, counts, torch.tensor([0, 1]))


def test_what_a_block_gives_is_put_together_by_rows():
    one, other = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0]])
    shared = torch.tensor([7.0, 8.0, 9.0, 10.0])
    found = rows._joined([(one, None, [one, shared]), (other, None, [other, shared])], (2, 1), torch.tensor([2, 0, 0]))
    assert found[0].tolist() == found[2][0].tolist() == [[3.0], [1.0], [1.0]]
    assert found[1] is None
    assert found[2][1] is shared


def tiny(config_class, model_class, **more):
    config = config_class(**SMALL, intermediate_size=96, num_hidden_layers=3, **more)
    torch.manual_seed(0)
    return with_large_weights(model_class(config).eval())


def attention_in(runner):
    return runner.blocks.model.config._attn_implementation


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "llama"
    model = tiny(transformers.LlamaConfig, transformers.LlamaForCausalLM)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder, type(model).from_pretrained(folder, attn_implementation="eager").eval()


def test_the_fast_attention_is_taken_where_it_says_the_same(llama):
    folder, model = llama
    runner = runner_of(folder)
    assert attention_in(runner) == "eager"
    check_rows(runner, TEXT_IDS)
    assert attention_in(runner) == "sdpa"
    (found,) = losses(runner, windows(), [UNTOUCHED])
    assert found == pytest.approx(np.mean([plain_loss(model, ids) for ids in TEXTS]), rel=1e-6)
    seen = []
    with observed(runner, attention=lambda _layer, _rows, probabilities: seen.append(probabilities)):
        runner.states([TEXT_IDS], [UNTOUCHED])
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([TEXT_IDS]), output_attentions=True).attentions
    for one, other in zip(seen, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert attention_in(runner) == "sdpa"
    again = runner_of(folder)
    run_like(again, runner)
    assert attention_in(again) == "sdpa"


def test_a_fast_attention_that_says_something_else_is_not_taken(llama, monkeypatch):
    folder, model = llama
    exact = AttentionInterface()["sdpa"]

    def unscaled(*args, scaling=None, **more):
        return exact(*args, scaling=1.001 * scaling, **more)

    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", unscaled)
    runner = runner_of(folder)
    check_rows(runner, TEXT_IDS)
    assert (attention_in(runner), runner.one_by_one) == ("eager", False)
    (found,) = losses(runner, windows(), [UNTOUCHED])
    assert found == pytest.approx(np.mean([plain_loss(model, ids) for ids in TEXTS]), rel=1e-6)


def test_a_model_that_caps_its_scores_keeps_the_attention_that_does(tmp_path):
    model = tiny(transformers.Gemma2Config, transformers.Gemma2ForCausalLM, attn_logit_softcapping=2.0)
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    runner = runner_of(tmp_path)
    check_rows(runner, TEXT_IDS)
    assert (attention_in(runner), runner.one_by_one) == ("eager", False)
