"""What is measured of a verification and of one pass, on a planted Llama as it is made for that."""

import pytest
from bench_passes import Bench, run
from planted_llama import LAYER, SIZES, Size, write_planted
from safetensors import safe_open

from analyzer.analyze.verifying import verify_model
from analyzer.base.records import Coordinate
from analyzer.source.folder import FolderSource
from analyzer.verify.settings import VerifySettings

SIZE = Size(hidden=64, inner=256, layers=5, heads=4, vocabulary=512, row=7, col=31)
TOKENS = 200


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "planted"
    write_planted(folder, SIZE)
    return folder


def test_the_planted_weight_is_found(planted):
    with safe_open(planted / f"{LAYER:02}.safetensors", "pt") as file:
        assert file.get_tensor(f"model.layers.{LAYER}.mlp.down_proj.weight")[SIZE.row, SIZE.col] == 2
    result = verify_model(FolderSource(planted), VerifySettings(text="One two three. " * 9, prompts=()))
    confirmed = [weight.coordinate for weight in result.super_weights if weight.status == "confirmed"]
    assert (result.verdict, confirmed) == ("found", [Coordinate(LAYER, None, SIZE.row, SIZE.col)])
    assert result.tokens[:3] == ("A", "p", "p")  # each byte is a token


def test_operations_of_a_pass_are_those_of_its_matrices(planted):
    """Which are counted by hand, and once however often the model is run."""
    for what in ("plain", "direct"):
        found = run(what, Bench(planted, text_bytes=TOKENS))
        of_weights = 2 * TOKENS * (4 * SIZE.hidden**2 + 3 * SIZE.hidden * SIZE.inner)
        of_attention = 4 * TOKENS**2 * SIZE.hidden
        of_head = 2 * (TOKENS - 1) * SIZE.hidden * SIZE.vocabulary
        expected = SIZE.layers * (of_weights + of_attention) + of_head
        assert found["operations"] == pytest.approx(expected, rel=1e-3)
        assert (found["cost"]["passes"], found["cost"]["block_loads"]) == (1, SIZE.layers)
        assert 0 < found["cost"]["seconds_computing"] <= found["seconds"]


def test_a_verification_is_measured_as_a_whole(planted):
    found = run("whole", Bench(planted, text_bytes=TOKENS))
    assert found["verdict"] == "found"
    assert found["operations"] > run("plain", Bench(planted, text_bytes=TOKENS))["operations"]
    assert found["cost"]["passes"] > 1
    assert found["peak memory"] > 1e8


def test_the_large_one_is_of_4_gigabytes():
    size = SIZES["4GB"]
    block = 4 * size.hidden**2 + 3 * size.hidden * size.inner
    assert 2 * (size.layers * block + size.vocabulary * size.hidden) == pytest.approx(4e9, rel=0.02)
