"""The catalog as a person reads it."""

from catalogs import NONE_FOUND, REPORTED, known_weight

from analyzer.catalog.report import render_catalog


def test_lists_have_a_model_once_in_order_and_fit():
    of = {"model": "o" * 40 + "/" + "m" * 60, "revision": "c" * 40}
    items = [
        ("b", {**REPORTED, "model": "z/x"}),
        ("a" * 64, {**REPORTED, **of}),
        ("a" * 64, {**REPORTED, **of, "standing": "disputed"}),
        ("a" * 64, {**NONE_FOUND, **of}),
        ("b", {**REPORTED, "model": "A/x", "col": None}),
        ("b", {**NONE_FOUND, "model": "A/x"}),
    ]
    weights = [known_weight(31, 16383, col) for col in (65535, 5)] + [known_weight(1, 2, 9, "coincident")]
    losses = {"effect": "inert", "loss": 3.0, "loss_zeroed": 3.1}
    weights = [{**weights[0], **losses}, {**weights[1], **losses, "loss": 2.0, "loss_zeroed": 2.9}, weights[2]]
    weights[2] |= {"effect": "critical", "loss": 0.0, "loss_zeroed": 9.0}
    known = {"model": of["model"], "commit": f"sha256:{'a' * 64}", "super_weights": weights}
    ours, title, others = render_catalog([("a" * 64, known)], items).partition("Reported by others, not verified here")
    assert title and max(map(len, (ours + others).splitlines())) <= 100
    assert ours.splitlines()[2].split()[-3:] == ["2", "1", "1,2,9"]  # also one that is not confirmed
    rows = [line.split("  ") for line in others.strip().splitlines()[2:]]
    rows = [[cell.strip() for cell in row if cell] for row in rows]
    assert [row[1][:3] for row in rows] == ["ooo", "A/x", "z/x"]
    assert [row[2:] for row in rows] == [
        ["reported, disputed, none", "2", "0", "1"], ["reported, none", "0", "1", "1"], ["reported", "1", "0", "1"],
    ]  # fmt: skip
