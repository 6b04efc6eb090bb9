"""Rows, columns and experts as units, and what else is asked of critical weights, against plain models edited."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from models import (
    COL,
    PLANTED,
    ROW,
    TEXT,
    TEXT_IDS,
    arguments,
    cue,
    load_plain,
    plant,
    random_llama,
    save,
    save_random,
)
from models import verify_folder as verify

from analyzer.base.errors import ArchitectureError, SettingsError
from analyzer.base.records import Coordinate, Unit
from analyzer.cli.main import cli

PLACE = PLANTED.place
PLANTED_ROW, PLANTED_COLUMN = Unit(PLACE, row=ROW), Unit(PLACE, col=COL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(plant(random_llama()), tmp_path_factory.mktemp("models") / "planted")


def plain_losses(folder, name="llama", edit=lambda plain: None):
    """Return the loss of each token of the text, the plain model edited."""
    plain = load_plain(name, folder)
    with torch.no_grad():
        edit(plain)
        logits = plain.model(torch.tensor([TEXT_IDS])).logits[0]
    return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(TEXT_IDS[1:]), reduction="none").double().numpy()


def without(unit):
    """Return the edit that zeroes all weights of a unit, of an expert its bias too."""

    def edit(plain):
        at, whole = unit.first, slice(None)
        view = plain.downs[at.layer, at.expert]
        view[whole if unit.row is None else unit.row, whole if unit.col is None else unit.col] = 0

    return edit


def nearest(plain, unit):
    """Return the other rows or columns by how near their norms are."""
    norms = plain.downs[unit.first.layer, unit.first.expert].double().norm(dim=1 if unit.row is not None else 0)
    own = unit.row if unit.row is not None else unit.col
    order = [int(n) for n in (norms - norms[own]).abs().argsort(stable=True) if n != own]
    return [unit._replace(row=n) if unit.row is not None else unit._replace(col=n) for n in order]


def test_rows_and_columns_are_judged_against_those_of_nearest_norm(folder):
    result = verify(folder, units=(PLANTED_ROW, PLANTED_COLUMN))
    assert (result.verdict, result.super_weights, result.asked) == (None, (), ())
    assert [each.unit for each in result.units] == [PLANTED_ROW, PLANTED_COLUMN]
    untouched, plain = plain_losses(folder), load_plain("llama", folder)
    for each in result.units:
        losses = plain_losses(folder, edit=without(each.unit))
        assert each.loss == pytest.approx(untouched.mean(), rel=1e-5)
        assert each.loss_zeroed == pytest.approx(losses.mean(), rel=1e-5)
        assert each.delta_low < each.delta < each.delta_high
        assert each.loss_tokens == len(TEXT_IDS) - 1
        others = [plain_losses(folder, edit=without(other)).mean() for other in nearest(plain, each.unit)[:4]]
        assert (each.controls, each.control_loss_max) == (4, pytest.approx(max(others), rel=1e-5))
        over = each.delta >= 10 * max(max(others) - untouched.mean(), 0) and each.delta >= 0.01 * untouched.mean()
        assert each.effect == ("critical" if over else "inert")
        assert each.kl_divergence > 0
    assert [each.kind for each in result.units] == ["row", "column"]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    return save_random("mixtral", tmp_path_factory.mktemp("models") / "mixtral")


def outputs_of(folder):
    """Return, by (layer, expert), the largest output of each expert of the plain model, and how many tokens it has."""
    plain = load_plain("mixtral", folder)
    found = {}
    for layer, block in enumerate(plain.blocks):
        experts = next(module for module in block.modules() if hasattr(module, "gate_up_proj"))
        hidden, chosen, _ = arguments(plain.model, experts, TEXT_IDS)
        for expert in range(len(experts.gate_up_proj)):
            taken = hidden[(chosen == expert).any(dim=1)]
            gate, up = (taken @ experts.gate_up_proj[expert].T).chunk(2, dim=-1)
            given = (torch.nn.functional.silu(gate) * up) @ experts.down_proj[expert].T
            found[layer, expert] = given.abs().max().item() if len(taken) else 0.0, len(taken)
    return found


def test_an_expert_is_judged_against_others_of_its_layer(mixture):
    asked = (Unit(("", 1, -1, 2)), Unit(("", 2, -1, 0)))
    result = verify(mixture, units=asked)
    wanted = outputs_of(mixture)
    ranks = sorted((output for output, _ in wanted.values()), reverse=True)
    for expert in result.experts:
        output, tokens = wanted[expert.layer, expert.expert]
        assert expert.output_max == pytest.approx(output, rel=1e-4)
        assert expert.tokens == tokens
        assert ranks[expert.output_rank - 1] == pytest.approx(output, rel=1e-4)
    assert {(1, 2), (2, 0)} <= {(expert.layer, expert.expert) for expert in result.experts}
    untouched = plain_losses(mixture, "mixtral").mean()
    for each in result.units:
        assert each.loss == pytest.approx(untouched, rel=1e-5)
        assert each.loss_zeroed == pytest.approx(plain_losses(mixture, "mixtral", without(each.unit)).mean(), rel=1e-5)
        others = [each.unit._replace(place=(*each.unit.place[:3], n)) for n in range(4) if n != each.expert]
        losses = [plain_losses(mixture, "mixtral", without(other)).mean() for other in others]
        assert (each.controls, each.control_loss_max) == (3, pytest.approx(max(losses), rel=1e-5))


FIRST, SECOND, IDLE = Coordinate(1, None, 7, 3), Coordinate(2, None, 9, 4), Coordinate(3, None, 11, 5)


@pytest.fixture(scope="module")
def cued(tmp_path_factory):
    """A model that knows what follows two words, by one weight each, and no other weight of these matters."""
    model = random_llama()
    cue(model, 1, 7, 3, "banana")
    cue(model, 2, 9, 4, "grape")
    return save(model, tmp_path_factory.mktemp("models") / "cued")


@pytest.fixture(scope="module")
def more(cued):
    return verify(cued, weights=(FIRST, SECOND, IDLE), more=True)


def with_factors(factors):
    def edit(plain):
        for c, factor in factors.items():
            plain.downs[c.layer, None][c.row, c.col] *= factor

    return edit


def test_critical_weights_are_halved(cued, more):
    assert [w.effect for w in more.asked] == ["critical", "critical", "inert"]
    untouched = plain_losses(cued)
    for weight in more.asked[:2]:
        halved = plain_losses(cued, edit=with_factors({weight.coordinate: 0.5}))
        assert weight.delta_half == pytest.approx((halved - untouched).mean(), abs=1e-5)
        assert weight.delta_half_low < weight.delta_half < weight.delta_half_high
        assert 0 < weight.delta_half < weight.delta
    assert more.asked[2].delta_half is None


def test_critical_weights_are_held_against_whole_rows_and_columns(cued, more):
    wanted = [Unit(c.place, row=c.row) for c in (FIRST, SECOND)] + [Unit(c.place, col=c.col) for c in (FIRST, SECOND)]
    assert [each.unit for each in more.units] == wanted
    for each in more.units:
        assert each.loss_zeroed == pytest.approx(plain_losses(cued, edit=without(each.unit)).mean(), rel=1e-5)
    again = verify(cued, weights=(FIRST, SECOND, IDLE))
    assert (again.units, again.interactions, again.asked[0].delta_half) == ((), (), None)


def test_two_critical_weights_cost_together_what_the_plain_model_says(cued, more):
    (both,) = more.interactions
    assert set(both.coordinates) == {FIRST, SECOND}
    sets = [{}, *({c: 0.0} for c in both.coordinates), dict.fromkeys(both.coordinates, 0.0)]
    untouched, one, other, together = (plain_losses(cued, edit=with_factors(factors)) for factors in sets)
    assert both.delta == pytest.approx((together - untouched).mean(), abs=1e-5)
    assert both.delta_alone == pytest.approx([(one - untouched).mean(), (other - untouched).mean()], abs=1e-5)
    beyond = together - one - other + untouched
    assert both.beyond == pytest.approx(beyond.mean(), abs=1e-5)
    blocks = np.array([block.mean() for block in np.array_split(beyond, len(beyond) // 8)])
    half = (both.beyond_high - both.beyond_low) / 2
    assert half == pytest.approx(2.45 * blocks.std(ddof=1) / len(blocks) ** 0.5, rel=0.1)  # t of 6 degrees


def run(*arguments):
    return CliRunner().invoke(cli, ["verify", *map(str, arguments), "--quiet"])


def test_the_command_line_takes_rows_columns_and_experts(folder, mixture, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    done = run(folder, "--weight", f"1,{ROW},any", "--weight", f"1,any,{COL}", "--text", text, "--json")
    assert done.exit_code == 0, done.output
    units = json.loads(done.stdout)["units"]
    assert [(u["kind"], u["row"], u["col"]) for u in units] == [("row", ROW, None), ("column", None, COL)]
    done = run(mixture, "--expert", "1,2", "--text", text)
    assert done.exit_code == 0, done.output
    assert "Rows, columns and experts" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    for wrong in (("--weight", "1,any,any"), ("--weight", "any,1,2"), ("--expert", "1")):
        done = run(folder, *wrong)
        assert done.exit_code == 2
        assert "is no" in done.stderr


def test_what_is_not_there_is_refused_before_the_model_runs(folder, mixture):
    with pytest.raises(ArchitectureError, match="has no weight 1,999,0"):
        verify(folder, units=(Unit(PLACE, row=999),))
    with pytest.raises(ArchitectureError, match="has no weight 1,9,0,0"):
        verify(mixture, units=(Unit(("", 1, -1, 9)),))
    with pytest.raises(SettingsError, match="early_stop is True: give False where weights are asked for"):
        verify(folder, units=(PLANTED_ROW,), early_stop=True)
    with pytest.raises(SettingsError, match="early_stop is True: give False where more is asked"):
        verify(folder, more=True, early_stop=True)
