"""Verifying the first few blocks alone, also of a model on the Hub, of which no more is read."""

import json
from dataclasses import replace

import pytest
from models import (
    PLANTED,
    PROMPT,
    found_at,
    plant,
    random_llama,
    save,
    settings,
    verify_folder,
)

from analyzer.analyze.verifying import verify_model
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.source.folder import FolderSource
from analyzer.source.opening import open_model


@pytest.fixture(scope="module")
def deep_folder(tmp_path_factory):
    """Twelve blocks, the super weight in block 1, an embedding and head that outweigh a block."""
    model = plant(random_llama(num_hidden_layers=12, vocab_size=500))
    return save(model, tmp_path_factory.mktemp("models") / "deep")


@pytest.fixture(scope="module")
def whole(deep_folder):
    return verify_folder(deep_folder)


def check_early(result, whole):
    assert (result.verdict, result.early_stop) == ("found", True)
    assert result.bytes_read < 0.5 * result.checkpoint_bytes
    assert [w.coordinate for w in result.super_weights] == [PLANTED]
    found, expected = found_at(result, PLANTED), found_at(whole, PLANTED)
    assert (found.status, found.share) == (expected.status, pytest.approx(expected.share, abs=1e-6))
    assert (found.effect, found.loss, found.loss_zeroed, found.control_loss_max, found.static_rank) == (None,) * 5
    assert result.joint is None
    assert [row.layer for row in result.layers] == [0, 1, 2, 3]  # where it shows, and two blocks more
    assert result.super_activations[0].last_layer == 3


def test_early_stop_reads_a_few_blocks(deep_folder, whole):
    assert found_at(whole, PLANTED).status == "confirmed"
    check_early(verify_folder(deep_folder, early_stop=True), whole)


def test_early_stop_over_the_hub_downloads_no_weights(hub, deep_folder, whole):
    hub.add("me/deep", deep_folder)
    source = open_model("me/deep")
    result = verify_model(source, settings(early_stop=True))
    check_early(result, whole)
    assert all(request.range is not None for request in hub.asked("cdn"))
    assert hub.body_bytes["cdn"] < 0.5 * result.checkpoint_bytes
    assert not list(source.folder(()).glob("*.safetensors"))


def test_early_stop_does_not_wait_for_a_block_that_it_does_not_need(hub, superweight, deep_folder):
    """The next block is read ahead; here those bytes never come, and the command ends all the same."""
    hub.add("me/deep", deep_folder)
    tensors = Checkpoint(FolderSource(deep_folder)).tensors
    names = [name for name in tensors if name.startswith("model.layers.4.")]
    start = min(tensors[name].record.start for name in names)
    stop = max(tensors[name].record.stop for name in names)
    stalled = []

    def tamper(request, reply):
        first, _, last = (request.range or "").removeprefix("bytes=").partition("-")
        if request.origin == "cdn" and first and int(first) < stop and int(last) >= start:
            stalled.append(request)
            return replace(reply, stall=True, cut=0)
        return reply

    hub.tamper = tamper
    process = superweight("verify", "me/deep", "--early-stop", "--json", "--prompt", PROMPT)
    output, _ = process.communicate(timeout=90)  # to wait for those bytes, and ask again, takes longer
    assert process.returncode == 0
    assert json.loads(output)["verdict"] == "found"
    assert stalled


def test_early_stop_without_a_super_activation_is_none(tmp_path):
    result = verify_folder(save(random_llama(), tmp_path), early_stop=True)
    assert (result.verdict, result.super_weights) == ("none", ())
    assert len(result.layers) == 6
