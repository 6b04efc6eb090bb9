"""How many reads it takes to open a checkpoint, and what a server's limits do to them."""

import json
import time

import ml_dtypes
import numpy as np
import pytest
from checkpoints import LLAMA_DOWN, random_downs, write_config, write_llama, write_tensors
from hub_server import Reply

from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.checkpoint.shards import INDEX
from analyzer.source.folder import FolderSource
from analyzer.source.hub.hub import HubSource
from analyzer.source.opening import open_model


class RecordingSource(FolderSource):
    """Keeps what was read of safetensors files."""

    def __init__(self, path):
        super().__init__(path)
        self.reads = []

    def read(self, filename, start, stop):
        if filename.endswith(".safetensors"):
            self.reads.append((filename, start, stop))
        return super().read(filename, start, stop)


def write_large(folder, *, shards, tensors, elements=1_000_000):
    """Write shards of tensors of so many zeros each, which take no room on the disk, and their index."""
    folder.mkdir()
    write_config(folder, model_type="llama")
    lengths, weight_map = {}, {}
    for shard in range(shards):
        filename = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        names = [f"model.layers.{shard}.mlp.experts.{expert}.down_proj.weight" for expert in range(tensors)]
        header = {
            name: {"dtype": "BF16", "shape": [elements], "data_offsets": [2 * elements * n, 2 * elements * (n + 1)]}
            for n, name in enumerate(names)
        }
        text = json.dumps(header, separators=(",", ":")).encode()
        with (folder / filename).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + 2 * elements * tensors)
        lengths[filename] = 8 + len(text)
        weight_map |= dict.fromkeys(names, filename)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return lengths


@pytest.mark.parametrize("tensors", [1, 10, 1000])
def test_a_header_whose_length_the_index_tells_takes_one_read(tmp_path, tensors):
    lengths = write_large(tmp_path / "large", shards=3, tensors=tensors)
    source = RecordingSource(tmp_path / "large")
    checkpoint = Checkpoint(source)
    assert len(checkpoint.tensors) == 3 * tensors
    assert [(name, start) for name, start, _ in sorted(source.reads)] == [(name, 0) for name in sorted(lengths)]
    read = sum(stop for _, _, stop in source.reads)
    assert sum(lengths.values()) < read < 1.3 * sum(lengths.values()) + 3 * 150
    small = sum((tmp_path / "large" / name).stat().st_size for name in ("config.json", INDEX))
    assert checkpoint.bytes_read == read + small
    assert read - sum(lengths.values()) < checkpoint.total_bytes / 1000


def test_a_header_that_is_longer_than_was_guessed_takes_two(tmp_path):
    lengths = write_large(tmp_path / "large", shards=2, tensors=100)
    index = json.loads((tmp_path / "large" / INDEX).read_text())
    index["weight_map"] = dict(list(index["weight_map"].items())[:1] + list(index["weight_map"].items())[-1:])
    (tmp_path / "large" / INDEX).write_text(json.dumps(index))
    source = RecordingSource(tmp_path / "large")
    assert len(Checkpoint(source).tensors) == 200
    assert len(source.reads) == 4
    # The second read goes on where the first one stopped.
    assert sum(stop - start for _, start, stop in source.reads) == sum(lengths.values())


@pytest.mark.parametrize(("megabytes", "reads"), [(60, 2), (70, 1)])
def test_a_header_of_a_single_file(tmp_path, megabytes, reads):
    write_large(tmp_path / "large", shards=1, tensors=megabytes, elements=500_000)
    (tmp_path / "large" / INDEX).unlink()
    source = RecordingSource(tmp_path / "large")
    assert len(Checkpoint(source).tensors) == megabytes
    assert len(source.reads) == reads
    assert max(stop for _, _, stop in source.reads) <= 65_536


def test_headers_on_the_hub_take_one_request_each_of_hub_and_cdn(hub, tmp_path):
    zeros = np.zeros((512, 512), ml_dtypes.bfloat16)
    write_tensors(tmp_path / "large", {LLAMA_DOWN.format(layer): zeros for layer in range(8)}, shards=4)
    write_config(tmp_path / "large", model_type="llama", hidden_size=512)
    hub.add("owner/large", tmp_path / "large")
    checkpoint = Checkpoint(open_model("owner/large"))
    assert len(checkpoint.tensors) == 8
    assert len(hub.asked("cdn")) == 4
    assert len(hub.asked("hub")) == 1 + 2 + 4
    assert checkpoint.bytes_read == sum(hub.body_bytes.values())


@pytest.mark.parametrize("headers", [{"Retry-After": "1"}, {"RateLimit": '"resolvers";r=0;t=1'}])
def test_a_limit_in_the_midst_of_300_shards_is_waited_for(hub, tmp_path, headers):
    write_llama(tmp_path / "wide", random_downs(layers=300), shards=300)
    hub.add("owner/wide", tmp_path / "wide")
    refused = []

    def limit(request, reply):
        """From the 200th shard on nobody is let in for a second."""
        if request.origin == "hub" and "/resolve/" in request.path and len(hub.asked("hub")) > 200:
            refused.append(time.monotonic())
            if refused[-1] - refused[0] < 1:
                return Reply(429, headers)
        return reply

    hub.tamper = limit
    checkpoint = Checkpoint(open_model("owner/wide"))
    assert len(checkpoint.shards) == 300
    assert {LLAMA_DOWN.format(layer) for layer in range(300)} <= checkpoint.tensors.keys()
    # Each reader was sent away once, and waited.
    early = [moment for moment in refused if moment - refused[0] < 1]
    assert 1 <= len(early) <= HubSource.readers + 1
    assert len(hub.asked("hub")) == 1 + 2 + 300 + len(early)
