"""Quantization on a planted model: every arm against stock transformers with quantized weights and hooks."""

from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch
from models import PLANTED, hooked, save_random
from plainly import losses, windows

from analyzer.base.errors import ForwardError
from analyzer.base.records import Coordinate
from analyzer.experiments import quantize
from analyzer.experiments.quantization.activations import fed_by_norms
from analyzer.experiments.quantization.arms import ZS
from analyzer.experiments.quantization.grid import Group

SECOND = Coordinate(3, None, 5, 19)
MIDDLING = PLANTED._replace(col=40)  # of the same matrix, and no extreme of anything


def linears(plain):
    return {n: m for n, m in plain.model.layers.named_modules() if isinstance(m, torch.nn.Linear)}


def round_groups(groups, bits, *, symmetric):
    """Round groups of values, [groups, size], in NumPy."""
    if symmetric:
        step = np.abs(groups).max(axis=1, keepdims=True) / np.float32(2 ** (bits - 1) - 1)
        return np.rint(groups / step) * step
    least = groups.min(axis=1, keepdims=True)
    step = (groups.max(axis=1, keepdims=True) - least) / np.float32(2**bits - 1)
    return np.rint((groups - least) / step) * step + least


def quantized(matrix, arm, factors=None):
    """Return a matrix as an arm has it, none of its weights restored.

    In float32: where a value lies halfway between two levels, doubles would choose the other one.
    """
    factors = np.float32(1.0) if factors is None else factors.astype(np.float32)
    values = matrix.detach().numpy() * factors
    rows, cols = values.shape
    group = arm["group"]
    size = {"tensor": rows * cols, "row": cols}.get(group) or int(group.removeprefix("flat:"))
    groups = values.reshape(-1, size)
    if arm["clip"] is not None:
        magnitudes = np.abs(groups.astype(np.float64))
        limit = magnitudes.mean(axis=1, keepdims=True) + arm["clip"] * magnitudes.std(axis=1, keepdims=True)
        groups = np.clip(groups, -limit.astype(np.float32), limit.astype(np.float32))
    groups = round_groups(groups, arm["bits"], symmetric=arm["scheme"] == "symmetric")
    return torch.from_numpy(groups.reshape(rows, cols) / factors)


@contextmanager
def as_arm(plain, arm, weights, factors=None):
    """While the context lasts, a plain model is as an arm describes it. `factors` are SmoothQuant's, by linear."""
    factors = factors or {}
    kept = {name: module.weight.detach().clone() for name, module in linears(plain).items()}
    with ExitStack() as stack, torch.no_grad():
        if arm["group"] is not None:
            for name, module in linears(plain).items():
                module.weight.copy_(quantized(module.weight, arm, factors.get(name)))
        for c in weights if arm["restore"] else ():
            name = f"{c.layer}.mlp.down_proj"
            linears(plain)[name].weight[c.row, c.col] = kept[name][c.row, c.col]
        if arm["activations"] != "none":
            for name, module in linears(plain).items():
                hook = activations_hook(arm, factors.get(name))
                stack.callback(module.register_forward_pre_hook(hook).remove)
        try:
            yield
        finally:
            for name, module in linears(plain).items():
                module.weight.copy_(kept[name])


def activations_hook(arm, factors):
    def hook(_module, args):
        entered = args[0][0].numpy()
        if factors is not None:
            entered = entered / factors.astype(np.float32)
        values = entered.copy()
        place = np.unravel_index(np.abs(values).argmax(), values.shape)
        if arm["activations"] == "held-out":
            values[place] = np.sort(values.ravel())[(values.size - 1) // 2]  # torch's median
        axis = 1 if arm["per"] == "token" else None
        step = np.abs(values).max(axis=axis, keepdims=True) / np.float32(127)
        values = np.rint(values / step) * step
        if arm["activations"] == "held-out":
            values[place] = entered[place]
        if factors is not None:
            values = values * factors.astype(np.float32)
        return (torch.from_numpy(values)[None],)

    return hook


def smoothquant(plain, batch):
    """Return SmoothQuant's factors of each linear that sees what a norm gives, by its definition."""
    seen = {}
    with ExitStack() as stack, torch.no_grad():
        for name, module in linears(plain).items():

            def hook(_module, args, name=name):
                seen.setdefault(name, []).append(args[0][0].abs().amax(dim=0))

            stack.callback(module.register_forward_pre_hook(hook).remove)
        for ids in batch:
            plain(input_ids=ids[None])
    found = {}
    for layer in range(len(plain.model.layers)):
        for names in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")):
            names = [f"{layer}.{name}" for name in names]
            weights = torch.cat([linears(plain)[name].weight.abs() for name in names]).amax(dim=0).clamp(min=1e-5)
            largest = torch.stack(seen[names[0]]).amax(dim=0)
            factors = (largest.double() ** 0.85 / weights.double() ** 0.15).clamp(min=1e-5)
            found |= dict.fromkeys(names, factors.detach().numpy())
    return found


def check_arms(planted, document, weights=(PLANTED,)):
    """Compare every arm with the plain model; half of the windows are calibrated on."""
    folder, plain = planted
    batch = windows(folder, 12)
    calibration, judged = batch[:4], batch[4:]
    factors = smoothquant(plain, calibration)
    before = losses(plain, judged)
    for arm in document["arms"][1:]:
        with as_arm(plain, arm, weights, factors if arm["activations"] == "smoothquant" else None):
            after = losses(plain, judged)
        # What is seen in steps falls to one or the other side of an edge by how sums are ordered.
        close = 1e-4 if arm["activations"] == "none" else 2e-3
        assert arm["nll"] == pytest.approx(after.mean(), abs=close), arm["name"]
        assert arm["delta"] == pytest.approx((after - before).mean(), abs=close), arm["name"]
    assert document["arms"][0]["nll"] == pytest.approx(before.mean(), abs=1e-4)


def test_the_papers_arms_are_those_of_plain_transformers(planted, run):
    document = run(quantize.EXPERIMENT).as_json()
    check_arms(planted, document)
    names = [arm["name"] for arm in document["arms"]]
    assert len(names) == len(set(names))
    weights = [arm for arm in document["arms"] if arm.get("group", "").startswith("flat")]
    assert len({(arm["clip"] is None, arm["restore"]) for arm in weights}) == 4
    assert {arm["bits"] for arm in weights} == {4}
    assert [arm["activations"] for arm in document["arms"][-4:]] == ["none", "naive", "held-out", "smoothquant"]
    assert document["quantized"] == 6 * 7
    assert len(document["claims"]) == 2
    working = [each for each in document["verdicts"] if each["works"]]
    assert document["claims"][0]["holds"] == (any(each["helps"] for each in working) if working else None)


def test_other_bits_and_groups_and_several_weights_are_too(planted, run):
    weights = (PLANTED, SECOND, MIDDLING)
    group = tuple(map(Group.parse, ("row", "32")))
    result = run(quantize.EXPERIMENT, weights=weights, group=group, bits=(3, 8), activations=("none",))
    document = result.as_json()
    assert len(document["arms"]) == 1 + 2 * 2 * 4
    check_arms(planted, document, weights)


def test_a_full_grid_has_both_schemes_and_all_activations(planted, run):
    document = run(quantize.EXPERIMENT, grid="full", group=(Group("row"), Group("tensor")), bits=(8,)).as_json()
    arms = document["arms"][1:]
    assert {arm["scheme"] for arm in arms} == {"symmetric", "asymmetric", None}
    seen = {(arm["group"], arm["activations"], arm["per"]) for arm in arms if arm["activations"] != "none"}
    kinds = [(kind, per) for kind in ("naive", "held-out", "smoothquant") for per in ("token", "tensor")]
    assert seen == {(group, *each) for group in ("row", "tensor", None) for each in kinds}
    assert len({arm["name"] for arm in arms}) == len(arms) == 2 * 2 * 4 + 3 * 6
    check_arms(planted, document)


def test_restoring_an_extreme_is_a_no_op_and_said_so(planted, run):
    result = run(quantize.EXPERIMENT, group=(Group("tensor"),), activations=("none",))
    document = result.as_json()
    (held,) = document["matrices"]
    matrix = linears(planted[1])["1.mlp.down_proj"].weight.detach()
    rest = matrix.flatten()[matrix.flatten() != 2.0]
    assert matrix.max() == 2.0
    assert (held["extreme"], held["no_op"]) == (True, True)
    assert held["step"] == pytest.approx(((matrix.max() - matrix.min()) / 15).item())
    assert held["step_without"] == pytest.approx(((rest.max() - rest.min()) / 15).item())
    rounded = round_groups(rest.double().numpy()[None], 4, symmetric=False)[0]
    assert held["error_without"] == pytest.approx(np.sqrt(((rounded - rest.double().numpy()) ** 2).mean()), rel=1e-4)
    assert held["error"] > 3 * held["error_without"]
    bare, restored = document["arms"][1:3]
    assert (restored["restore"], restored["nll"]) == (True, bare["nll"])
    verdict = document["verdicts"][0]
    assert verdict["no_op"]
    assert "restoring is a no-op" in verdict["says"]
    assert verdict["says"] in result.outcome.findings


def test_restoring_what_is_no_extreme_is_none(run):
    document = run(quantize.EXPERIMENT, weights=(MIDDLING,), group=(Group("tensor"),), activations=("none",)).as_json()
    (held,) = document["matrices"]
    assert (held["extreme"], held["no_op"]) == (False, False)
    assert held["rounded"] != held["value"]
    assert held["step"] == held["step_without"]


def test_protecting_helps_where_it_does(planted, run):
    """With one weight so large that the others of its matrix all become 0, holding it out gives them back."""
    document = run(quantize.EXPERIMENT, group=(Group("tensor"),), bits=(3,), activations=("none",)).as_json()
    (verdict,) = document["verdicts"]
    arms = {(arm["clip"] is not None, arm["restore"]): arm for arm in document["arms"][1:]}
    difference = arms[True, True]["nll"] - arms[False, False]["nll"]
    assert verdict["protecting"]["delta"] == pytest.approx(difference, abs=1e-9)
    assert verdict["helps"] == (
        verdict["protecting"]["delta_high"] < 0 and verdict["restoring_after_clipping"]["delta_high"] < 0
    )
    assert arms[True, True]["clip"] == verdict["clip"]


def test_z_is_that_of_the_least_loss_on_the_first_calibration_window(planted, run):
    folder, plain = planted
    document = run(quantize.EXPERIMENT, group=(Group("row"),), bits=(3,), activations=("none",)).as_json()
    found = []
    for z in ZS:
        arm = {"bits": 3, "group": "row", "scheme": "asymmetric", "clip": z, "restore": True, "activations": "none"}
        with as_arm(plain, arm, (PLANTED,)):
            found.append(losses(plain, windows(folder, 12)[:1])[0])
    assert document["arms"][3]["clip"] == document["verdicts"][0]["clip"] == ZS[int(np.argmin(found))]
    assert len(set(found)) > 1


def test_what_norms_feed_is_told_by_running(tmp_path):
    def fed(name):
        return fed_by_norms(hooked(save_random(name, tmp_path / name)).runner, [1, 2, 3])

    assert fed("llama") == [
        [f"model.layers.{layer}.{name}" for name in names]
        for layer in range(3)
        for names in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj"))
    ]
    names = {name.rpartition(".")[2] for each in fed("gpt_neox") for name in each}
    assert names == {"query_key_value", "dense_h_to_4h"}
    assert fed("olmo") == []  # its norms have no weights that could take factors up


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "gpt_oss", "olmo"])
def test_other_architectures_are_quantized_too(planted, run, tmp_path, name):
    """The stock model with its matrices rounded in place, those of fused experts too."""
    import transformers

    folder = save_random(name, tmp_path / name)
    coordinate = Coordinate(1, None if name in ("gpt2", "olmo") else 0, 5, 19)
    options = {"group": (Group("row"),), "activations": ("none",), "bits": (3,)}
    document = run(quantize.EXPERIMENT, folder=folder, weights=(coordinate,), **options).as_json()
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    batch = windows(folder, 12, planted[0] / "text.txt")[4:]
    arm = {"group": "row", "bits": 3, "scheme": "asymmetric", "clip": None}
    stack = next(m for n, m in plain.named_modules() if isinstance(m, torch.nn.ModuleList) and n.count(".") == 1)
    with torch.no_grad():
        for holder in stack.modules():
            for weight in holder.parameters(recurse=False):
                linear = isinstance(holder, torch.nn.Linear) and weight.ndim == 2
                conv = type(holder).__name__ == "Conv1D" and weight.ndim == 2
                if linear:
                    weight.copy_(quantized(weight, arm))
                elif conv:
                    weight.copy_(quantized(weight.T, arm).T)
                elif weight.ndim == 3:
                    turned = name == "gpt_oss"
                    weight.copy_(torch.stack([quantized(w.T, arm).T if turned else quantized(w, arm) for w in weight]))
    assert document["arms"][1]["nll"] == pytest.approx(losses(plain, batch).mean(), abs=1e-4)
    if name == "olmo":
        smooth = run(quantize.EXPERIMENT, folder=folder, weights=(coordinate,), group=(Group("row"),))
        assert "smoothquant" not in {arm.get("activations") for arm in smooth.as_json()["arms"]}
        assert any("SmoothQuant does not apply" in each for each in smooth.outcome.findings)


def test_what_is_static_needs_no_text_and_no_run(planted, run):
    options = {"group": (Group("tensor"), Group("row")), "bits": (4,)}
    whole = run(quantize.EXPERIMENT, activations=("none",), **options).as_json()
    result = run(quantize.EXPERIMENT, settings={"data": "nowhere.txt"}, static=True, **options)
    document = result.as_json()
    assert document["matrices"] == whole["matrices"]
    assert [arm["no_op"] for arm in document["arms"]] == [each["no_op"] for each in whole["matrices"]]
    assert "nll" not in document["arms"][0]
    down, header = 128 * 192 * 4, 10_000
    assert down <= document["protocol"]["bytes_read"] <= down + header
    assert "no-op in 2 of 2 cases" in result.outcome.findings[0]


def test_what_is_static_verifies_nothing(run):
    with pytest.raises(ForwardError, match=r"--static runs nothing to find one: name some with --weight"):
        run(quantize.EXPERIMENT, weights=(), static=True)


def test_groups_that_do_not_divide_and_weights_of_zero_are_refused(planted, run, tmp_path):
    with pytest.raises(ForwardError, match=r"--group 100 does not divide model\.layers\.0\.mlp\.down_proj\.weight"):
        run(quantize.EXPERIMENT, group=(Group("run", 100),))
    with pytest.raises(
        ForwardError, match=r"--group flat:999 does not divide the matrix of 1,77,31, 128 x 192: flat:768"
    ):
        run(quantize.EXPERIMENT, group=(Group("flat", 999),), static=True)
    import transformers
    from models import save

    model = transformers.LlamaForCausalLM.from_pretrained(planted[0])
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[77, 31] = 0
    folder = save(model, tmp_path / "zero")
    with pytest.raises(ForwardError, match=r"^1,77,31 is 0: there is nothing of it to protect"):
        run(quantize.EXPERIMENT, folder=folder)


def test_the_model_is_never_whole(planted, run, monkeypatch):
    """Each block's weights come and go, and matrices that are looked at come one at a time."""
    from analyzer.model.weights import StoredWeights

    most = []
    read = StoredWeights.read

    def counted(self, names):
        most.append(len({name.split(".layers.")[1].split(".")[0] for name in names if ".layers." in name}))
        return read(self, names)

    monkeypatch.setattr(StoredWeights, "read", counted)
    monkeypatch.setattr("analyzer.forward.runner.bearable_bytes", lambda _: 0)
    document = run(quantize.EXPERIMENT, group=(Group("row"),)).as_json()
    assert max(most) == 1
    check_arms(planted, document)


def test_maps_of_a_models_own_are_refused(run, tmp_path):
    """I-BERT's linear maps quantize themselves, and are none of torch's."""
    from tiny_text import WORDS, save_tokenizer
    from transformers import IBertConfig, IBertForMaskedLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_hidden_layers": 3}
    config = IBertConfig(vocab_size=len(WORDS) + 3, max_position_embeddings=34, **sizes)
    IBertForMaskedLM(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(ForwardError, match=r"output\.dense\.weight is that of no linear map known here"):
        run(quantize.EXPERIMENT, folder=tmp_path, weights=(Coordinate(1, None, 5, 19),))
