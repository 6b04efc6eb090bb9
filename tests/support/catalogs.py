"""Entries and reports as a catalog has them, for the tests to change."""

from analyzer.catalog.files import save_entry, save_reported

WEIGHT = {
    "layer": 1, "expert": None, "row": 2, "col": 3, "value": 4.5, "share": 0.9, "static_rank": 1,
    "status": "confirmed", "effect": "critical", "activation_collapse": 0.9, "loss": 1.0, "loss_zeroed": 2.0,
    "control_loss_max": 1.0, "loss_tokens": 10, "kl_divergence": 0.5, "top1_agreement": 0.75, "destroyed": False,
}  # fmt: skip
SOURCE = {"name": "A paper", "kind": "paper", "url": "https://example.org/p", "note": None}
REPORTED = {
    "model": "me/model-1b", "revision": None, "layer": 1, "expert": None, "row": 2, "col": 3, "value": 4.5,
    "standing": "reported", "reason": None, "sources": [SOURCE],
}  # fmt: skip
NONE_FOUND = {
    **REPORTED, "layer": None, "row": None, "col": None, "value": None, "standing": "none_reported",
    "reason": "none found",
}  # fmt: skip
METHOD = {
    "tool": "t", "version": "1", "settings": "custom", "prompt": "p", "text_sha256": "0" * 64, "dtype": "float32",
    "device": "cpu", "thresholds": {"share": 0.25},
}  # fmt: skip


def entry(model="me/model-1b", commit="a" * 40, **changes):
    base = {
        "model": model, "commit": commit, "note": None, "model_type": "llama", "num_layers": 4, "hidden_size": 8,
        "intermediate_size": 16, "method": METHOD, "verdict": "found", "unread": [], "super_activations": [],
        "super_weights": [WEIGHT], "joint": None, "outliers": [],
    }  # fmt: skip
    return {**base, **changes}


def known_weight(layer, row, col, status="confirmed", effect="inert"):
    """Return what of an entry's weight others' reports are held against."""
    return {"layer": layer, "expert": None, "row": row, "col": col, "status": status, "effect": effect}


def save_many(folder, writer):
    """Add to a catalog what no other writer adds, and to an item that they share a source of this writer's own.

    It is here because it runs in processes of its own, which cannot import a test's file.
    """
    for number in range(5):
        save_entry(folder, "x", entry(f"writer{writer}/model{number}"))
        save_reported(folder, "x", [{**REPORTED, "model": f"writer{writer}/model{number}"}])
        source = {**REPORTED["sources"][0], "name": f"writer {writer}"}
        save_reported(folder, "x", [{**REPORTED, "sources": [source]}])
