"""One attention, several backends: all agree with each other on every argument, and raise where they cannot honour
one."""

from __future__ import annotations

import itertools
import math
from functools import partial
from unittest import mock

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
    """The definition, query by query, in float64. What may not be attended to is not looked at."""
    b, h, n, m = *q.shape[:3], k.shape[2]
    bias = torch.zeros(1) if bias is None else bias
    bias = bias.expand(b, h, n, m)
    rows = []
    for r, head, i in itertools.product(range(b), range(h), range(n)):
        may = [j for j in range(m) if keep is None or (keep[r, j] if keep.dim() == 2 else keep[r, i, j])]
        may = [j for j in may if (not causal or j <= i + m - n) and bias[r, head, i, j] > -math.inf]
        s = (k[r, head, may].double() @ q[r, head, i].double()) * (q.shape[3] ** -0.5 if scale is None else scale)
        rows.append((s + bias[r, head, i, may].double()).softmax(0) @ v[r, head, may].double())
    return torch.stack(rows).unflatten(0, (b, h, n))


@st.composite
def problems(draw):
    """Arguments of attend, with masks and biases that may hide every key of a row. What is not real is NaN."""
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
    kind = draw(st.sampled_from(sorted(masks)))
    how["keep"] = masks[kind]
    if kind == "keys":
        k, v = (x.masked_fill(~masks["keys"][:, None, :, None], math.nan) for x in (k, v))
    sizes = {"none": None, "full": (b, h, n, m), "keys": (b, 1, 1, m), "heads": (1, h, n, m), "one": (1, 1, 1, 1)}
    size = sizes[draw(st.sampled_from(sorted(sizes)))]
    how["bias"] = None if size is None else torch.randn(size, generator=g)
    if size is not None and draw(st.booleans()):
        hides = torch.rand(size, generator=g) < 0.3
        hides[:, :, -1:] |= torch.rand(1, generator=g) < 0.5
        how["bias"] = how["bias"].masked_fill(hides, -math.inf)
    return (q, k, v), how


def through_the_seam(name, problem):
    """What an `Attend` makes of it, and its maps."""
    (q, k, v), how = problem
    watched, maps = recorded(with_backend(Attend(causal=how["causal"]), name))
    asking, to = Tokens(q.new_zeros(q.shape[0], q.shape[2], 1)), Tokens(k[:, 0], keep=how["keep"])
    return watched(asking, q, k, v, to=to, bias=how["bias"], scale=how["scale"]).x, maps


@torch.no_grad()
def agrees(name, problem):
    (q, k, v), how = problem
    expected = by_hand(q, k, v, **how).float()
    torch.testing.assert_close(attend(q, k, v, **how, backend=name), expected, rtol=1e-5, atol=1e-5)
    found, maps = through_the_seam(name, problem)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert len(maps) == 1 and maps[0].shape == (*q.shape[:3], k.shape[2])
    torch.testing.assert_close(maps[0] @ v.nan_to_num(), expected, rtol=1e-5, atol=1e-5)
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
    ).float()
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


def with_gradients(how, tensors, f):
    """What `f` gives, and the gradients of a number made of it, in float64; f(q, k, v, **how)."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    how = dict(how)
    if how["bias"] is not None:
        how["bias"] = how["bias"].clone().requires_grad_()
        leaves.append(how["bias"])
    y = f(*leaves[:3], **how)
    total = (y.double() * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))).sum()
    return [t.detach().double() for t in (y, *torch.autograd.grad(total, leaves))]


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("most", [1, 700, 2**19], ids=["row by row", "rows by rows", "at once"])
@given(problem=problems())
@quick
@torch.no_grad()
def test_one_query_in_half_precision_is_the_definition(kind, most, problem):
    (q, k, v), how = problem
    q, k, v = (x.to(kind) for x in (q[:, :, -1:], k, k * 0.5))
    how |= {name: x[..., -1:, :] for name in ("bias",) if (x := how[name]) is not None}
    if how["keep"] is not None and how["keep"].dim() == 3:
        how["keep"] = how["keep"][:, -1:]
    expected = by_hand(q, k, v, **how).float()
    with mock.patch("plait.core.products.WIDE", most):
        found = attend(q, k, v, **how)
    assert found.dtype == kind
    torch.testing.assert_close(found.float(), expected, rtol=2**-8, atol=2**-9)  # but for the answer's own rounding


@quick
@given(st.sampled_from(["sdpa", "eager"]), st.sampled_from([torch.float32, torch.bfloat16]), problems())
def test_gradients_are_those_of_the_definition(name, dtype, problem):
    """And what is computed with gradients is what is without, bit for bit."""
    tensors, how = problem
    tensors = [t.to(dtype) for t in tensors]
    truth = with_gradients(how, tensors, by_hand)
    found = with_gradients(how, tensors, partial(attend, backend=name))
    near = 1e-5 if dtype == torch.float32 else 3e-2
    for mine, want in zip(found, truth, strict=True):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine, want.nan_to_num(), rtol=near, atol=near * max(1.0, float(want.abs().max())))
    with torch.no_grad():
        again = attend(*tensors, **how, backend=name).double()
    torch.testing.assert_close(again, found[0], rtol=0, atol=0 if dtype == torch.bfloat16 else 1e-6)


@pytest.mark.parametrize("width, size", [(32, 49), (64, 197)])
@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_bfloat16_is_as_near_to_float64_as_torchs_own_kernel(width, size, spread):
    """In training as in evaluation: scores that are rounded before the softmax are 2 to 5 times as far."""
    g = torch.Generator().manual_seed(0)
    tensors = [(torch.randn(2, 3, size, width, generator=g) * s).bfloat16() for s in (spread, 1, 1)]
    for bias in (None, torch.randn(1, 3, size, size, generator=g)):
        exact = with_gradients({"bias": bias}, [t.double() for t in tensors], partial(attend, backend="eager"))
        mine = with_gradients({"bias": bias}, tensors, attend)
        theirs = with_gradients({"bias": bias}, tensors, fused)
        for a, b, truth in zip(mine, theirs, exact, strict=True):
            far, usual = (float((x - truth).norm() / truth.norm()) for x in (a, b))
            assert far < 1.4 * usual if usual else far < 4e-3, (far, usual)
        with torch.no_grad():
            assert torch.equal(attend(*tensors, bias=bias).double(), mine[0])


def fused(q, k, v, bias):
    """torch's own kernel, which gives a bias no gradient: zeros stand there."""
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.detach())
    return y if bias is None else y + bias.sum() * 0


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
