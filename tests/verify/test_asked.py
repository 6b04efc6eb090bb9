"""Weights that were asked for: each answered as it is, whatever it is, and no search."""

import json

import pytest
import torch
from catalogs import entry
from click.testing import CliRunner
from models import (
    COL,
    LAYER,
    PLANTED,
    PROMPT,
    ROW,
    TEXT,
    TEXT_IDS,
    load_plain,
    plant,
    random_llama,
    save,
    settings,
    verify_folder,
)
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from analyzer.base.errors import AnalyzerError, ArchitectureError, CatalogError, ResultError, SettingsError
from analyzer.base.records import Coordinate
from analyzer.catalog.files import save_entry
from analyzer.cli.main import cli
from analyzer.diff.sides import parse_side

IDLE, ELSEWHERE = Coordinate(3, None, ROW, 5), Coordinate(4, None, 9, 7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(plant(random_llama()), tmp_path_factory.mktemp("models") / "planted")


@pytest.fixture(scope="module")
def answer(folder):
    return verify_folder(folder, weights=(IDLE, PLANTED, ELSEWHERE))


def plain_loss(folder, coordinates=()):
    plain = load_plain("llama", folder)
    with torch.no_grad():
        for c in coordinates:
            plain.downs[c.layer, None][c.row, c.col] = 0
        logits = plain.model(torch.tensor([TEXT_IDS])).logits[0]
    return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(TEXT_IDS[1:])).item()


def test_each_is_answered_in_the_order_in_which_it_was_asked_for(answer, folder):
    assert [w.coordinate for w in answer.asked] == [IDLE, PLANTED, ELSEWHERE]
    assert [(w.status, w.reason) for w in answer.asked] == [
        ("rejected", "share"), ("confirmed", None), ("rejected", "channel"),
    ]  # fmt: skip
    for weight in answer.asked:
        assert weight.loss == pytest.approx(plain_loss(folder), rel=1e-5)
        assert weight.loss_zeroed == pytest.approx(plain_loss(folder, [weight.coordinate]), rel=1e-5)
        assert weight.loss_tokens == len(TEXT_IDS) - 1
        assert weight.control_loss_max is not None
        down = load_plain("llama", folder).downs[weight.layer, None]
        assert weight.value == down[weight.row, weight.col].item()
    downs = torch.stack([view for _, view in sorted(load_plain("llama", folder).downs.items())]).abs()
    ranks = [1 + int((downs > abs(w.value)).sum()) for w in answer.asked]
    assert [w.static_rank for w in answer.asked] == ranks


def test_all_of_them_are_zeroed_together_and_nothing_is_searched_for(answer, folder):
    assert answer.joint.coordinates == (IDLE, PLANTED, ELSEWHERE)
    assert answer.joint.loss_zeroed == pytest.approx(plain_loss(folder, answer.joint.coordinates), rel=1e-5)
    assert (answer.verdict, answer.super_weights, answer.prompts) == (None, (), 0)
    assert answer.profile.coordinate == PLANTED


def test_an_answer_is_what_a_search_says_of_the_same_weight(answer, folder):
    searched = next(w for w in verify_folder(folder).super_weights if w.coordinate == PLANTED)
    asked = answer.asked[1]
    for name in ("value", "share", "status", "change", "activation_collapse", "round", "static_rank"):
        assert getattr(asked, name) == getattr(searched, name), name


@pytest.mark.parametrize("coordinate", [Coordinate(1, None, 128, 0), Coordinate(9, None, 0, 0), Coordinate(1, 2, 0, 0)])
def test_a_weight_that_is_not_there_is_an_error(folder, coordinate):
    with pytest.raises(ArchitectureError, match=f"planted has no weight {coordinate}"):
        verify_folder(folder, weights=(coordinate,))


def test_a_search_that_stops_early_has_nothing_to_ask_for():
    with pytest.raises(SettingsError, match="early_stop is True: give False where weights are asked for"):
        settings(weights=(PLANTED,), early_stop=True)


@pytest.mark.parametrize("layer", [[1], "1", True, -1, 1.0])
def test_what_is_no_coordinate_is_told_before_anything_runs(layer):
    with pytest.raises(AnalyzerError, match="is no weight: give a Coordinate of integers from 0"):
        settings(weights=(Coordinate(layer, None, 77, 31),))


def test_a_weight_without_a_tower_is_of_the_one_that_runs(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2}
    text = {**sizes, "num_key_value_heads": 1, "vocab_size": 24, "head_dim": 16, "max_position_embeddings": 64}
    config = Gemma3Config(
        text_config=text, vision_config={**sizes, "image_size": 28, "patch_size": 14}, mm_tokens_per_image=4
    )
    save(Gemma3ForConditionalGeneration(config).eval(), tmp_path)
    weight = Coordinate(1, None, 3, 4)
    asked = verify_folder(tmp_path, weights=(weight,)).asked
    assert [w.coordinate for w in asked] == [weight._replace(tower="language")]
    assert verify_folder(tmp_path, weights=(weight._replace(tower="language"),)).asked == asked
    with pytest.raises(ArchitectureError, match="vision:1,3,4 cannot be verified: its tower does not run"):
        verify_folder(tmp_path, weights=(weight._replace(tower="vision"),))


def run(*arguments):
    return CliRunner().invoke(cli, ["verify", *map(str, arguments), "--quiet"])


def test_from_the_command_line(folder, tmp_path, answer):
    (tmp_path / "text.txt").write_text(TEXT)
    options = ("--prompt", PROMPT, "--text", tmp_path / "text.txt", "--json")
    result = run(folder, *options, "--weight", str(IDLE), "--weight", "1,77,31", "--weight", "4,9,7")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert [(w["row"], w["loss_zeroed"]) for w in printed["asked"]] == [(w.row, w.loss_zeroed) for w in answer.asked]
    assert (printed["verdict"], printed["super_weights"]) == (None, [])
    with pytest.raises(ResultError, match="answers for single weights"):
        parse_side(result.stdout, "asked.json")
    weights = [{**entry()["super_weights"][0], "layer": LAYER, "row": ROW, "col": COL}]
    sizes = {"num_layers": 6, "hidden_size": 128, "intermediate_size": 192}
    save_entry(tmp_path / "catalog", "x", entry("me/base", super_weights=weights, **sizes))
    result = run(folder, *options, "--weights-of", "me/base", "--catalog", tmp_path / "catalog")
    assert [(w["layer"], w["row"], w["col"]) for w in json.loads(result.stdout)["asked"]] == [(LAYER, ROW, COL)]


@pytest.mark.parametrize("text", ["", "1,2", "1,2,3,4,5", "-1,2,3", "a,b,c", "1.5.1,2,3", "1,2,3 4", "9" * 30 + ",1,1"])
def test_what_is_no_coordinate_is_wrong_usage(folder, text):
    result = run(folder, "--weight", text)
    assert result.exit_code == 2
    assert "give [TOWER:]LAYER[.MLP][,EXPERT],ROW,COL" in " ".join(result.stderr.split())


def test_a_model_of_which_no_weight_is_known(folder, tmp_path):
    save_entry(tmp_path, "x", entry("me/none", super_weights=[], verdict="none"))
    for model, fault in (
        ("me/none", "knows no single weight of me/none: name some with --weight"),
        ("me/x", "no entry"),
    ):
        result = run(folder, "--weights-of", model, "--catalog", tmp_path)
        assert isinstance(result.exception, CatalogError)
        assert fault in str(result.exception)
