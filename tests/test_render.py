"""What a person reads: the finding first, 100 columns, nothing raw from a file."""

from dataclasses import replace

import pytest

from analyzer.records import LayerMaxima, SuperActivation, SuperWeight, VerifyResult, Write
from analyzer.render import render_verify

ACTIVATION = SuperActivation(2, 507, 0, "Apple", 24081.2, 12632.7, 29)
WEIGHT = SuperWeight(
    11, None, 507, 1229, 5.875, 0.733, 2, "confirmed", "critical", 0.7316, 2.888, 4.692, 2.889, 1881
)  # fmt: skip
RESULT = VerifyResult(
    model="me/model", revision=None, commit=None, model_type="llama", prompt="p", tokens=("a",) * 9, dtype="float32",
    device="cpu", verdict="found", layers=(LayerMaxima(11, 2999.0, 1229, 24045.0, 507, 24081.0, 507),),
    super_activations=(ACTIVATION,), outlier_features=(), writes=(Write(11, 507, 0, 24050.0, 0.733),),
    super_weights=(WEIGHT,), joint=None,
)  # fmt: skip


def test_the_finding_comes_first_with_its_evidence():
    text = render_verify(RESULT)
    finding = " ".join(text.split("\n\n")[1:3])
    for figure in ("layer 11, row 507, col 1229 = +5.875", "rank 2", "confirmed, critical", "73%", "2.888 to 4.692"):
        assert figure in " ".join(finding.split())
    assert "the worst of its control weights gives 2.889" in " ".join(finding.split())
    assert "(perplexity 17.96 to 109.1, over 1,881 tokens)" in " ".join(finding.split())


def test_fits_in_100_columns_with_many_large_numbers():
    others = tuple(
        replace(WEIGHT, row=12345, col=98765 + n, static_rank=26_542_080, value=-0.0312, status="coincident")
        for n in range(30)
    )
    text = render_verify(replace(RESULT, super_weights=(WEIGHT, *others)))
    assert max(map(len, text.splitlines())) <= 100


def test_an_inert_super_weight_is_said_to_be_inert():
    inert = replace(WEIGHT, effect="inert", loss_zeroed=2.889, control_loss_max=None)
    text = " ".join(render_verify(replace(RESULT, super_weights=(inert,))).split())
    assert "Super weight, but inert: layer 11" in text
    assert "too little to be critical" in text
    two = " ".join(render_verify(replace(RESULT, super_weights=(inert, replace(inert, col=1)))).split())
    assert "In all 2 confirmed super weights, 0 of them critical." in two


def test_none_is_said_in_a_sentence():
    nothing = replace(RESULT, verdict="none", super_activations=(), super_weights=(), writes=())
    assert "None found: no super activation, so no super weight, on this prompt." in render_verify(nothing)


def test_an_activation_that_no_weight_writes_is_none_too():
    rejected = replace(WEIGHT, status="rejected", effect=None)
    text = " ".join(render_verify(replace(RESULT, verdict="none", super_weights=(rejected,))).split())
    assert "None found: channel 507 has a super activation of +24,081" in text
    assert "no single weight of a down projection writes it" in text


@pytest.mark.parametrize("field", ["model", "prompt", "revision"])
def test_names_are_escaped(field):
    text = render_verify(replace(RESULT, **{field: "evil\x1b[2J\nname"}))
    assert "\x1b" not in text
    assert "\\x1b[2J" in text


def test_many_inert_weights_are_counted_not_listed():
    others = tuple(replace(WEIGHT, col=n, effect="inert", static_rank=n + 3) for n in range(40))
    text = render_verify(replace(RESULT, super_weights=(WEIGHT, *others)))
    assert "… and 29 more, none of them critical (--json lists all)" in text
