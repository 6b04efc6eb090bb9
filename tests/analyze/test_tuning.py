"""A base model and its tuned version: known weights judged in both, against plain transformers with edited weights."""

import csv
import json
import re

import pytest
import torch
from catalogs import entry
from models import (
    COL,
    LAYER,
    PLANTED,
    PROMPT,
    PROMPT_IDS,
    ROW,
    TEXT,
    TEXT_IDS,
    load_plain,
    plant,
    random_llama,
    save,
    settings,
)

from analyzer.analyze.tuning import verify_known
from analyzer.base.errors import ArchitectureError, ForwardError
from analyzer.base.records import Coordinate, plain
from analyzer.catalog.files import save_entry
from analyzer.diff.tuned.comparison import compare_answers
from analyzer.source.folder import FolderSource

INERT = Coordinate(3, None, 9, 7)
SIZES = {"num_layers": 6, "hidden_size": 128, "intermediate_size": 192}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base model, and a version of it whose planted weight is smaller, and all of whose norms moved a little."""
    path = tmp_path_factory.mktemp("tuned")
    base, tuned = plant(random_llama()), plant(random_llama(), value=1.25)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if name.endswith("layernorm.weight"):
                parameter *= 1.02
    return save(base, path / "base"), save(tuned, path / "tuned")


def save_known(folder, *weights, model="base"):
    kept = [
        {
            **entry()["super_weights"][0],
            "effect": effect,
            **{axis: getattr(at, axis) for axis in ("layer", "row", "col")},
        }
        for at, effect in weights
    ]
    save_entry(folder, "x", entry(model, super_weights=kept, **SIZES))
    return folder


def compared(folders, catalog):
    found = verify_known(*map(FolderSource, folders), settings(), catalog=catalog)
    return compare_answers(plain(found.old), plain(found.new), found.known, notes=[found.note])


def plain_figures(folder):
    """Return the planted weight's value, what zeroing it adds to the loss, and the largest value on its channel."""
    model = load_plain("llama", folder)
    with torch.no_grad():
        states = model.model(torch.tensor([PROMPT_IDS]), output_hidden_states=True).hidden_states
        channel = torch.stack([state[0, :, ROW] for state in states[1 + LAYER : -1]])  # the last is behind a norm
        weight = model.downs[LAYER, None][ROW, COL]
        value, losses = weight.item(), []
        for factor in (1.0, 0.0):
            weight *= factor
            logits = model.model(torch.tensor([TEXT_IDS])).logits[0]
            losses.append(torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(TEXT_IDS[1:])).item())
    return value, losses[1] - losses[0], channel.ravel()[channel.abs().argmax()].item()


def test_value_activation_and_effect_of_both_against_plain_transformers(folders, tmp_path):
    result = compared(folders, save_known(tmp_path, (PLANTED, "critical"), (INERT, "inert")))
    (weight,) = result.weights
    assert (weight.coordinate, weight.known) == (PLANTED, "verified, critical")
    for folder, judged in zip(folders, (weight.old, weight.new), strict=True):
        value, delta, activation = plain_figures(folder)
        assert judged.value == value
        assert judged.delta == pytest.approx(delta, rel=1e-3, abs=1e-6)
        assert judged.activation == pytest.approx(activation, rel=1e-2)
        assert judged.delta_low <= judged.delta <= judged.delta_high
        assert (judged.status, judged.activation_layer) == ("confirmed", LAYER)
    assert (weight.old.value, weight.new.value) == (2.0, 1.25)
    assert not result.identical
    assert result.notes[0] == (
        "Judged: 1 critical weight that the catalog knows of base; nothing was run of 1 that is not critical."
    )


def test_where_none_is_critical_all_are_looked_at(folders, tmp_path):
    result = compared((folders[0], folders[0]), save_known(tmp_path, (PLANTED, None), (INERT, "inert")))
    assert [weight.coordinate for weight in result.weights] == [PLANTED, INERT]
    assert (result.weights[1].old.activation, result.weights[1].old.reason) == (None, "channel")
    assert result.identical
    assert result.weights[0].old == result.weights[0].new


def test_what_the_catalog_does_not_know_is_searched_for_in_the_base(folders, tmp_path):
    result = compared(folders, save_known(tmp_path, (PLANTED, "critical"), model="me/other"))
    assert PLANTED in [weight.coordinate for weight in result.weights]
    assert "that a search just now found of base" in result.notes[0]
    none = save(random_llama(), tmp_path / "none")
    with pytest.raises(ForwardError, match="none has no super weight that is known, and a search finds none"):
        compared((none, none), tmp_path)


def test_a_tuned_model_of_another_size_is_refused(folders, tmp_path):
    known = save_known(tmp_path / "catalog", (Coordinate(5, None, 1, 1), "critical"))
    small = save(random_llama(num_hidden_layers=4), tmp_path / "small")
    with pytest.raises(ArchitectureError, match="small has no weight 5,1,1"):
        compared((folders[0], small), known)


def test_from_the_command_line(here, folders, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    known = save_known(tmp_path / "catalog", (PLANTED, "critical"))
    command = ["diff", *folders, "--verify", "--catalog", known, "--prompt", PROMPT, "--text", tmp_path / "text.txt"]
    done = here(*command, "--exit-code")
    assert done.returncode == 3
    assert "Of 1 known weight in the tuned model: 1 of another value." in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert re.findall(r" (base|tuned) +([+-]\S+)", done.stdout) == [("base", "+2"), ("tuned", "+1.25")]
    told = json.loads(here(*command, "--json").stdout)
    assert (told["identical"], told["weights"][0]["new"]["value"]) == (False, 1.25)
    (row,) = csv.DictReader(here(*command, "--csv").stdout.splitlines())
    assert (row["old_value"], row["new_value"], row["known"]) == ("2.0", "1.25", "verified, critical")
    assert here(*command, "--all-tensors").returncode == 2
