"""The streamed model against what `from_pretrained` makes of the same folder, and what of a checkpoint is read."""

import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from models import (
    DENSE,
    MIXTURES,
    PROMPT_IDS,
    Hooked,
    hooked,
    load_plain,
    random_llama,
    save,
    save_random,
)
from safetensors.torch import load_file
from streamed import KEEP, assert_close, check_equal, run, stored_bytes

from analyzer.base.errors import AnalyzerError, SourceError
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.checkpoint.shards import INDEX, SINGLE
from analyzer.source.folder import FolderSource
from analyzer.source.opening import open_model


@pytest.mark.parametrize("name", DENSE + MIXTURES)
def test_equals_from_pretrained(tmp_path, name):
    save_random(name, tmp_path)
    for keep_bytes in KEEP.values():
        check_equal(name, tmp_path, keep_bytes)


@pytest.mark.parametrize("name", ["mistral", "gpt2", "phi3", "mixtral", "gpt_oss", "deepseek_v3", "bert"])
def test_in_shards(tmp_path, name):
    save_random(name, tmp_path, save_options={"max_shard_size": "8KB"})
    assert (tmp_path / INDEX).exists()
    check_equal(name, tmp_path, 0)


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_under_the_names_that_the_modules_have(tmp_path, name):
    save_random(name, tmp_path, save_options={"save_original_format": False})
    check_equal(name, tmp_path, 0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_weights_stored_in_half_precision(tmp_path, dtype):
    save_random("llama", tmp_path)
    plain = load_plain("llama", tmp_path, dtype=torch.bfloat16).model
    plain.save_pretrained(tmp_path)
    expected = load_plain("llama", tmp_path, dtype=getattr(torch, dtype), attn_implementation="eager")
    model = hooked(tmp_path, dtype=dtype, keep_bytes=0)
    assert model.dtype == dtype
    with torch.no_grad():
        logits = expected.model(input_ids=torch.tensor([PROMPT_IDS])).logits
    found = run(model, [PROMPT_IDS])[1]
    assert found.dtype == getattr(torch, dtype)
    tolerance = 1e-5 if dtype == "float32" else 4 * torch.finfo(found.dtype).eps
    assert (found - logits).abs().max() <= tolerance * logits.abs().max()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A model whose embedding and head are larger than its blocks."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    return save_random("llama", folder, vocab_size=1000)


@pytest.mark.parametrize("keep", KEEP)
def test_what_is_read_and_when(llama, keep):
    model = hooked(llama, keep_bytes=KEEP[keep])
    headers = Checkpoint(FolderSource(llama)).bytes_read
    blocks, head, row = stored_bytes(llama, of=".layers."), stored_bytes(llama, of="lm_head"), 16 * 4
    read = headers + stored_bytes(llama, of="model.norm")
    assert model.checkpoint.bytes_read == read
    model.trace([3, 4, 5, 3, 3])
    read += blocks + 3 * row
    assert model.checkpoint.bytes_read == read
    model.trace([3, 4, 6, 7])
    read += 2 * row + (blocks if keep == "dropped" else 0)
    assert model.checkpoint.bytes_read == read
    assert head == 1000 * row
    for _ in range(2):
        model.losses([[3, 4, 5]], [()])
    read += head + (2 * blocks if keep == "dropped" else 0)
    assert model.checkpoint.bytes_read == read


def rounded(tensor):
    """Round to 8 bits: each number to the nearest of 256, the same whichever way round or with others it is stored."""
    return (tensor * 64).round().clamp(-128, 127) / 64


@pytest.mark.parametrize("keep", KEEP)
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "mixtral", "gpt_oss", "deepseek_v3", "modernbert"])
def test_a_change_of_weights_as_they_are_loaded(tmp_path, name, keep):
    """All matrices of the blocks rounded as they come, against a plain model that is rounded in place."""
    asked = []

    def change(stored_name, tensor):
        asked.append(stored_name)
        return rounded(tensor) if tensor.ndim > 1 else tensor

    plain = load_plain(name, save_random(name, tmp_path))
    model = hooked(tmp_path, keep_bytes=KEEP[keep], change=change)
    with torch.no_grad():
        untouched = plain.body(input_ids=torch.tensor([PROMPT_IDS]))[0]
        for parameter in plain.blocks.parameters():
            parameter.copy_(rounded(parameter) if parameter.ndim > 1 else parameter)
        expected = plain.body(input_ids=torch.tensor([PROMPT_IDS]))[0], plain.model(torch.tensor([PROMPT_IDS])).logits
    assert (expected[0] - untouched).abs().max() > 0.01 * untouched.abs().max()
    for passes in (1, 2):
        for found, wanted in zip(run(model, [PROMPT_IDS]), expected, strict=True):
            assert_close(found, wanted)
        once = len(asked) // (passes if keep == "dropped" else 1)
        assert sorted(asked) == sorted(asked[:once] * (len(asked) // once))
    of_blocks = [name for name in load_file(tmp_path / SINGLE) if re.search(r"\.\d+\.", name)]
    assert sorted(asked[:once]) == sorted(of_blocks)  # neither embedding nor head nor norm


class LosingSource(FolderSource):
    """A folder that cannot be read any more where some tensors are."""

    lost = range(0)

    def read(self, filename, start, stop):
        if filename.endswith(".safetensors") and start < self.lost.stop and stop > self.lost.start:
            raise SourceError("the line is dead")
        return super().read(filename, start, stop)


@pytest.mark.parametrize("keep", KEEP)
def test_a_source_that_fails_in_the_third_block_says_so(tmp_path, keep):
    source = LosingSource(save_random("llama", tmp_path))
    checkpoint = Checkpoint(source)
    model = Hooked(checkpoint, tmp_path, keep_bytes=KEEP[keep])
    record = checkpoint.tensors["model.layers.2.mlp.up_proj.weight"].record
    source.lost = range(record.start, record.stop)
    reached, errors = [], []

    def trace():
        try:
            model.trace(PROMPT_IDS, enough=lambda layers, _: reached.append(layers[-1]))
        except AnalyzerError as error:
            errors.append(error)

    thread = threading.Thread(target=trace, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert reached == [0, 1]
    assert [type(error) for error in errors] == [SourceError]
    assert str(errors[0]) == "the line is dead"
    source.lost = range(0)  # and goes on where the line is back
    plain = load_plain("llama", tmp_path)
    with torch.no_grad():
        expected = plain.body(input_ids=torch.tensor([PROMPT_IDS]))[0]
    assert_close(run(model, [PROMPT_IDS])[0], expected)


def test_from_the_hub_by_ranges(hub, tmp_path):
    local = save_random("qwen3_moe", tmp_path / "local", vocab_size=5000)
    hub.add("me/streamed", local)
    source = open_model("me/streamed")
    checkpoint = Checkpoint(source)
    model = Hooked(checkpoint, source.folder(()), keep_bytes=0)
    found, expected = model.trace(PROMPT_IDS), hooked(local).trace(PROMPT_IDS)
    assert (found.residual == expected.residual).all()
    assert all((found.outputs[layer] == expected.outputs[layer]).all() for layer in expected.outputs)
    assert not list(source.folder(()).glob("*.safetensors"))
    size = (local / SINGLE).stat().st_size
    assert all(request.range is not None for request in hub.asked("cdn"))
    assert hub.body_bytes["cdn"] < size - 2 * 5000 * 16 * 4 * 0.95  # neither the embedding nor the head
    assert model.checkpoint.bytes_read < size - 2 * 5000 * 16 * 4 * 0.95


CHILD = """
import sys, tempfile
sys.path[:0] = [".", "tests", "tests/support", "tools"]
import conftest
from models import PROMPT_IDS, hooked, random_llama, save

def peak():  # of this process alone: getrusage counts in what forked it
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))

folder = sys.argv[1]
with tempfile.TemporaryDirectory() as tiny:  # what torch and transformers import when they are first used
    hooked(save(random_llama(num_hidden_layers=3), tiny)).losses([PROMPT_IDS], [()])
before = peak()
for keep_bytes in sys.argv[2:]:
    model = hooked(folder, keep_bytes=int(keep_bytes))
    model.trace(PROMPT_IDS)
    model.losses([PROMPT_IDS], [()])
    print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
def test_memory_is_a_few_blocks(tmp_path):
    """In a child process: 8 blocks of 26 MB, two passes, every block dropped after use; and then with all kept."""
    sizes = {"hidden_size": 512, "intermediate_size": 3400, "num_attention_heads": 4, "num_key_value_heads": 4}
    folder = save(random_llama(**sizes, num_hidden_layers=8), tmp_path)
    block = stored_bytes(folder, of=".layers.3.")
    assert 25e6 < block < 27e6
    command = [sys.executable, "-c", CHILD, str(folder), str(KEEP["dropped"]), str(KEEP["kept"])]
    child = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    dropped, kept = (int(peak) / block for peak in child.stdout.split())
    assert dropped < 4
    assert kept > 7
