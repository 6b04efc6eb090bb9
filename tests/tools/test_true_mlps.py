"""Down projections of modules written by hand, whose names say nothing, are told by running them."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from true_places import find_true_mlps

WIDTH, INNER, LATENT = 16, 24, 8


class Mixer(nn.Module):
    """Attention with one head: its output is a linear map of what other linear maps made, but mixes positions."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x):
        return self.d(functional.scaled_dot_product_attention(self.a(x), self.b(x), self.c(x), is_causal=True))


class Gated(nn.Module):
    def __init__(self, inner=INNER):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(WIDTH, inner), nn.Linear(WIDTH, inner), nn.Linear(inner, WIDTH)

    def forward(self, x):
        return self.c(functional.silu(self.a(x)) * self.b(x))


class Convolved(nn.Module):
    """Gated, but a convolution over positions lies in between: a mixer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, 2 * INNER), nn.Linear(INNER, WIDTH)
        self.between = nn.Conv1d(INNER, INNER, 3, padding=2, groups=INNER)

    def forward(self, x):
        gate, up = self.a(x).chunk(2, -1)
        up = self.between(up.mT)[..., : x.shape[1]].mT
        return self.b(functional.silu(gate) * up)


class LowRank(nn.Module):
    """Two linear maps with a norm between them, and nothing that bends."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(WIDTH, 32), nn.LayerNorm(32), nn.Linear(32, WIDTH)

    def forward(self, x):
        return self.c(self.b(self.a(x)))


class Experts(nn.Module):
    """Two experts in one parameter, [expert, in, out], in a latent space, weighted by a router."""

    def __init__(self):
        super().__init__()
        self.router, self.into, self.out = nn.Linear(WIDTH, 2), nn.Linear(WIDTH, LATENT), nn.Linear(LATENT, WIDTH)
        self.a, self.b = nn.Parameter(torch.randn(2, LATENT, INNER)), nn.Parameter(torch.randn(2, INNER, LATENT))

    def forward(self, x):
        weights, latent = self.router(x).softmax(-1), self.into(x)
        made = [functional.relu(latent @ self.a[e]) @ self.b[e] * weights[..., e : e + 1] for e in range(2)]
        return self.out(sum(made))


class Block(nn.Module):
    def __init__(self, *parts, after=False):
        super().__init__()
        self.parts, self.after = nn.ModuleList(parts), after
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in parts)

    def forward(self, x):
        for part, norm in zip(self.parts, self.norms, strict=True):
            x = norm(x + part(x)) if self.after else x + part(norm(x))
        return x


class Model(nn.Module):
    def __init__(self, *blocks):
        super().__init__()
        self.begin, self.stack, self.end = nn.Embedding(200, WIDTH), nn.ModuleList(blocks), nn.Linear(WIDTH, 200)

    def forward(self, input_ids):
        x = self.begin(input_ids)
        for block in self.stack:
            x = block(x)
        return self.end(x)


def found(*blocks):
    torch.manual_seed(0)
    return find_true_mlps(Model(*blocks).requires_grad_(False))


def told(result):
    return [(t.place.parameter, t.layer, t.mlp, t.expert, t.writes) for t in result.matrices]


@pytest.mark.parametrize("after", [False, True])
def test_of_attention_and_a_gated_mlp_the_mlps_output_alone(after):
    result = found(*(Block(Mixer(), Gated(), after=after) for _ in range(2)))
    assert told(result) == [(f"stack.{n}.parts.1.c.weight", n, None, None, "residual") for n in range(2)]
    assert {(t.stack, t.place.rows, t.place.cols, t.how) for t in result.matrices} == {("stack", WIDTH, INNER, "run")}
    assert not result.unreached


def test_what_mixes_positions_or_bends_nothing_is_none():
    result = found(Block(Convolved(), LowRank(), Mixer(), Gated()))
    assert told(result) == [("stack.0.parts.3.c.weight", 0, None, None, "residual")]


def test_a_bottleneck_is_an_adapter():
    result = found(Block(Mixer(), Gated(), Gated(inner=4)))
    assert [name for name, *_ in told(result)] == ["stack.0.parts.1.c.weight"]
    assert result.asides == {"stack.*.parts.*.c.weight": "narrower inside than outside"}


def test_mlps_one_after_another_are_no_experts():
    result = found(Block(Gated(), Mixer(), Gated()))
    assert told(result) == [(f"stack.0.parts.{2 * n}.c.weight", 0, n, None, "residual") for n in range(2)]


def test_experts_in_a_latent_space():
    result = found(Block(Mixer(), Experts()))
    assert told(result) == [("stack.0.parts.1.b", 0, None, n, "latent") for n in range(2)]
    first, second = (t.place for t in result.matrices)
    assert (first.rows, first.cols, first.row_step, first.col_step) == (LATENT, INNER, 1, LATENT)
    assert (first.offset, second.offset) == (0, LATENT * INNER)


def test_one_block_applied_again_and_again():
    block = Block(Mixer(), Gated())
    result = found(block, block, block)
    assert told(result) == [("stack.0.parts.1.c.weight", 0, None, None, "residual")]
    assert result.matrices[0].layers == (0, 1, 2)
