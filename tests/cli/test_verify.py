"""A verification from the command line."""

import contextlib
import json
import os
import pty
import subprocess
import sys
import termios

import encoder_decoders
import pytest
from commands import ROOT, fails, superweight
from gguf_files import write_llama_gguf
from models import PROMPT

pytestmark = pytest.mark.early


def test_verify_json_is_the_contract(planted):
    result = superweight("verify", planted, "--prompt", PROMPT, "--text", planted / "text.txt", "--json")
    assert result.stderr == ""
    verified = json.loads(result.stdout)
    wanted = {
        "model", "revision", "commit", "model_type", "prompt", "tokens", "dtype", "device", "verdict", "layers",
        "super_activations", "super_weights",
    }  # fmt: skip
    assert wanted <= set(verified)
    assert verified["verdict"] == "found"
    assert verified["device"] in ("cpu", "cuda")
    weight = next(w for w in verified["super_weights"] if (w["layer"], w["row"], w["col"]) == (1, 77, 31))
    assert (weight["status"], weight["static_rank"], weight["value"]) == ("confirmed", 1, 2.0)
    cost = verified["cost"]
    assert list(cost) == ["passes", "block_loads", "bytes_loaded", "seconds_waiting", "seconds_computing"]
    assert cost["passes"] > cost["block_loads"] == 6  # blocks that fit are loaded once
    assert cost["seconds_computing"] > 0


def test_a_text_or_prompt_that_is_wrong(here, planted, tmp_path):
    (tmp_path / "text.txt").write_bytes(b"\xff\xfe")
    fails(here("verify", planted, "--text", tmp_path / "text.txt"), "as UTF-8 text")
    fails(here("verify", planted, "--text", "/dev/null"), "is not a text file")
    fails(here("verify", planted, "--prompt", "apple " * 65), "has 65 tokens", "has 64 positions")
    fails(here("verify", planted, "--prompt", "apple"), "has 1 of at least 3 tokens")


def test_what_cannot_be_verified_is_said_in_one_line(here, partly_known, tmp_path):
    write_llama_gguf(tmp_path / "x.Q5_K.gguf", "Q5_K")
    for command in ("verify", "analyze"):
        catalog = ("--catalog", tmp_path) if command == "analyze" else ()
        fails(here(command, tmp_path / "x.Q5_K.gguf", *catalog), "its metadata do not say how large the model is")
        fails(here(command, partly_known, *catalog), "has parts that are not read: model.layers.*.extra.bwd x 1")


def test_a_tower_is_named_or_refused(here, tmp_path):
    model = encoder_decoders.plant(encoder_decoders.build("t5"), "encoder", layer=0)
    encoder_decoders.save(model, tmp_path / "t5")
    result = here("verify", tmp_path / "t5", "--prompt", PROMPT, "--tower", "encoder")
    assert (result.returncode, result.stdout.count("encoder layer 0, row 5, col 19")) == (0, 1)
    assert "warning" in result.stderr.lower()
    assert "the encoder of an encoder-decoder ran by itself" in " ".join(result.stderr.split())
    for command in ("verify", "analyze"):
        catalog = ("--catalog", tmp_path) if command == "analyze" else ()
        fails(here(command, tmp_path / "t5", "--tower", "zap", *catalog), "has no tower zap: it has decoder, encoder")


LOUD_AND_QUIET = """
import sys
from analyzer.__main__ import run
command = sys.argv
assert run() == 0
print("QUIET", file=sys.stderr, flush=True)
sys.argv = [command[0], command[1], "me/another-1b", *command[3:], "--quiet"]
assert run() == 0
"""


def test_quiet_is_quiet_on_a_terminal_also_while_downloading(hub, planted, tmp_path):
    for name in ("planted", "another"):
        hub.add(f"me/{name}-1b", planted)
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    del environment["HF_HUB_DISABLE_PROGRESS_BARS"]
    arguments = ["verify", "me/planted-1b", "--prompt", PROMPT, "--text", planted / "text.txt"]
    command = [sys.executable, "-c", LOUD_AND_QUIET, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment) as process:
        os.close(theirs)
        drawn = b""
        with contextlib.suppress(OSError):  # EIO: the last process that had the terminal has ended
            while chunk := os.read(ours, 1 << 16):
                drawn += chunk
    os.close(ours)
    assert process.returncode == 0
    loud, quiet = drawn.decode().split("QUIET\r\n")
    assert "Fetching" in loud
    assert "building the model" in loud
    assert quiet == ""
    assert any("/me/another-1b/resolve/" in request.path for request in hub.requests)
