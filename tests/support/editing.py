"""A plain model with weights edited in place: what edits do while a model runs must equal it."""

import torch
from models import (
    streams,
)


def edited(plain, coordinates, compute):
    """Compute something while weights of the plain model are zero."""
    views = [plain.downs[c.layer, c.expert] for c in coordinates]
    kept = [view[c.row, c.col].item() for view, c in zip(views, coordinates, strict=True)]
    with torch.no_grad():
        for view, c in zip(views, coordinates, strict=True):
            view[c.row, c.col] = 0
        found = compute()
        for view, c, value in zip(views, coordinates, kept, strict=True):
            view[c.row, c.col] = value
    return found


def plain_stream(plain, ids):
    return torch.stack(streams(plain.model, plain.blocks, ids))[:, 0].numpy()  # [layers, T, hidden]


def plain_loss(plain, ids):
    with torch.no_grad():
        logits = plain.model(input_ids=torch.tensor([ids])).logits[0]
    return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids)[1:]).item()
