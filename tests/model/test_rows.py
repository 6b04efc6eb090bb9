"""Blocks on few rows of a batch at a time."""

import pytest
import torch
from models import (
    hooked,
    load_plain,
    save_random,
)
from streamed import assert_close


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
