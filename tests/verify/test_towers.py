"""Models of several towers, verified in the one that makes text, and hybrids whose blocks have no MLP."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import encoder_decoders
import numpy as np
import pytest
import torch
import transformers
from models import (
    PLANTED,
    PROMPT_IDS,
    TEXT,
    TEXT_IDS,
    arguments,
    plant,
    random_llama,
    save_tokenizer,
    settings,
    with_large_weights,
)

from analyzer.analyze.analyzing import analyze_model
from analyzer.analyze.running import open_runnable
from analyzer.analyze.verifying import verify_model
from analyzer.base.errors import ArchitectureError, ForwardError
from analyzer.base.records import Coordinate, plain
from analyzer.catalog.documents import problems
from analyzer.catalog.files import read_documents, save_entry
from analyzer.forward.edits import UNTOUCHED
from analyzer.forward.losses.plain import losses
from analyzer.source.folder import FolderSource
from analyzer.verify.report import render_verify

PLACE = PLANTED._replace(tower="language")
IN_DECODER = Coordinate(1, None, 5, 19, "decoder")


def llava():
    """A planted Llama behind a vision tower of CLIP's."""
    text = random_llama()
    vision = transformers.CLIPVisionConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=8
    )
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text.config, image_token_index=18, vision_feature_layer=-1
    )
    model = transformers.LlavaForConditionalGeneration(config).eval()
    plant(SimpleNamespace(model=model.model.language_model))
    return model


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "llava"
    model = llava()
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder, model


def test_the_language_tower_of_a_multimodal_model_is_verified_with_text_alone(multimodal):
    result = verify_model(FolderSource(multimodal[0]), settings())
    assert result.tower == "language"
    best = next(weight for weight in result.super_weights if weight.coordinate == PLACE)
    assert (best.status, result.verdict) == ("confirmed", "found")
    assert str(best.coordinate) == f"language:{PLANTED}"
    assert plain(result)["super_weights"][0]["tower"] == plain(result)["tower"] == "language"


def test_its_stream_and_its_loss_are_those_of_the_stock_model(multimodal):
    folder, model = multimodal
    runner, tokens = open_runnable(FolderSource(folder)).build()
    windows = tokens.windows(TEXT)
    (found,) = losses(runner, windows, [UNTOUCHED])
    ids = torch.tensor([windows[0].ids])
    with torch.inference_mode():
        out = model(input_ids=ids, use_cache=False, output_hidden_states=True)
    nll = torch.nn.functional.cross_entropy(out.logits[0, :-1].double(), ids[0, 1:]).item()
    assert len(windows) == 1
    assert found == pytest.approx(nll, rel=1e-6)
    (stream,) = runner.streams([windows[0].ids], [UNTOUCHED])
    expected = torch.stack(out.hidden_states[1:-1])[:, 0].numpy()  # the last has gone through a norm
    np.testing.assert_allclose(stream[:-1], expected, rtol=1e-4, atol=1e-4)


def test_what_text_does_not_reach_is_not_loaded(multimodal):
    folder, model = multimodal
    runner, _ = open_runnable(FolderSource(folder)).build()
    parameters = dict(runner.blocks.model.named_parameters())
    outside = {name: value for name, value in parameters.items() if "layers" not in name}
    assert not any(value.is_meta for value in outside.values())
    assert all(value.numel() == 0 for name, value in parameters.items() if "vision_tower" in name)
    vision = sum(p.numel() * 4 for p in model.model.vision_tower.parameters())
    runner.trace(PROMPT_IDS)
    assert runner.checkpoint.bytes_read <= runner.checkpoint.total_bytes - vision


def test_its_entry_has_the_outliers_of_all_towers_and_is_valid(multimodal, tmp_path):
    done = analyze_model(FolderSource(multimodal[0]), settings())
    assert done.scanned.towers == ("language", "vision")
    save_entry(tmp_path, "llava", done.entry)
    document = read_documents(tmp_path)["llava"]
    written = json.loads((tmp_path / "llava.json").read_text())
    assert list(problems(written, "llava")) == []
    assert document["entries"][0]["super_weights"][0]["tower"] == "language"


def test_a_tower_that_text_does_not_drive_and_one_that_is_not_there_are_refused_by_name(multimodal, hybrid):
    source = FolderSource(multimodal[0], model_id="m")
    assert verify_model(source, settings(tower="language")).tower == "language"
    for name, line in (
        ("vision", "text does not drive the tower vision of m: use language"),
        ("decoder", "m has no tower decoder: it has language, vision"),
    ):
        with pytest.raises(ArchitectureError) as refused:
            verify_model(source, settings(tower=name))
        assert str(refused.value) == line
    with pytest.raises(ArchitectureError, match="has one tower: leave --tower out"):
        verify_model(FolderSource(hybrid[0]), settings(tower="language"))


@pytest.mark.parametrize("name", ["t5", "mbart", "t5gemma"])
def test_a_weight_planted_in_a_decoder_is_confirmed_at_its_place(name, tmp_path):
    encoder_decoders.save(encoder_decoders.plant(encoder_decoders.build(name)), tmp_path)
    result = verify_model(FolderSource(tmp_path), settings())
    assert (result.verdict, result.tower) == ("found", "decoder")
    best = result.super_weights[0]
    assert (best.coordinate, best.status) == (IN_DECODER, "confirmed")
    assert best.loss_tokens == 32  # the second half of the text
    assert result.super_activations[0].position == 0
    assert [token.strip() for token in result.tokens[1:]] == ["elder", "fig", "grape"]
    assert "from token 2 on" in result.notes[0]
    stopped = verify_model(FolderSource(tmp_path), settings(early_stop=True))
    assert stopped.super_weights[0].coordinate == IN_DECODER
    assert stopped.layers[-1].layer == IN_DECODER.layer + 2


def test_encoder_decoders_whose_names_do_not_tell_their_stacks(tmp_path):
    encoder_decoders.save(encoder_decoders.plant(encoder_decoders.build("seamless")), tmp_path)
    result = verify_model(FolderSource(tmp_path), settings())
    assert (result.verdict, result.tower) == ("found", "text_decoder.layers")
    assert result.super_weights[0].coordinate == IN_DECODER._replace(tower=result.tower)
    alone = verify_model(FolderSource(tmp_path), settings(tower="text_encoder.layers"))
    assert (alone.tower, len(alone.tokens)) == ("text_encoder.layers", 8)


@pytest.mark.parametrize("name", ["t5", "mbart", "t5gemma"])
def test_a_weight_planted_in_an_encoder_is_confirmed_by_its_activation_alone(name, tmp_path):
    model = encoder_decoders.plant(encoder_decoders.build(name), "encoder", layer=0)
    encoder_decoders.save(model, tmp_path / "model")
    chosen = settings(tower="encoder")
    done = analyze_model(FolderSource(tmp_path / "model"), chosen)
    result = done.verified
    assert (result.verdict, result.tower, len(result.tokens)) == ("found", "encoder", 8)
    best = result.super_weights[0]
    assert (best.coordinate, best.status) == (Coordinate(0, None, 5, 19, "encoder"), "confirmed")
    assert best.effect is best.loss is best.loss_zeroed is best.loss_tokens is result.joint is None
    assert best.static_rank is not None
    assert "no logits" in result.notes[0]
    assert "its effect not measured" in " ".join(render_verify(result).split())
    assert done.scanned.towers == ("decoder", "encoder")
    save_entry(tmp_path, "encoder", done.entry)
    assert list(problems(json.loads((tmp_path / "encoder.json").read_text()), "encoder")) == []
    assert done.entry["method"]["settings"] == "custom"


def test_an_encoder_that_does_not_read_text_is_refused(tmp_path):
    config = transformers.Pix2StructConfig(
        text_config={"vocab_size": 19, "hidden_size": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4},
        vision_config={"hidden_size": 32, "d_ff": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "d_kv": 8},
    )
    transformers.Pix2StructForConditionalGeneration(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(ForwardError, match="Pix2StructForConditionalGeneration reads flattened_patches, not text"):
        verify_model(FolderSource(tmp_path), settings())


def test_a_decoder_that_nothing_tells_how_to_start_is_refused(tmp_path):
    model = encoder_decoders.build("t5")
    encoder_decoders.save(model, tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "decoder_start_token_id": None, "pad_token_id": None}))
    with pytest.raises(ForwardError, match="names no token for the decoder to start from: add its decoder_start"):
        verify_model(FolderSource(tmp_path), settings())


def test_a_prompt_of_which_the_decoder_has_too_little_is_refused(tmp_path):
    encoder_decoders.save(encoder_decoders.build("t5"), tmp_path)
    with pytest.raises(ForwardError, match="the prompt has 4 of at least 5 tokens"):
        verify_model(FolderSource(tmp_path), settings("apple banana cherry date"))
    assert verify_model(FolderSource(tmp_path), settings("apple banana cherry date elder")).tower == "decoder"


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    """A Nemotron-H whose blocks are recurrences, attention, or an MLP, planted in the MLP of its fourth block."""
    torch.manual_seed(0)
    config = transformers.NemotronHConfig(
        vocab_size=19, hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        layers_block_type=["mamba", "mlp", "attention", "mlp", "mamba", "mlp", "mamba"], mamba_num_heads=4,
        mamba_head_dim=16, ssm_state_size=8, n_groups=2, max_position_embeddings=64,
    )  # fmt: skip
    model = transformers.NemotronHForCausalLM(config).eval()
    mixer = model.get_submodule(next(name for name, _ in model.named_modules() if name.endswith("layers.3.mixer")))
    (entered,) = arguments(model, mixer, PROMPT_IDS)
    with torch.no_grad():
        mixer.up_proj.weight[19] = torch.linalg.pinv(entered[0])[:, 0] * 4  # squared, 16 of the first token
        mixer.down_proj.weight[5] = 0
        mixer.down_proj.weight[5, 19] = 10.0
    folder = tmp_path_factory.mktemp("models") / "nemotron"
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder, model


def test_a_hybrid_whose_blocks_have_an_mlp_or_none_is_verified(hybrid):
    result = verify_model(FolderSource(hybrid[0]), settings())
    assert result.verdict == "found"
    assert result.super_weights[0].coordinate == PLANTED._replace(layer=3, row=5, col=19)
    assert [each.layer for each in result.layers] == [1, 3, 5]  # those with an MLP
    assert result.writes[0].layer == 3


def test_every_block_of_a_hybrid_is_in_its_stream(hybrid):
    folder, model = hybrid
    runner, _ = open_runnable(FolderSource(folder)).build()
    assert runner.layers == tuple(range(7))
    (stream,) = runner.streams([PROMPT_IDS], [UNTOUCHED])
    with torch.inference_mode():
        out = model(input_ids=torch.tensor([PROMPT_IDS]), use_cache=False, output_hidden_states=True)
    expected = torch.stack(out.hidden_states[1:-1])[:, 0].numpy()
    np.testing.assert_allclose(stream[:-1], expected, rtol=1e-4, atol=1e-3)


def test_weights_that_write_a_latent_are_judged_by_the_loss_alone(tmp_path):
    torch.manual_seed(0)
    config = transformers.NemotronHConfig(
        vocab_size=19, hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        layers_block_type=["mamba", "mlp", "attention", "moe", "mamba", "mlp", "mamba"], mamba_num_heads=4,
        mamba_head_dim=16, ssm_state_size=8, n_groups=2, max_position_embeddings=64, n_routed_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=32, moe_shared_expert_intermediate_size=48, moe_latent_size=16,
    )  # fmt: skip
    model = with_large_weights(transformers.NemotronHForCausalLM(config).eval())
    experts = model.model.layers[3].mixer.experts.down_proj
    with torch.no_grad():
        experts[:, 5, 19] = 300.0
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    done = analyze_model(FolderSource(tmp_path), settings())
    (note,) = done.verified.notes
    assert note.startswith("the MLPs of layers 3 write a latent that is turned before the residual stream")
    assert [each.layer for each in done.verified.layers] == [1, 5]
    assert {each.layer for each in done.scanned.tensors} == {1, 3, 5}
    critical = [each for each in done.verified.super_weights if each.layer == 3]
    assert critical
    assert done.verified.verdict == "found"
    (asked,) = verify_model(FolderSource(tmp_path), settings(weights=(critical[0].coordinate,))).asked
    words = " ".join(render_verify(replace(done.verified, super_weights=(critical[0],), layers=())).split())
    assert "It is not confirmed, as it writes a latent, which is turned before the residual stream" in words
    assert "Largest magnitudes" not in words
    for weight in (critical[0], asked):
        assert (weight.row, weight.col, weight.value) == (5, 19, 300.0)
        assert (weight.status, weight.reason, weight.share) == ("rejected", "latent", 0.0)
        assert weight.effect == "critical"
        assert weight.loss == pytest.approx(loss_of(model), rel=1e-5)
    with torch.no_grad():
        experts[critical[0].expert, 5, 19] = 0
    for weight in (critical[0], asked):
        assert weight.loss_zeroed == pytest.approx(loss_of(model), rel=1e-5)


def loss_of(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([TEXT_IDS]), labels=torch.tensor([TEXT_IDS])).loss.item()


@pytest.mark.parametrize("part", ["vision_config", "text_config"])
def test_a_config_that_lies_about_its_depth_builds_nothing(multimodal, tmp_path, part):
    folder = shutil.copytree(multimodal[0], tmp_path / "llava")
    config = json.loads((folder / "config.json").read_text())
    config[part]["num_hidden_layers"] = 10**7
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArchitectureError, match=r"10,?000,?000 blocks"):
        verify_model(FolderSource(folder), settings())


@pytest.mark.parametrize("layers", [1, 2])
def test_a_config_that_takes_blocks_from_the_encoder_is_refused(tmp_path, layers):
    """The decoder would run all the same, after an encoder that is none of these weights'."""
    encoder_decoders.save(encoder_decoders.build("t5"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_layers": layers}))
    with pytest.raises(ForwardError, match=f"config.json leaves no place for encoder.block.{layers}."):
        verify_model(FolderSource(tmp_path), settings(TEXT))
