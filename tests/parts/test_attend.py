"""One attention, several backends: all agree with each other on every argument, and raise where they cannot honour
one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plait.core.attend import BACKENDS, Attend, attend, recorded, with_backend
from plait.core.block import Attention, CrossAttention
from plait.core.packing import owners, pack, unpack
from plait.core.tokens import Tokens, join, mean, prepend

# Without torch.compile flex traces every call anew, which takes a tenth of a second: fewer examples.
quick, few = (
    settings(max_examples=n, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    for n in (60, 8)
)
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def by_hand(q, k, v, keep=None, bias=None, causal=False, scale=None):
    """The definition, query by query, in float64."""
    b, h, n, m = *q.shape[:3], k.shape[2]
    out = torch.zeros(b, h, n, v.shape[3], dtype=torch.float64)
    bias = torch.zeros(1) if bias is None else bias
    bias = bias.expand(b, h, n, m)
    for r in range(b):
        for head in range(h):
            for i in range(n):
                may = [j for j in range(m) if keep is None or (keep[r, j] if keep.dim() == 2 else keep[r, i, j])]
                may = [j for j in may if not causal or j <= i + m - n]
                if may:
                    s = (k[r, head, may].double() @ q[r, head, i].double()) * (
                        q.shape[3] ** -0.5 if scale is None else scale
                    )
                    out[r, head, i] = (s + bias[r, head, i, may].double()).softmax(0) @ v[r, head, may].double()
    return out.float()


@st.composite
def problems(draw):
    """Arguments of attend, with masks that may hide every key of a row."""
    b, h, n, m, e, f = (draw(st.integers(1, top)) for top in (3, 3, 6, 6, 5, 5))
    f = draw(st.sampled_from([e, f]))  # fused kernels want both widths the same
    g = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    q, k, v = (
        torch.randn(b, h, n, e, generator=g),
        torch.randn(b, h, m, e, generator=g),
        torch.randn(b, h, m, f, generator=g),
    )
    how = {"causal": draw(st.booleans()), "scale": draw(st.sampled_from([None, 0.7]))}
    masks = {"none": None, "keys": torch.rand(b, m, generator=g) > 0.5, "pairs": torch.rand(b, n, m, generator=g) > 0.5}
    how["keep"] = masks[draw(st.sampled_from(sorted(masks)))]
    sizes = {"none": None, "full": (b, h, n, m), "keys": (b, 1, 1, m), "heads": (1, h, n, m), "one": (1, 1, 1, 1)}
    size = sizes[draw(st.sampled_from(sorted(sizes)))]
    how["bias"] = None if size is None else torch.randn(size, generator=g)
    return (q, k, v), how


@torch.no_grad()
def agrees(name, problem):
    (q, k, v), how = problem
    expected = by_hand(q, k, v, **how)
    torch.testing.assert_close(attend(q, k, v, **how, backend=name), expected, rtol=1e-5, atol=1e-5)
    watched, maps = recorded(with_backend(Attend(), name))
    torch.testing.assert_close(watched.mix(q, k, v, **how), expected, rtol=1e-5, atol=1e-5)
    assert len(maps) == 1 and maps[0].shape == (*q.shape[:3], k.shape[2])
    torch.testing.assert_close(maps[0] @ v, expected, rtol=1e-5, atol=1e-5)
    total = maps[0].sum(-1)
    assert bool(((total - 1).abs() < 1e-5).logical_or(total == 0).all())


@quick
@given(st.sampled_from(["sdpa", "eager"]), problems())
def test_every_backend_is_the_definition_and_records_its_maps(name, problem):
    agrees(name, problem)


@few
@given(problems())
def test_flex_is_the_definition_and_records_its_maps(problem):
    agrees("flex", problem)


@st.composite
def packed(draw):
    lengths = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=6)))
    h, e, f, s = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 5)), sum(lengths)
    g = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    q, k, v = (
        torch.randn(1, h, s, e, generator=g),
        torch.randn(1, h, s, e, generator=g),
        torch.randn(1, h, s, f, generator=g),
    )
    how = {"causal": draw(st.booleans())}
    how["keep"] = torch.rand(1, s, generator=g) > 0.4 if draw(st.booleans()) else None
    how["bias"] = torch.randn(1, draw(st.sampled_from([1, h])), 1, s, generator=g) if draw(st.booleans()) else None
    return (q, k, v), lengths, how


@torch.no_grad()
def stays_inside(name, problem):
    (q, k, v), lengths, how = problem
    cut = [t.split(lengths, 2) for t in (q, k, v)]
    keeps = [None] * len(lengths) if how["keep"] is None else how["keep"].split(lengths, 1)
    biases = [None] * len(lengths) if how["bias"] is None else how["bias"].split(lengths, 3)
    alone = torch.cat(
        [by_hand(*qkv, keep=a, bias=b, causal=how["causal"]) for *qkv, a, b in zip(*cut, keeps, biases)], 2
    )
    torch.testing.assert_close(attend(q, k, v, lengths=lengths, **how, backend=name), alone, rtol=1e-5, atol=1e-5)
    watched, maps = recorded(with_backend(Attend(), name))
    torch.testing.assert_close(watched.mix(q, k, v, lengths=lengths, **how), alone, rtol=1e-5, atol=1e-5)
    # what it costs: squares of the parts
    assert sum(m.numel() for m in maps) == q.shape[1] * sum(n * n for n in lengths)


@quick
@given(st.sampled_from(["sdpa", "eager"]), packed())
def test_a_packed_row_is_its_sequences_one_by_one(name, problem):
    stays_inside(name, problem)


@few
@given(packed())
def test_a_packed_row_under_flex_is_its_sequences_one_by_one(problem):
    stays_inside("flex", problem)


@quick
@given(problems())
def test_gradients_of_the_fused_kernel_are_those_of_plain_products(problem):
    tensors, how = problem
    found = []
    for name in ("sdpa", "eager"):
        leaves = [t.clone().requires_grad_() for t in tensors]
        bias = None if how["bias"] is None else how["bias"].clone().requires_grad_()
        attend(*leaves, **{**how, "bias": bias}, backend=name).pow(2).sum().backward()
        found.append([t.grad for t in [*leaves, *([] if bias is None else [bias])]])
    for mine, truth in zip(*found):
        torch.testing.assert_close(mine, truth, rtol=1e-4, atol=1e-5)
        assert mine.isfinite().all()


def test_gradients_of_a_packed_row():
    lengths, g = (3, 5, 5, 1), torch.Generator().manual_seed(0)
    leaves = [torch.randn(1, 2, 14, 4, generator=g).requires_grad_() for _ in range(3)]
    attend(*leaves, lengths=lengths).pow(2).sum().backward()
    packed = [t.grad.clone() for t in leaves]
    for t in leaves:
        t.grad = None
    owner = owners(lengths, torch.device("cpu"))
    attend(*leaves, keep=(owner[:, None] == owner)[None]).pow(2).sum().backward()
    for a, t in zip(packed, leaves):
        torch.testing.assert_close(a, t.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_dropout_drops_whole_weights_and_keeps_the_mean(name):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 7, 4) for _ in range(3))
    assert torch.equal(attend(q, k, v, dropout=0.0, backend=name), attend(q, k, v, backend=name))
    draws = torch.stack([attend(q, k, v, dropout=0.3, backend=name) for _ in range(3000)])
    assert not torch.equal(draws[0], draws[1])
    assert (draws.mean(0) - attend(q, k, v)).abs().max() < 6 * draws.std(0).max() / math.sqrt(3000)


def test_what_a_backend_cannot_do_it_says():
    q, k, v = (torch.randn(1, 2, 6, 4) for _ in range(3))
    with pytest.raises(ValueError, match="expected one of sdpa, eager, flex"):
        with_backend(Attend(), "flash")
    with pytest.raises(ValueError, match="expected one of sdpa, eager, flex"):
        attend(q, k, v, backend="flash")
    with pytest.raises(ValueError, match="no dropout"):
        attend(q, k, v, dropout=0.1, backend="flex")
    with pytest.raises(ValueError, match="no gradients on the CPU"):
        attend(q.requires_grad_(), k, v, backend="flex")


@pytest.mark.parametrize("name", BACKENDS)
@torch.no_grad()
def test_packing_that_does_not_fit_raises(name):
    q, k = torch.randn(1, 2, 6, 4), torch.randn(1, 2, 5, 4)
    for q_, k_, lengths, more in (
        (q, q, (3, 2), {}),
        (q, k, (3, 3), {}),
        (q.expand(2, -1, -1, -1), q.expand(2, -1, -1, -1), (3, 3), {}),
        (q, q, (3, 3), {"keep": torch.ones(1, 6, 6, dtype=torch.bool)}),
        (q, q, (3, 3), {"bias": torch.zeros(1, 2, 6, 6)}),
    ):
        with pytest.raises(ValueError, match="packed attention: got"):
            attend(q_, k_, k_, lengths=lengths, **more, backend=name)


@torch.no_grad()
def test_layers_keep_packed_sequences_apart_or_say_that_they_cannot():
    torch.manual_seed(0)
    layer, parts = Attention(8, 2).eval(), [torch.randn(n, 8) for n in (4, 2, 4, 4)]
    t = pack(parts)
    for whole, part in zip(unpack(layer(t)), parts):
        torch.testing.assert_close(whole, layer(Tokens(part[None])).x[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mean(t), torch.stack([p.mean(0) for p in parts]))
    with pytest.raises(ValueError, match="lengths"):
        prepend(torch.zeros(1, 1, 8), t)
    with pytest.raises(ValueError, match="lengths"):
        join(t, t)
    with pytest.raises(ValueError, match="packed row"):
        CrossAttention(8, 2)(Tokens(t.x).reading(stream=t))
    with pytest.raises(ValueError, match="no sequences"):
        pack([])


@torch.no_grad()
def test_flex_compiles_into_one_kernel_for_a_packed_row():
    torch._dynamo.reset()
    q, k, v = (torch.randn(1, 2, 24, 8) for _ in range(3))
    keep, bias = torch.rand(1, 24) > 0.3, torch.randn(1, 1, 1, 24)
    how = dict(keep=keep, bias=bias, lengths=(10, 7, 7))
    compiled = torch.compile(lambda *t: attend(*t, **how, backend="flex"), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v), attend(q, k, v, **how), rtol=1e-5, atol=1e-5)
