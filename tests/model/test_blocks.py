"""The streamed model against what `from_pretrained` makes of the same folder, and what of a checkpoint is read."""

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from models import (
    DENSE,
    MASKED,
    MIXTURES,
    PROMPT_IDS,
    Hooked,
    hooked,
    load_plain,
    random_llama,
    save,
    save_random,
)
from safetensors.torch import load_file, save_file

from analyzer.base.errors import AnalyzerError, SourceError
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.checkpoint.shards import INDEX, SINGLE
from analyzer.source.folder import FolderSource
from analyzer.source.opening import open_model

KEEP = {"dropped": 0, "kept": 1 << 40}
WINDOWS = [list(range(1, 17)), [4, 4, 9, 2, 16, 1, 3], [7, 1, 2, 3, 16, 16, 5]]


def blocks_of(model):
    return [model.blocks.model.get_submodule(mlp.block) for mlp in model.mlps.values()]


def run(model, ids):
    """Return the hidden states that leave the body, [rows, T, hidden_size], and the logits, [rows, T, vocabulary]."""
    with torch.inference_mode():
        hidden = model.blocks.body(torch.tensor(ids))
        return hidden, torch.stack([model.blocks.head(row[None]) for row in hidden])


def plain_loss(plain, windows):
    """The mean of plain cross-entropies; of every seventh token, masked, where the model is a masked one."""
    total, count = 0.0, 0
    for window in windows:
        ids = torch.tensor([window])
        if plain.name in MASKED:
            places = torch.arange(3, len(window), 7)
            targets = ids[0, places].clone()
            ids[0, places] = 17
        else:
            places, targets = torch.arange(len(window) - 1), ids[0, 1:].clone()
        with torch.no_grad():
            logits = plain.model(input_ids=ids).logits[0, places]
        total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
        count += len(targets)
    return total / count


def assert_close(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def check_equal(name, folder, keep_bytes, **options):
    """Run the streamed model twice, for the second pass finds what the first has left."""
    plain, model = load_plain(name, folder), hooked(folder, keep_bytes=keep_bytes, **options)
    ids = [PROMPT_IDS, [3, 3, 16, 1, 2, 9, 9, 4]]
    with torch.no_grad():
        expected = plain.body(input_ids=torch.tensor(ids))[0], plain.model(input_ids=torch.tensor(ids)).logits
    assert expected[1].std() > 0.01
    for _ in range(2):
        for found, wanted in zip(run(model, ids), expected, strict=True):
            assert_close(found, wanted)
        on_meta = {parameter.is_meta for block in blocks_of(model) for parameter in block.parameters()}
        assert on_meta == {keep_bytes == 0}
    assert model.losses(WINDOWS, [()])[0] == pytest.approx(plain_loss(plain, WINDOWS), rel=1e-5)


@pytest.mark.parametrize("keep", KEEP)
@pytest.mark.parametrize("name", DENSE + MIXTURES)
def test_equals_from_pretrained(tmp_path, name, keep):
    check_equal(name, save_random(name, tmp_path), KEEP[keep])


@pytest.mark.parametrize("name", ["mistral", "gpt2", "phi3", "mixtral", "gpt_oss", "deepseek_v3", "bert"])
def test_in_shards(tmp_path, name):
    save_random(name, tmp_path, save_options={"max_shard_size": "8KB"})
    assert (tmp_path / INDEX).exists()
    check_equal(name, tmp_path, 0)


@pytest.mark.parametrize(
    ("name", "tied"),
    [
        ("llama", True),
        ("qwen2", True),
        ("gpt_neox", True),
        ("mixtral", True),
        ("gpt2", False),
        ("gemma", False),
        ("gemma3_text", False),
        ("falcon_old", False),
        ("bert", False),
        ("modernbert", False),
    ],
)
def test_tied_and_untied_embeddings(tmp_path, name, tied):
    save_random(name, tmp_path, tie_word_embeddings=tied)
    embedding = load_plain(name, tmp_path).model
    same = embedding.get_input_embeddings().weight is embedding.get_output_embeddings().weight
    assert same == tied
    check_equal(name, tmp_path, 0)


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_under_the_names_that_the_modules_have(tmp_path, name):
    save_random(name, tmp_path, save_options={"save_original_format": False})
    check_equal(name, tmp_path, 0)


def test_a_tied_embedding_stored_as_the_head_alone(tmp_path):
    save_random("llama", tmp_path, tie_word_embeddings=True)
    tensors = load_file(tmp_path / SINGLE)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / SINGLE, metadata={"format": "pt"})
    check_equal("llama", tmp_path, 0)


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


# Each batch of rows, T long, in a model of 4 heads: of the shapes that a tensor's first axis could be mistaken for.
@pytest.mark.parametrize("shape", [(2, 7), (3, 5), (4, 6), (5, 5), (4, 4), (8, 8)], ids=str)
@pytest.mark.parametrize("name", ["llama", "gptj", "bloom", "mpt", "falcon_alibi", "gemma3_text", "modernbert", "opt"])
def test_blocks_on_few_rows_at_a_time(tmp_path, name, shape):
    config = {"alibi": True} if name == "falcon_alibi" else {}
    name = "falcon_old" if config else name
    save_random(name, tmp_path, **config)
    ids = torch.randint(1, 17, shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = load_plain(name, tmp_path).body(input_ids=ids)[0]
    model = hooked(tmp_path)
    for rows in (1, 2, 3):
        model.blocks.rows.row_bytes = rows * model.blocks.rows.bytes_of_one(expected)
        with torch.inference_mode():
            assert_close(model.blocks.body(ids), expected)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A model whose embedding and head are larger than its blocks."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    return save_random("llama", folder, vocab_size=1000)


def stored_bytes(folder, *, of=""):
    tensors = load_file(folder / SINGLE)
    return sum(tensor.numel() * tensor.element_size() for name, tensor in tensors.items() if of in name)


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


def test_a_tied_head_reads_the_embedding_once_it_is_needed(tmp_path):
    save_random("llama", tmp_path, vocab_size=1000, tie_word_embeddings=True)
    model = hooked(tmp_path)
    model.trace([3, 4, 5])
    assert model.checkpoint.bytes_read < stored_bytes(tmp_path, of="embed_tokens")
    model.losses([[3, 4, 5]], [()])
    assert model.checkpoint.bytes_read < stored_bytes(tmp_path) + 10_000


def test_the_head_is_multiplied_in_slices(llama, monkeypatch):
    plain, model = load_plain("llama", llama), hooked(llama)
    monkeypatch.setattr("analyzer.model.ends.HEAD_NUMBERS", 16 * 7)
    with torch.no_grad():
        expected = plain.model(input_ids=torch.tensor([PROMPT_IDS])).logits
    assert_close(run(model, [PROMPT_IDS])[1], expected)


def changed(folder, to, *, without=(), **tensors):
    """Copy a folder's model, without some of its tensors and with others in their place."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    stored = load_file(folder / SINGLE)
    stored = {name: tensor for name, tensor in stored.items() if name not in without}
    save_file(stored | tensors, to / SINGLE, metadata={"format": "pt"})
    return to


def with_config(folder, to, **changes):
    shutil.copytree(folder, to, dirs_exist_ok=True)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | changes))
    return to


def error_of(folder):
    with pytest.raises(AnalyzerError) as caught:
        hooked(folder).losses([PROMPT_IDS], [()])
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300
    return message


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.input_layernorm.weight",
        "model.layers.2.mlp.up_proj.weight",
        "model.norm.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
    ],
)
def test_a_missing_tensor_is_named_not_made_up(llama, tmp_path, name):
    assert f"the checkpoint lacks {name}" in error_of(changed(llama, tmp_path, without=[name]))


def test_a_missing_expert_is_named(tmp_path):
    save_random("mixtral", tmp_path / "whole")
    without = [f"model.layers.1.block_sparse_moe.experts.3.w{number}.weight" for number in (1, 2, 3)]
    message = error_of(changed(tmp_path / "whole", tmp_path / "holey", without=without))
    assert "model.layers.1.mlp.experts" in message
    assert "[3, " in message
    assert "[4, " in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 8}, "model.layers.0.self_attn.k_proj.weight has the shape [8, 16], config.json says [16, 16]"),
        ({"intermediate_size": 20}, "model.layers.0.mlp.down_proj.weight has the shape [16, 24], config.json says"),
        ({"vocab_size": 999}, "model.embed_tokens.weight has the shape [1000, 16], config.json says [999, 16]"),
        ({"hidden_size": 32}, "model.embed_tokens.weight has the shape [1000, 16], config.json says [1000, 32]"),
    ],
)
def test_a_wrong_shape_is_named(llama, tmp_path, changes, message):
    assert message in error_of(with_config(llama, tmp_path, **changes))


def test_a_head_or_norm_of_another_shape_is_named(llama, tmp_path):
    for name, shape in {"lm_head.weight": (999, 16), "model.norm.weight": (17,)}.items():
        folder = changed(llama, tmp_path / name, **{name: torch.zeros(shape)})
        assert f"{name} has the shape {list(shape)}, config.json says" in error_of(folder)


@pytest.mark.parametrize(
    "name",
    ["model.layers.1.self_attn.q_proj.weight", "model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"],
)
def test_a_dtype_that_cannot_be_run_is_named(llama, tmp_path, name):
    tensor = load_file(llama / SINGLE)[name].to(torch.float8_e4m3fn)
    message = error_of(changed(llama, tmp_path, **{name: tensor}))
    assert f"{name} is stored as F8_E4M3, which can be scanned, but not yet verified" in message


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
sys.path.insert(0, "support")
import conftest
from models import PROMPT_IDS, hooked, random_llama, save

def peak():  # of this process alone: getrusage counts in what forked it
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))

folder, keep_bytes = sys.argv[1], int(sys.argv[2])
with tempfile.TemporaryDirectory() as tiny:  # what torch and transformers import when they are first used
    hooked(save(random_llama(num_hidden_layers=3), tiny)).losses([PROMPT_IDS], [()])
before = peak()
model = hooked(folder, keep_bytes=keep_bytes)
model.trace(PROMPT_IDS)
model.losses([PROMPT_IDS], [()])
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
def test_memory_is_a_few_blocks(tmp_path):
    """In a child process: 12 blocks of 26 MB, two passes, every block dropped after use; and once with all kept."""
    sizes = {"hidden_size": 512, "intermediate_size": 3400, "num_attention_heads": 4, "num_key_value_heads": 4}
    folder = save(random_llama(**sizes, num_hidden_layers=12), tmp_path)
    block = stored_bytes(folder, of=".layers.3.")
    assert 25e6 < block < 27e6
    peaks = {}
    for keep, keep_bytes in KEEP.items():
        command = [sys.executable, "-c", CHILD, str(folder), str(keep_bytes)]
        child = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
        peaks[keep] = int(child.stdout) / block
    assert peaks["dropped"] < 4, peaks
    assert peaks["kept"] > 11, peaks
