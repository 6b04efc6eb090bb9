"""Super activations of a planted model set to other values: each arm against hooks on stock transformers."""

import numpy as np
import pytest
import torch
from models import PLANTED, random_llama, save
from plainly import losses, times, windows
from scipy import stats

from analyzer.experiments import massive
from analyzer.experiments.activations import glance
from analyzer.experiments.reports.report import render_experiment

RATIO, PERSISTS, SINK = 100, 2, 0.25


def stream_of(plain, ids):
    """Return the stream after each block, [layers, T, hidden]."""
    found = []
    hooks = [
        block.register_forward_hook(lambda _m, _a, output: found.append(output[0].clone()))
        for block in plain.model.layers
    ]
    with torch.no_grad():
        plain(input_ids=torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return torch.stack(found).numpy()


def activations_of(plain, ids):
    """Return (layer, position, channel, value, other channel) of each super activation, where it begins."""
    stream = stream_of(plain, ids)
    middle = np.median(np.abs(stream), axis=(1, 2))
    large = np.abs(stream) >= RATIO * middle[:, None, None]
    found = []
    for _, position, channel in np.argwhere(large[:1] | (large[1:] & ~large[:-1]).any(axis=0)[None]):
        layer = int(np.argmax(large[:, position, channel]))
        if large[layer : layer + 1 + PERSISTS, position, channel].sum() == 1 + PERSISTS:
            distance = np.abs(np.abs(stream[layer, position]) - middle[layer])
            distance[large[layer, position]] = np.inf
            value = float(stream[layer, position, channel])
            found.append((layer, int(position), int(channel), value, int(distance.argmin())))
    return found


def with_set(plain, batch, sets):
    """Return the losses of windows, each with entries of its stream set: (layer, position, channel, value)."""
    found = []
    for ids, entries in zip(batch, sets, strict=True):
        hooks = []
        for layer, position, channel, value in entries:

            def hook(_module, _args, output, place=(0, position, channel), value=value):
                output[place] = value

            hooks.append(plain.model.layers[layer].register_forward_hook(hook))
        found.append(losses(plain, ids[None])[0])
        for handle in hooks:
            handle.remove()
    return np.array(found)


def is_arm(arm, before, after):
    assert arm["nll"] == pytest.approx(after.mean(), abs=1e-4)
    difference = after - before
    half = stats.t.ppf(0.975, len(before) - 1) * difference.std(ddof=1) / len(before) ** 0.5
    assert arm["delta_high"] == pytest.approx(difference.mean() + half, abs=2e-4)


@pytest.mark.parametrize("bos", [False, True])
def test_each_arm_is_that_of_entries_set_by_hooks(planted, run, bos):
    folder, plain = planted
    arms = {arm["name"]: arm for arm in run(massive.EXPERIMENT).as_json()["arms"]}
    arms = {name.removesuffix(", after BOS"): arm for name, arm in arms.items() if arm["bos"] == bos}
    batch = windows(folder, 12)
    if bos:
        batch = torch.nn.functional.pad(windows(folder, 11), (1, 0), value=18)
    found = [activations_of(plain, ids.tolist()) for ids in batch]
    assert sum(map(len, found)) > 3
    means = []
    for number, window in enumerate(found):
        elsewhere = [each for other, here in enumerate(found) for each in here if other != number]
        means.append([])
        for layer, position, channel, *_ in window:
            same = [each[3] for each in elsewhere if (*each[::2][:2], each[1] == 0) == (layer, channel, position == 0)]
            if same:
                means[-1].append((layer, position, channel, np.mean(same)))
    before = losses(plain, batch)
    sets = {
        "original": [[] for _ in found],
        "set to zero": [[(*each[:3], 0.0) for each in window] for window in found],
        "set to their mean": means,
        "medians set to zero": [[(*each[:2], each[4], 0.0) for each in window] for window in found],
    }
    for name, entries in sets.items():
        is_arm(arms[name], before, with_set(plain, batch, entries))
        assert arms[name]["set"] == pytest.approx(np.mean(list(map(len, entries))))
    with times(plain, {PLANTED: 0.0}):
        is_arm(arms["weights zeroed"], before, losses(plain, batch))
    assert abs(arms["set to zero"]["delta"]) > 0.02
    assert arms["original"]["left"] == pytest.approx(1)
    assert arms["set to zero"]["left"] < 0.1


def test_sinks_are_shares_of_heads(planted, run, monkeypatch):
    monkeypatch.setattr(glance, "SINK", SINK)
    folder, plain = planted
    plain.set_attn_implementation("eager")
    shares, firsts = [], []
    for ids in windows(folder, 12):
        with torch.no_grad():
            attentions = plain(input_ids=ids[None], output_attentions=True).attentions
        for each in attentions:
            for head in each[0].numpy():
                given = [head[k:, k].mean() for k in range(6)]
                shares.append(max(given) > SINK)
                firsts.append(given[0] > SINK)
    arm = run(massive.EXPERIMENT).as_json()["arms"][0]
    assert arm["sinks"] == pytest.approx(np.mean(shares))
    assert arm["sinks_first"] == pytest.approx(np.mean(firsts))
    assert 0 < arm["sinks"] < 1


def test_the_result_tells_which_weight_writes_which_activation(run):
    result = run(massive.EXPERIMENT)
    document = result.as_json()
    assert document["protocol"]["bos"] == "both"
    (first, *_) = document["writes"]
    weight = first["weights"][0]
    assert (first["layer"], first["channel"]) == (PLANTED.layer, PLANTED.row)
    assert (weight["row"], weight["col"]) == (PLANTED.row, PLANTED.col)
    assert weight["share"] == pytest.approx(1, abs=0.1)
    kinds = {(each["bos"], each["layer"], each["channel"]) for each in document["activations"]}
    assert (False, PLANTED.layer, PLANTED.row) in kinds
    assert all(each["massive"] <= each["count"] for each in document["activations"])
    (claim,) = document["claims"]
    assert "set to zero moves the loss" in claim["why"]
    text = render_experiment(result)
    assert "without and with a BOS token" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_model_without_super_activations_has_nothing_to_set(run, tmp_path):
    document = run(massive.EXPERIMENT, folder=save(random_llama(), tmp_path)).as_json()
    assert [arm["name"] for arm in document["arms"]][:2] == ["original", "weights zeroed"]
    assert "no window has a super activation" in document["findings"][0]
    assert document["writes"] == []


def test_rows_that_do_not_run_together_are_seen_one_at_a_time(planted, run, monkeypatch):
    from analyzer.experiments.lab import opening

    together = run(massive.EXPERIMENT).as_json()
    monkeypatch.setattr(opening, "check_rows", lambda runner, _ids: setattr(runner, "one_by_one", True))
    alone = run(massive.EXPERIMENT).as_json()
    assert [each["name"] for each in alone["arms"]] == [each["name"] for each in together["arms"]]
    for arm, other in zip(alone["arms"], together["arms"], strict=True):
        figures = ("nll", "left", "sinks", "sinks_first")
        assert [arm[name] for name in figures] == pytest.approx([other[name] for name in figures], abs=1e-5)
    assert len(alone["activations"]) == len(together["activations"]) > 0
