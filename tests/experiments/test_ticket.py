"""The lottery ticket on a planted model: ranks by counting, every arm against stock transformers, pruned."""

import json
import zlib
from contextlib import contextmanager

import pytest
import torch
from models import PLANTED, plant, random_llama, save
from plainly import losses, windows

from analyzer.base.errors import ForwardError, SourceError
from analyzer.base.records import Coordinate
from analyzer.experiments import ticket
from analyzer.experiments.reports.report import render_experiment
from analyzer.source.opening import open_model

OTHER = Coordinate(3, None, 5, 19)
NAME = "model.layers.{}.mlp.down_proj.weight"


def matrices(plain):
    return {f"model.layers.{name}": p for name, p in plain.model.layers.named_parameters() if p.ndim == 2}


def norms_of(plain, batch):
    """Return the norm of each input channel of each linear map over these windows."""
    squares = {}
    hooks = []
    for name, module in plain.model.layers.named_modules():
        if isinstance(module, torch.nn.Linear):

            def hook(_module, args, key=f"model.layers.{name}.weight"):
                squares[key] = squares.get(key, 0) + args[0].double().square().sum(dim=(0, 1))

            hooks.append(module.register_forward_pre_hook(hook))
    with torch.no_grad():
        for ids in batch:
            plain(input_ids=ids[None])
    for handle in hooks:
        handle.remove()
    return {name: values.sqrt().float() for name, values in squares.items()}


def dropped(plain, way, sparsity, norms, seed=0):
    """Return what goes of each matrix, by sorting, as the criteria's authors do."""
    found = {}
    weights = matrices(plain)
    everything = torch.cat([p.abs().flatten() for p in weights.values()]).sort().values
    for name, p in weights.items():
        if way == "global":
            found[name] = p.abs() <= everything[int(len(everything) * sparsity)]
        elif way == "magnitude":
            found[name] = p.abs() <= p.abs().flatten().sort().values[int(p.numel() * sparsity)]
        elif way == "wanda":
            order = (p.abs() * norms[name]).argsort(dim=-1, stable=True)[:, : int(p.shape[1] * sparsity)]
            found[name] = torch.zeros_like(p, dtype=torch.bool).scatter_(1, order, True)
        else:
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
            order = torch.rand(p.shape, generator=generator).flatten().argsort()[: int(p.numel() * sparsity)]
            found[name] = torch.zeros(p.numel(), dtype=torch.bool).scatter_(0, order, True).reshape(p.shape)
    return found


@contextmanager
def pruned(plain, masks, out=(), kept=()):
    """While the context lasts, what is in these masks is zero, and these weights, but not those that are kept."""
    weights = matrices(plain)
    saved = {name: p.detach().clone() for name, p in weights.items()}
    with torch.no_grad():
        for name, mask in masks.items():
            weights[name][mask] = 0
        for c in (*out, *kept):
            name = NAME.format(c.layer)
            weights[name][c.row, c.col] = 0 if c in out else saved[name][c.row, c.col]
        try:
            yield
        finally:
            for name, p in saved.items():
                weights[name].copy_(p)


def control_of(plain, c):
    """Return the weight of another row of its matrix that is nearest in magnitude."""
    p = dict(matrices(plain))[NAME.format(c.layer)].detach().abs().clone()
    value = p[c.row, c.col].item()
    p[c.row] = torch.inf
    row, col = divmod(int((p - value).abs().argmin()), p.shape[1])
    return c._replace(row=row, col=col)


@pytest.mark.parametrize("way", ["magnitude", "global", "wanda", "random"])
def test_every_arm_is_that_of_a_pruned_model(planted, run, way):
    folder, plain = planted
    batch = windows(folder, 12)
    calibration, judged = batch[:4], batch[4:]
    norms = norms_of(plain, calibration)
    options = {"criteria": (way,), "sparsities": (0.3, 0.6), "until": float("inf"), "seeds": 1}
    document = run(ticket.EXPERIMENT, **options).as_json()
    arms = {arm["name"]: arm for arm in document["arms"]}
    before, control = losses(plain, judged), control_of(plain, PLANTED)
    near = 1e-3 if way == "wanda" else 1e-4  # of scores that are as good as equal rounding chooses
    label = f"{way} 0" if way == "random" else way
    for sparsity in (0.3, 0.6):
        masks = dropped(plain, way, sparsity, norms)
        drops = bool(masks[NAME.format(1)][PLANTED.row, PLANTED.col])
        assert drops == (way == "random" and arms[f"{label} at {sparsity}"]["kept"] is False)
        sets = {"": ((), ()), ", controls out": ((control,), ())}
        sets |= {", weights in": ((), (PLANTED,))} if drops else {", weights out": ((PLANTED,), ())}
        base = None
        for forced, (out, kept) in sets.items():
            if forced == ", controls out" and masks[NAME.format(1)][control.row, control.col]:
                continue
            with pruned(plain, masks, out, kept):
                after = losses(plain, judged)
                zeros = sum(int((p == 0).sum()) for p in matrices(plain).values())
            base = after if base is None else base
            arm = arms[f"{label} at {sparsity}{forced}"]
            assert arm["nll"] == pytest.approx(after.mean(), abs=near)
            assert arm["delta"] == pytest.approx((after - before).mean(), abs=near)
            assert arm["zeroed"] == zeros
            if forced:
                assert arm["effect"] == pytest.approx((after - base).mean(), abs=near)
    with pruned(plain, {}, (PLANTED,)):
        assert arms["dense, weights out"]["effect"] == pytest.approx((losses(plain, judged) - before).mean(), abs=near)
    assert abs(arms["dense, weights out"]["effect"]) > 0.02
    assert arms["original"]["left"] == pytest.approx(1)
    assert arms["dense, weights out"]["left"] < 0.1


def before(scores, own):
    return 1 - int((scores > own).sum()) / scores.numel()


def test_each_weight_leaves_where_counting_says(planted, run):
    folder, plain = planted
    weights, norms = matrices(plain), norms_of(plain, windows(folder, 12)[:4])
    document = run(ticket.EXPERIMENT, weights=(PLANTED, OTHER), criteria=("magnitude",), sparsities=(0.1,)).as_json()
    found = {
        (each["layer"], each["row"], each["col"], each["criterion"]): each
        for each in document["weights"]
        if each["seed"] in (None, 0)
    }
    every = torch.cat([p.detach().abs().flatten() for p in weights.values()])
    for c in (PLANTED, OTHER):
        p = weights[NAME.format(c.layer)].detach()
        value, key = p[c.row, c.col], (c.layer, c.row, c.col)
        scores = p[c.row].abs() * norms[NAME.format(c.layer)]
        assert found[*key, "magnitude"]["leaves_at"] == pytest.approx(before(p.abs(), abs(value)))
        assert found[*key, "global"]["leaves_at"] == pytest.approx(before(every, abs(value)))
        assert found[*key, "wanda"]["leaves_at"] == pytest.approx(before(scores, scores[c.col]))
        assert found[*key, "wanda"]["of"] == p.shape[1]
        assert 0 < found[*key, "random"]["leaves_at"] <= 1
    assert found[1, 77, 31, "magnitude"]["leaves_at"] == 1  # the largest of its matrix
    assert sum(each["control"] for each in document["weights"]) == len(document["weights"]) // 2
    assert {each["group"] for each in document["weights"]} == {"matrix", "all matrices", "row"}


def test_a_criterion_is_followed_until_the_model_is_broken(run):
    document = run(ticket.EXPERIMENT, criteria=("random",), sparsities=(0.1, 0.5, 0.9), seeds=2, until=1e-6).as_json()
    arms = [arm for arm in document["arms"] if arm.get("criterion")]
    assert {arm["seed"] for arm in arms} == {0, 1}
    for seed in (0, 1):
        last = [arm for arm in arms if arm["seed"] == seed and arm["forced"] == ""][-1]
        assert last["delta"] > 1e-6 or last["sparsity"] == 0.9
    assert any("Random was not followed beyond" in each for each in document["findings"])


def test_the_result_as_text_and_json(run):
    options = {"criteria": ("magnitude", "random"), "sparsities": (0.2,), "seeds": 1}
    result = run(ticket.EXPERIMENT, **options)
    document = json.loads(json.dumps(result.as_json(), allow_nan=False))
    assert document["protocol"]["calibration"] == {"data": "text.txt", "windows": 4}
    text = render_experiment(result)
    assert "Magnitude: leaves at" in text
    assert max(map(len, text.splitlines())) <= 100
    again = run(ticket.EXPERIMENT, **options)
    assert again.as_json() == result.as_json()


def test_options_that_are_none_are_refused():
    for parse, text in (
        (ticket.parse_sparsities, "0.5,1"),
        (ticket.parse_criteria, "sparsegpt"),
        (ticket.parse_until, "0"),
        (ticket.parse_revisions, "a,,b"),
    ):
        with pytest.raises(ValueError, match="|".join(("between", "none of", "above", "twice"))):
            parse(text)
    assert ticket.parse_sparsities("0.5,0.1") == (0.1, 0.5)


def test_a_local_folder_has_no_revisions(run):
    with pytest.raises(ForwardError, match="has no revisions: --revisions needs a model on the Hub"):
        run(ticket.EXPERIMENT, sparsities=(0.1,), seeds=1, criteria=("magnitude",), revisions=("v1",))


def test_the_ticket_of_the_last_revision_on_earlier_ones(planted, run, hub, tmp_path):
    folder, plain = planted
    early = plant(random_llama(seed=3), value=0.02)
    save(early, tmp_path / "early")
    hub.add("owner/tiny", tmp_path / "early", branch="step1")
    last = hub.add("owner/tiny", folder)
    options = {"criteria": ("magnitude",), "sparsities": (0.3,), "revisions": ("step1",), "seeds": 1}
    document = run(ticket.EXPERIMENT, source=open_model("owner/tiny"), **options).as_json()
    judged = windows(folder, 12)[4:]
    assert [each["revision"] for each in document["revisions"]] == ["step1", "main"]
    masks = dropped(plain, "magnitude", 0.3, {})
    for found, model in zip(document["revisions"], (early, plain), strict=True):
        (weight,) = found["weights"]
        p = matrices(model)[NAME.format(1)].detach()
        value = p[PLANTED.row, PLANTED.col]
        assert weight["value"] == pytest.approx(value.item())
        assert weight["rank"] == 1 + int((p.abs() > abs(value)).sum())
        for key, which, out in (("nll", {}, ()), ("nll_masked", masks, ()), ("nll_masked_without", masks, (PLANTED,))):
            with pruned(model, which, out):
                assert found[key] == pytest.approx(losses(model, judged).mean(), abs=1e-4)
        with pruned(model, dropped(model, "random", 0.3, {}), kept=(PLANTED,)):
            assert found["nll_random"] == pytest.approx(losses(model, judged).mean(), abs=1e-4)
    assert document["revisions"][0]["weights"][0]["rank"] > 1
    assert document["revisions"][1]["commit"] == last
    with pytest.raises(SourceError, match="step9"):
        run(ticket.EXPERIMENT, source=open_model("owner/tiny"), **options | {"revisions": ("step9",)})
