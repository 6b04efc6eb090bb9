"""Blocks that go through slabs, bit for bit against those that are loaded directly."""

import threading

import pytest
import torch
from gguf_models import write_gguf_model
from late_device import LateDevice, staged
from models import PROMPT_IDS, TEXT_IDS, Hooked, hooked, load_plain, random_llama, save, save_random
from streamed import KEEP, stored_bytes

from analyzer.analyze.running import open_runnable
from analyzer.base.errors import ForwardError, SourceError
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.forward.edits import UNTOUCHED
from analyzer.model.loading import staging
from analyzer.model.loading.staging import SLABS, Staging, staging_to
from analyzer.source.folder import FolderSource
from analyzer.source.opening import open_model

NAMES = ["llama", "gpt2", "phi3", "mixtral", "gpt_oss", "deepseek_v3", "llama4_text", "modernbert"]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def bits(tensor):
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


def check_the_same(direct, other):
    """Two runs: the second takes what the first has left."""
    for _ in range(2):
        expected, found = ((each.trace(PROMPT_IDS), each.losses([TEXT_IDS[:12]], [()])) for each in (direct, other))
        assert found[0].residual.tobytes() == expected[0].residual.tobytes()
        assert found[1] == expected[1]
    pairs = zip(direct.blocks.model.named_parameters(), other.blocks.model.named_parameters(), strict=True)
    for (name, one), (_, two) in pairs:
        assert one.is_meta == two.is_meta
        assert one.is_meta or (one.dtype == two.dtype and torch.equal(bits(one), bits(two))), name


@pytest.mark.parametrize(
    ("name", "stored"),
    [*((name, torch.float32) for name in NAMES), ("llama", torch.bfloat16), ("mixtral", torch.bfloat16)],
)
def test_staged_blocks_are_those_that_are_loaded_directly(tmp_path, monkeypatch, name, stored):
    save_random(name, tmp_path)
    load_plain(name, tmp_path, dtype=stored).model.save_pretrained(tmp_path)
    for keep, keep_bytes in KEEP.items():
        device = LateDevice()
        staged(monkeypatch, device)
        other = hooked(tmp_path, keep_bytes=keep_bytes)
        staged(monkeypatch, None)
        direct = hooked(tmp_path, keep_bytes=keep_bytes)
        check_the_same(direct, other)
        blocks = len(other.blocks._blocks)
        assert device.copies == blocks * (1 if keep == "kept" else 4)
        assert device.overwritten == 0
        assert len(device.slabs) == SLABS == 2
        assert other.checkpoint.bytes_read == direct.checkpoint.bytes_read


def test_slabs_are_as_large_as_the_largest_block_is_stored(tmp_path, monkeypatch):
    folder = save(random_llama(), tmp_path)
    device = LateDevice()
    staged(monkeypatch, device)
    hooked(folder)
    (size,) = {len(slab) for slab in device.slabs}
    block = stored_bytes(folder, of=".layers.3.")
    assert block <= size < block + 9 * 256


def test_no_slab_is_overwritten_before_it_was_copied(tmp_path):
    """However late the copies are, and whether anybody takes what was sent."""
    weights = hooked(save(random_llama(), tmp_path)).blocks._weights
    blocks = {str(n): [name for name in weights.names if f".layers.{n}." in name] for n in range(6)}
    device, sent = LateDevice(delay=0.03), []
    staging = Staging(weights, blocks, device)
    for block in blocks:
        staging.send(block, sent.append)
    assert (device.copies, device.overwritten) == (6, 0)
    for names, arrive in zip(blocks.values(), sent, strict=True):
        expected, found = weights.read(names), arrive()
        assert list(found) == names
        assert all(torch.equal(bits(found[name]), bits(expected[name])) for name in names)


class WatchedSource(FolderSource):
    """Says when a tensor of a block is read, and fails where it is told to."""

    def __init__(self, folder):
        super().__init__(folder)
        self.begun, self.lost = {}, range(0)

    def watch(self, checkpoint, blocks):
        for number in blocks:
            record = checkpoint.tensors[f"model.layers.{number}.mlp.up_proj.weight"].record
            self.begun[record.start] = threading.Event()

    def read_into(self, filename, start, into):
        if start in self.begun:
            self.begun[start].set()
        if start < self.lost.stop and start + len(into) > self.lost.start:
            raise SourceError("the line is dead")
        super().read_into(filename, start, into)


def test_the_block_after_next_is_read_while_one_computes(tmp_path, monkeypatch):
    source = WatchedSource(save(random_llama(), tmp_path))
    checkpoint = Checkpoint(source)
    source.watch(checkpoint, [1, 2, 3])
    staged(monkeypatch, LateDevice())
    model = Hooked(checkpoint, tmp_path, keep_bytes=0)
    first = []

    def wait(*_):  # the first block computes for as long as it takes
        first[:] = [event.wait(20) for event in list(source.begun.values())[:2]] + [
            list(source.begun.values())[2].is_set()
        ]

    model.stack[0].mlps[0].whole.register_forward_pre_hook(wait)
    model.trace(PROMPT_IDS)
    assert first == [True, True, False]


def test_a_block_that_cannot_be_read_says_so_and_goes_on_where_it_can(tmp_path, monkeypatch):
    source = WatchedSource(save(random_llama(), tmp_path))
    checkpoint = Checkpoint(source)
    staged(monkeypatch, LateDevice())
    model = Hooked(checkpoint, tmp_path, keep_bytes=0)
    record = checkpoint.tensors["model.layers.2.mlp.up_proj.weight"].record
    source.lost = range(record.start, record.stop)
    for _ in range(3):  # more often than there are slabs
        with pytest.raises(SourceError, match="the line is dead"):
            model.trace(PROMPT_IDS)
    source.lost = range(0)
    assert model.trace(PROMPT_IDS).residual.tobytes() == hooked(tmp_path).trace(PROMPT_IDS).residual.tobytes()


def test_what_is_quantized_or_changed_goes_the_direct_way(tmp_path, monkeypatch):
    file, _ = write_gguf_model(random_llama(), tmp_path, "llama")
    device = LateDevice()
    staged(monkeypatch, device)
    runner, _ = open_runnable(open_model(str(file))).build(keep_bytes=0)
    list(runner.streams([PROMPT_IDS], [UNTOUCHED]))
    assert (device.slabs, device.copies) == ([], 0)
    changed = hooked(save(random_llama(), tmp_path / "plain"), change=lambda _, tensor: tensor)
    changed.trace(PROMPT_IDS)
    assert (device.slabs, device.copies) == ([], 0)


class Unpinned(LateDevice):
    def __init__(self, _):
        super().__init__()

    def slab(self, size):
        raise RuntimeError("CUDA error: out of memory")


def test_without_pinned_memory_nothing_is_staged(tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "Gpu", Unpinned)
    weights = hooked(save(random_llama(), tmp_path)).blocks._weights
    assert staging_to(torch.device("cuda"), weights, {"a": weights.names}) is None
    assert staging_to(torch.device("cpu"), weights, {"a": weights.names}) is None
    monkeypatch.setattr(staging, "Gpu", lambda _: LateDevice())
    assert isinstance(staging_to(torch.device("cuda"), weights, {"a": weights.names}), Staging)


@needs_gpu
@pytest.mark.parametrize("keep", KEEP)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_staged_blocks_are_those_that_are_loaded_directly_on_a_gpu(tmp_path, monkeypatch, name, dtype, keep):
    save_random(name, tmp_path)
    load_plain(name, tmp_path, dtype=torch.bfloat16).model.save_pretrained(tmp_path)
    options = {"device": "cuda", "dtype": dtype, "keep_bytes": KEEP[keep]}
    other = hooked(tmp_path, **options)
    assert other.blocks._ahead.far == 2
    staged(monkeypatch, None)
    check_the_same(hooked(tmp_path, **options), other)


@needs_gpu
def test_another_stream_than_the_default_one_is_refused(tmp_path):
    model = hooked(save(random_llama(), tmp_path), device="cuda", keep_bytes=0)
    with torch.cuda.stream(torch.cuda.Stream()), pytest.raises(ForwardError, match="on its default stream: run it"):
        model.trace(PROMPT_IDS)


@needs_gpu
def test_blocks_of_many_sizes_one_after_the_other_on_a_gpu(tmp_path, monkeypatch):
    """Blocks large enough that a copy takes longer than their computing, over many passes."""
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 12}
    folder = save(random_llama(**sizes, num_attention_heads=8, num_key_value_heads=8), tmp_path)
    options = {"device": "cuda", "dtype": "float32", "keep_bytes": 0}
    found = hooked(folder, **options)
    staged(monkeypatch, None)
    expected = hooked(folder, **options).trace(PROMPT_IDS).residual.tobytes()
    assert {found.trace(PROMPT_IDS).residual.tobytes() for _ in range(8)} == {expected}
