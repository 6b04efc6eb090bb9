"""The experiments done plainly: stock transformers, weights edited in place, hooks of the tests' own."""

from contextlib import contextmanager

import numpy as np
import torch
import transformers


def windows(folder, length, text="text.txt"):
    """Return the token ids of a text in windows, the tail dropped, [windows, length]."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer((folder / text).read_text(), add_special_tokens=False)["input_ids"]
    return torch.tensor(ids[: len(ids) // length * length]).reshape(-1, length)


def losses(model, batch):
    """Return the mean negative log-likelihood of each window, [windows]."""
    found = []
    for ids in batch:
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0]
        found.append(torch.nn.functional.cross_entropy(logits[:-1].double(), ids[1:]).item())
    return np.array(found)


def said(model, ids, length, generator):
    """Return what a model says, drawn by its probabilities: a text of which it knows something."""
    while len(ids) < length:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        logits[[0, 17, 18]] = -torch.inf  # no word
        ids = [*ids, int(torch.multinomial(logits.softmax(dim=-1), 1, generator=generator))]
    return ids


def down(model, coordinate):
    return model.model.layers[coordinate.layer].mlp.down_proj


@contextmanager
def times(model, factors):
    """While the context lasts, weights are multiplied in place: {coordinate: factor}."""
    kept = {c: down(model, c).weight[c.row, c.col].item() for c in factors}
    with torch.no_grad():
        for c, factor in factors.items():
            down(model, c).weight[c.row, c.col] *= factor
        try:
            yield
        finally:
            for c, value in kept.items():
                down(model, c).weight[c.row, c.col] = value


@contextmanager
def zeroed_but(model, coordinate, positions_of):
    """While the context lasts, a weight is zero, and its channel of the output as it was at some positions.

    `positions_of` chooses these by the channel as it was, [T].
    """
    module = down(model, coordinate)

    def hook(_module, args, output):
        (entered,) = args
        weight = module.weight[coordinate.row, coordinate.col]
        clean = output[0, :, coordinate.row]
        pruned = clean - weight * entered[0, :, coordinate.col]
        keep = positions_of(clean)
        output = output.clone()
        output[0, :, coordinate.row] = torch.where(keep, clean, pruned)
        return output

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
