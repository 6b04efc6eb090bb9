"""The streamed model beside what `from_pretrained` makes of the same folder."""

import pytest
import torch
from models import (
    MASKED,
    PROMPT_IDS,
    hooked,
    load_plain,
)
from safetensors.torch import load_file

from analyzer.checkpoint.shards import SINGLE

KEEP = {"dropped": 0, "kept": 1 << 40}


WINDOWS = [list(range(1, 17)), [4, 4, 9, 2, 16, 1, 3], [7, 1, 2, 3, 16, 16, 5]]


def blocks_of(model):
    return [block.module for block in model.stack]


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


def stored_bytes(folder, *, of=""):
    tensors = load_file(folder / SINGLE)
    return sum(tensor.numel() * tensor.element_size() for name, tensor in tensors.items() if of in name)
