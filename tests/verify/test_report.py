"""What a person reads: the finding first, 100 columns, nothing raw from a file."""

from dataclasses import replace

import pytest

from analyzer.base.records import Coordinate
from analyzer.verify.records import (
    Column,
    JointZeroing,
    LayerMaxima,
    Masking,
    OutlierFeature,
    Recurrence,
    SuperActivation,
    SuperWeight,
    VerifyResult,
    Write,
)
from analyzer.verify.report import render_verify

ACTIVATION = SuperActivation(2, 507, 0, "Apple", 24081.2, 12632.7, 29)
WEIGHT = SuperWeight(
    11, None, 507, 1229, 5.875, 0.733, 2, "confirmed", "critical", 0.7316, 2.888, 4.692, 2.889, 1881
)  # fmt: skip
INERT = replace(WEIGHT, effect="inert", loss_zeroed=2.889, control_loss_max=None)
RESULT = VerifyResult(
    model="me/model", revision=None, commit=None, model_type="llama", prompt="p", tokens=("a",) * 9, dtype="float32",
    device="cpu", verdict="found", layers=(LayerMaxima(11, 2999.0, 1229, 24045.0, 507, 24081.0, 507),),
    super_activations=(ACTIVATION,),
    late_activations=(), outlier_features=(), asked=(), columns=(), writes=(Write(11, 507, 0, 24050.0, 0.733),),
    super_weights=(WEIGHT,), joint=None, masking=(), profile=None, prompts=0, recurrences=(), early_stop=False,
    bytes_read=270_000_000, checkpoint_bytes=269_000_000,
)  # fmt: skip


def test_the_finding_comes_first_with_its_evidence():
    text = render_verify(RESULT)
    finding = " ".join(text.split("\n\n")[1:3])
    for figure in ("layer 11, row 507, col 1229 = +5.875", "rank 2", "confirmed, critical", "73%"):
        assert figure in " ".join(finding.split())
    assert "the worst of its controls gives 2.889" in " ".join(finding.split())
    assert "2.888 (perplexity 17.96) to 4.692 (perplexity 109.1), over 1,881 tokens" in " ".join(finding.split())


def test_fits_in_100_columns_with_many_large_numbers():
    others = tuple(
        replace(WEIGHT, row=12345, col=98765 + n, static_rank=26_542_080, value=-0.0312, status="coincident")
        for n in range(30)
    )
    text = render_verify(replace(RESULT, super_weights=(WEIGHT, *others)))
    assert max(map(len, text.splitlines())) <= 100
    figures = {"tower": "language", "delta": 1.804, "delta_low": 1.637, "delta_high": 1.971, "change": -12345.0}
    experts = [replace(each, expert=123, static_rank=604_123, **figures) for each in (WEIGHT, *others)]
    text = render_verify(replace(RESULT, super_weights=tuple(experts)))
    assert max(map(len, text.splitlines())) <= 100
    assert "Weights on the super activations' channels, in the tower language" in text
    assert "11 123 507 1229 +5.88 -12,345 73% 604k confirmed critical" in " ".join(text.split())
    assert ("control" in text, "control" in render_verify(replace(RESULT, super_weights=(INERT,)))) == (True, False)


def test_an_inert_super_weight_is_said_to_be_inert():
    inert = INERT
    text = " ".join(render_verify(replace(RESULT, super_weights=(inert,))).split())
    assert "Super weight, but inert: layer 11" in text
    assert "too little to be critical" in text
    two = " ".join(render_verify(replace(RESULT, super_weights=(inert, replace(inert, col=1)))).split())
    assert "In all 2 super weights, 2 confirmed and 0 critical." in two


def test_none_is_said_in_a_sentence():
    nothing = replace(RESULT, verdict="none", super_activations=(), super_weights=(), writes=())
    assert "None found: no super activation, so no super weight, on this prompt." in render_verify(nothing)


def test_an_activation_that_no_weight_writes_is_none_too():
    rejected = replace(WEIGHT, status="rejected", effect=None, reason="share")
    text = " ".join(render_verify(replace(RESULT, verdict="none", super_weights=(rejected,))).split())
    assert "None found: channel 507 has a super activation of +24,081" in text
    assert "no single weight of a down projection is seen to write it" in text


@pytest.mark.parametrize("field", ["model", "prompt", "revision"])
def test_names_are_escaped(field):
    text = render_verify(replace(RESULT, **{field: "evil\x1b[2J\nname"}))
    assert "\x1b" not in text
    assert "\\x1b[2J" in text


def test_many_inert_weights_are_counted_not_listed():
    others = tuple(replace(WEIGHT, col=n, effect="inert", static_rank=n + 3) for n in range(40))
    text = render_verify(replace(RESULT, super_weights=(WEIGHT, *others)))
    assert "… and 29 more, none of them critical (--json lists all)" in text


def test_early_stop_says_what_was_read_and_what_was_not_looked_at():
    weight = replace(WEIGHT, effect=None, static_rank=None, loss=None, loss_zeroed=None, control_loss_max=None)
    text = render_verify(replace(RESULT, super_weights=(weight,), early_stop=True, bytes_read=35_500_000))
    words = " ".join(text.split())
    assert "Super weight: layer 11, row 507, col 1229 = +5.875; confirmed, its effect not measured." in words
    assert "Stopped after layer 11, where a super activation had persisted: read 35.5 MB of 269 MB." in words


def test_what_zeroing_costs_is_shown_with_its_interval_and_the_worst_control():
    weight = replace(WEIGHT, delta=1.804, delta_low=1.7, delta_high=1.908)
    lines = render_verify(replace(RESULT, super_weights=(weight,))).splitlines()
    assert ["+1.804", "±0.104", "+0.001"] in [line.split()[-3:] for line in lines]


def test_prompts_and_masking():
    recurrences = (Recurrence(1, 507, 12, (0, 1, 14, 15, 16), 11), Recurrence(11, 14, 3, (0,), 0))
    masking = (Masking(Coordinate(11, None, 507, 1229), ((521, 0), (571, 0)), ((9, 4),)),)
    lines = render_verify(replace(RESULT, prompts=12, recurrences=recurrences, masking=masking)).splitlines()
    assert "Super activations in 12 prompts, by the layer where they begin" in lines
    cells = [line.split() for line in lines]
    assert ["1", "507", "12", "of", "12", "0,", "1,", "14,", "15,", "…", "11"] in cells
    assert ["11", "14", "3", "of", "12", "0", "0"] in cells
    assert ["11", "507", "1229", "521,", "571", "9"] in cells


def words(**changes):
    return " ".join(render_verify(replace(RESULT, **changes)).split())


def test_a_columns_weights_are_told_as_one_event():
    other = replace(WEIGHT, row=12, effect="inert", change=900.0)
    column = Column(11, None, 1229, (507, 12), 2.25, 2.0, 2.5, 192)
    said = words(super_weights=(WEIGHT, other), columns=(column,))
    assert "Its column 1229 writes 2 channels at once: 12, 507; zeroing these weights" in said
    assert "at once adds +2.250 ±0.250 to the loss, over 192 tokens." in said
    assert "writes 2 channels" not in words(super_weights=(WEIGHT, other), columns=(replace(column, col=9),))


def test_the_costliest_is_named_where_the_largest_is_inert():
    inert = replace(WEIGHT, effect="inert", loss_zeroed=2.889, control_loss_max=None, change=20000.0)
    costly = replace(WEIGHT, layer=3, status="rejected", reason="channel", change=None)
    text = words(super_weights=(inert, costly))
    assert text.index("Super weight, but inert: layer 11") < text.index("The costliest is layer 3, row 507, col 1229")
    assert "In all 2 super weights, 1 confirmed and 1 critical." in text


def test_a_critical_weight_that_is_not_confirmed_says_why():
    costly = replace(WEIGHT, status="rejected", reason="channel", change=None, activation_collapse=None)
    text = words(super_weights=(costly,), super_activations=(), writes=())
    assert "Super weight: layer 11, row 507, col 1229 = +5.875, rank 2 by magnitude; rejected, critical." in text
    assert "it is not confirmed, as there is no super activation on its channel" in text


def test_one_token_is_one():
    assert "over 1 token; the worst of its controls" in words(super_weights=(replace(WEIGHT, loss_tokens=1),))


def test_what_was_asked_for_is_answered():
    inert = replace(WEIGHT, layer=3, status="rejected", reason="share", effect="inert", share=0.02)
    joint = JointZeroing((WEIGHT.coordinate, inert.coordinate), 6.0, 2.888, 3.0, 3.2, 1881)
    text = words(asked=(inert, WEIGHT), super_weights=(), joint=joint, verdict=None)
    assert text.index("Weight: layer 3, row 507, col 1229 = +5.875") < text.index("Super weight: layer 11")
    assert "Zeroing all 2 at once adds +3.112 ±0.088 to the loss, over 1,881 tokens." in text
    assert "None found" not in text


def test_channels_that_are_large_everywhere_or_only_at_the_end_are_named():
    late = replace(ACTIVATION, layer=28, channel=77, last_layer=29)
    text = words(outlier_features=(OutlierFeature(9, 0, 29, 8),), late_activations=(late,))
    assert "Channels as large at more than half of the positions: 9." in text
    assert "Channels as large, but only at the end: 77." in text
    none = words(super_activations=(), super_weights=(), writes=(), late_activations=(late,), verdict="none")
    assert "None found: channel 77 reaches +24,081 in layer 28, too near to the end to be a super activation." in none


def test_each_channel_has_one_line_with_its_number_of_positions():
    activations = [replace(ACTIVATION, position=n, value=9000.0 - n, positions=6) for n in range(6)]
    text = render_verify(replace(RESULT, super_activations=(*activations, replace(ACTIVATION, channel=3, positions=1))))
    table = text.split("the largest of each channel")[1].split("… and 5 smaller ones")[0]
    assert [line.split()[1:3] + line.split()[4:5] for line in table.splitlines() if "Apple" in line] == [
        ["507", "0", "6"],
        ["3", "0", "1"],
    ]


def test_what_else_zeroing_does_is_said_beside_the_loss():
    beside = replace(WEIGHT, kl_divergence=1.8312, top1_agreement=0.513, destroyed=False)
    text = " ".join(render_verify(replace(RESULT, super_weights=(beside,))).split())
    assert "the likeliest token stays at 51% of the tokens, with a KL divergence of 1.83 nats." in text
    assert "destroyed" not in text
    gone = " ".join(render_verify(replace(RESULT, super_weights=(replace(beside, destroyed=True),))).split())
    assert "nats, and the model is destroyed: it knows less of the text than its unigrams tell." in gone
