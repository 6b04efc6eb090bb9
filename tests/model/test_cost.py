"""What running a model costs: counts, and seconds in which bytes were not there."""

import time

import pytest
from models import Hooked, hooked, random_llama, save
from streamed import KEEP, stored_bytes

from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.source.folder import FolderSource

IDS = [3, 4, 5, 3, 3]
LAYERS = 6


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save(random_llama(), tmp_path_factory.mktemp("models") / "llama")


@pytest.mark.parametrize("keep", KEEP)
def test_passes_and_loads_are_counted(llama, keep):
    model = hooked(llama, keep_bytes=KEEP[keep])
    cost, blocks = model.blocks.cost, stored_bytes(llama, of=".layers.")
    model.trace(IDS)
    assert (cost.passes, cost.block_loads, cost.bytes_loaded) == (1, LAYERS, blocks)
    model.losses([IDS, IDS[::-1], IDS[:3]], [()])  # of two lengths
    model.stock(IDS)
    passes = 4 if keep == "dropped" else 1
    assert (cost.passes, cost.block_loads, cost.bytes_loaded) == (4, passes * LAYERS, passes * blocks)
    model.trace(IDS, enough=lambda layers, _: layers[-1] == 1)
    assert (cost.passes, cost.block_loads) == (5, passes * LAYERS + (2 if keep == "dropped" else 0))


class SlowSource(FolderSource):
    """A folder of which each read of weights takes a while, once it is told to."""

    delay = 0.0
    block_bytes = 1 << 30  # a block is one read

    def read(self, filename, start, stop):
        time.sleep(self.delay)
        return super().read(filename, start, stop)


def test_seconds_go_to_where_they_were_spent(llama):
    source = SlowSource(llama)
    model = Hooked(Checkpoint(source), llama, keep_bytes=0)
    model.trace(IDS)  # what torch does first
    waited, computed = model.blocks.cost.seconds_waiting, model.blocks.cost.seconds_computing
    source.delay = 0.1
    began = time.perf_counter()
    model.losses([IDS], [()])
    took = time.perf_counter() - began
    waited, computed = model.blocks.cost.seconds_waiting - waited, model.blocks.cost.seconds_computing - computed
    assert waited >= 0.9 * 0.1 * LAYERS  # computing takes no time to speak of, in which the next block could be read
    assert 0 < computed < took - waited
