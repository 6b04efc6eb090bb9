"""A plain model with weights edited in place: what edits do while a model runs must equal it."""

import torch
from models import streams


def edited(plain, factors, compute):
    """Compute something while weights of the plain model are multiplied: {coordinate: factor}, or those to zero."""
    factors = factors if isinstance(factors, dict) else dict.fromkeys(factors, 0.0)
    views = [plain.downs[c.layer, c.expert] for c in factors]
    kept = [view[c.row, c.col].item() for view, c in zip(views, factors, strict=True)]
    with torch.no_grad():
        for view, (c, factor) in zip(views, factors.items(), strict=True):
            view[c.row, c.col] *= factor
        found = compute()
        for view, c, value in zip(views, factors, kept, strict=True):
            view[c.row, c.col] = value
    return found


def plain_stream(plain, ids):
    return torch.stack(streams(plain.model, plain.blocks, ids))[:, 0].numpy()  # [layers, T, hidden]


def plain_loss(plain, ids):
    with torch.no_grad():
        logits = plain.model(input_ids=torch.tensor([ids])).logits[0]
    return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids)[1:]).item()
