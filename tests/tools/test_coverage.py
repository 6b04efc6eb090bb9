"""A census of some kinds of model: what `scan` and `verify` find against what running the model tells."""

import re

import pytest
from coverage import Row, check, counts, prepare, table, truth_of
from scan_census import compare_scanned, differences, patterns
from tiny_models import Kind, NotBuildable, all_kinds, build
from tiny_overrides import OVERRIDES

pytestmark = pytest.mark.early

# Of these a verification is right too: dense, with a norm after the MLP, mixtures, with states beside the stream,
# hybrids, padded to a window, with blocks for images alone, with towers of unknown names, multimodal, with experts
# that are modules of their own, with tokens before rows, with
# streams that predict beside the main one, with MLPs that write latents,
# an encoder-decoder inside of a multimodal model, with what changes the stream between blocks.
BOTH_RIGHT = (
    *("llama/LlamaForCausalLM", "gpt2/GPT2LMHeadModel", "gemma2/Gemma2ForCausalLM"),
    *("deepseek_v3/DeepseekV3ForCausalLM", "gpt_oss/GptOssForCausalLM", "llama4_text/Llama4ForCausalLM"),
    *("zaya/ZayaForCausalLM", "jamba/JambaForCausalLM", "qwen3_next/Qwen3NextForCausalLM"),
    *("longformer/LongformerForMaskedLM", "mllama/MllamaForConditionalGeneration"),
    *("deepseek_ocr2/DeepseekOcr2ForConditionalGeneration", "emu3/Emu3ForConditionalGeneration"),
    "modernbert/ModernBertForMaskedLM",
    *("qwen3_vl_moe/Qwen3VLMoeForConditionalGeneration", "voxtral/VoxtralForConditionalGeneration"),
    *("switch_transformers/SwitchTransformersForConditionalGeneration", "nllb-moe/NllbMoeForConditionalGeneration"),
    *("fsmt/FSMTForConditionalGeneration", "prophetnet/ProphetNetForConditionalGeneration"),
    *("prophetnet/ProphetNetForCausalLM", "mobilebert/MobileBertForMaskedLM"),
    *("muse_spark/MuseSparkForConditionalGeneration", "florence2/Florence2ForConditionalGeneration"),
    "blt/BltForCausalLM",
)
SCAN_RIGHT = (
    *("falcon/FalconForCausalLM", "opt/OPTForCausalLM", "mixtral/MixtralForCausalLM", "qwen2_moe/Qwen2MoeForCausalLM"),
    "llava/LlavaForConditionalGeneration",
    *("bloom/BloomForCausalLM", "gemma3n_text/Gemma3nForCausalLM", "phi/PhiForCausalLM", "mpt/MptForCausalLM"),
    *("gemma4_text/Gemma4ForCausalLM", "falcon_h1/FalconH1ForCausalLM", "bert/BertForMaskedLM"),
    *("t5/T5ForConditionalGeneration", "bart/BartForConditionalGeneration"),
    *("ernie4_5_vl_moe/Ernie4_5_VLMoeForConditionalGeneration", "albert/AlbertForMaskedLM", "zamba2/Zamba2ForCausalLM"),
    *("nemotron_h/NemotronHForCausalLM", "longcat_flash/LongcatFlashForCausalLM", "reformer/ReformerForMaskedLM"),
    "inkling_mm_model/InklingForConditionalGeneration",
)


@pytest.fixture(scope="module", autouse=True)
def quiet():
    prepare()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OVERRIDES, "longformer", {"attention_window": 16})  # 512 by default, and all is padded to that
        yield


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Each kind, with the folder where its models are once they have been built."""
    root = tmp_path_factory.mktemp("census")
    return lambda text: (kind(text), root / text)


def kind(text):
    return Kind(*text.split("/"))


@pytest.mark.parametrize("text", BOTH_RIGHT)
def test_the_scan_finds_every_down_projection_and_the_verification_the_planted_weight(built, text):
    row = check(*built(text))
    latent = text.startswith(("mobilebert", "muse_spark"))  # of which none is planted
    assert (row.scan, row.verify) == (("right", ""), ("right", "none planted" if latent else ""))
    assert row.truth["matrices"]


def test_the_head_of_a_language_model_within_a_model_without_one(built):
    row = check(*built("nemotron_h_omni/NemotronH_Omni_Reasoning_V3"))
    assert row.verify == ("right", "none planted")  # its loss is the library's


@pytest.mark.parametrize("text", SCAN_RIGHT)
def test_the_scan_finds_every_down_projection(built, text):
    what, folder = built(text)
    truth = truth_of(what, folder)
    assert compare_scanned(truth, folder / "model")[0] == ("right", "")
    assert truth["matrices"]


def matrices_of(built, text):
    return truth_of(*built(text))["matrices"]


def test_a_model_without_mlps_is_refused_by_what_it_is(built):
    row = check(*built("mamba2/Mamba2ForCausalLM"))
    assert (row.scan[0], row.verify[0], row.truth["matrices"]) == ("refused", "refused", [])
    assert "state-space" in row.scan[1]


def test_one_matrix_of_several_blocks(built):
    (matrix,) = matrices_of(built, "albert/AlbertForMaskedLM")
    assert (matrix["layer"], matrix["layers"]) == (0, [0, 1, 2, 3])


def test_several_mlps_in_a_block(built):
    matrices = matrices_of(built, "mobilebert/MobileBertForMaskedLM")
    names = ["ffn.0.output", "ffn.1.output", "ffn.2.output", "output"]
    expected = [(f"mobilebert.encoder.layer.{n}.{x}.dense.weight", n, m) for n in range(4) for m, x in enumerate(names)]
    assert [(each["name"], each["layer"], each["mlp"]) for each in matrices] == expected


def test_latent_experts_named_as_the_file_has_them(built):
    matrices = matrices_of(built, "nemotron_h/NemotronHForCausalLM")
    latent = [each for each in matrices if each["writes"] == "latent"]
    assert {(each["rows"], each["cols"]) for each in latent} == {(24, 72)}
    layer = latent[0]["layer"]
    names = [f"backbone.layers.{layer}.mixer.experts.{n}.down_proj.weight" for n in range(4)]
    assert [(each["name"], each["expert"]) for each in latent] == list(zip(names, range(4), strict=True))


def test_the_number_of_a_sublayer_is_not_the_blocks(built):
    matrices = matrices_of(built, "switch_transformers/SwitchTransformersForConditionalGeneration")
    experts = [each for each in matrices if each["expert"] is not None and each["stack"] == "decoder.block"]
    assert {each["layer"] for each in experts} == {1, 3}
    assert all(each["name"].startswith(f"decoder.block.{each['layer']}.layer.2.mlp.experts.") for each in experts)
    assert len(experts) == 2 * 4


def test_rows_are_counted_and_tabled_by_both_verdicts():
    rows = [
        Row(kind("llama/LlamaForCausalLM"), ("right", ""), ("right", "")),
        Row(kind("gemma/GemmaForCausalLM"), ("right", ""), ("right", "")),
        Row(kind("llava/LlavaForConditionalGeneration"), ("right", ""), ("refused", "it has a | in it"), "latent"),
        Row(kind("blip/BlipForConditionalGeneration"), ("right", ""), ("not on text", "it asks")),
        Row(kind("bert/BertForMaskedLM"), *[("not buildable", "it lacks")] * 2),
    ]
    assert [row.is_right for row in rows] == [True, True, False, False, False]
    assert counts(rows).splitlines() == [
        "| | right | refused | wrong | not on text | not buildable |",
        "|---|---|---|---|---|---|",
        "| scan, all 5 | 4 | 0 | 0 | 0 | 1 |",
        "| verify, all 5 | 2 | 1 | 0 | 1 | 1 |",
        "| verify, causal lm | 2 | 0 | 0 | 0 | 0 |",
        "| verify, masked lm | 0 | 0 | 0 | 0 | 1 |",
        "| verify, seq to seq causal lm | 0 | 0 | 0 | 0 | 0 |",
        "| verify, image text to text | 0 | 1 | 0 | 1 | 0 |",
        "| **verify, share of the 3 that run on text** | 66.7 % | 33.3 % | 0.0 % | | |",
    ]
    assert table([rows[0], rows[2]]).splitlines()[2:] == [
        "| llama | LlamaForCausalLM |  | right | right |  |",
        "| llava | LlavaForConditionalGeneration |  | right | refused: `it has a / in it` | `latent` |",
    ]


def test_what_the_library_itself_refuses_to_run_on_text_is_told_apart(built):
    verdict, reason = check(*built("blip/BlipForConditionalGeneration")).verify
    assert verdict == "not on text"
    assert "(blip) asks for pixel_values beside text" in reason
    assert re.search("own model on text alone: TypeError: .* missing 1 required positional argument", reason)


def test_why_one_cannot_be_built():
    with pytest.raises(NotBuildable, match=r"^AttributeError: .*NoSuchClass"):
        build(kind("llama/NoSuchClass"))


def test_every_type_is_there_once():
    kinds = all_kinds()
    assert len(kinds) == len(set(kinds))
    assert {kind(text) for text in (*BOTH_RIGHT, *SCAN_RIGHT)} <= set(kinds)


def matrix(name, layer, *, expert=None, tower=None, stack="stack", size=(4, 6)):
    return {
        **{"mlp": None, "layers": None, "writes": "residual"},
        "name": name,
        "layer": layer,
        "expert": expert,
        "tower": tower,
        "stack": stack,
        "shape": size,
        "rows": size[0],
        "cols": size[1],
    }


def test_what_differs_is_said():
    true = [matrix("a.0.x", 0, stack="a"), matrix("a.1.x", 1, stack="a"), matrix("b.0.x", 0, stack="b")]
    assert differences(true, [{**each, "tower": each["stack"]} for each in true]) == []
    assert differences(true, true) == ["takes a, b for one tower"]
    found = [{**true[0], "tower": "a"}, {**true[1], "tower": "c", "layer": 2}]
    assert differences(true, found) == [
        "misses 2 of 3: a.*.x [4, 6] x 1, b.*.x [4, 6] x 1",
        "adds 1 of 3: a.*.x [4, 6] x 1",
        "takes a for several towers",
    ]
    assert differences(true[:1], [{**true[0], "shape": (6, 4)}]) == [
        "misses 1 of 1: a.*.x [4, 6] x 1",
        "adds 1 of 1: a.*.x [6, 4] x 1",
    ]


def test_what_shares_a_matrix_and_where_it_writes_are_compared_too():
    true = [{**matrix("a.0.x", 0), "layers": [0, 1]}]
    assert differences(true, [{**true[0], "layers": (0, 1)}]) == []
    assert differences(true, [{**true[0], "layers": None}]) == ["mistakes layers of a.*.x x 1"]
    assert differences(true, [{**true[0], "writes": "latent"}]) == ["mistakes writes of a.*.x x 1"]
    assert patterns({("a.0.x",): 2}) == "a.*.x x 2"
