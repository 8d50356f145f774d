"""Attention, computed in one place: `Attend`, the weightless module that stands between projections and their merging.

All that can happen between scores and values happens there and nowhere else: masks, weights of tokens, packed rows,
memories, backends, recorded maps, and the methods that put another `Attend` in its place.

"sdpa"   torch's fused kernels, the default.
"eager"  plain products, scores in float32: slow, and the truth that the others are tested against.
"flex"   torch's flex_attention: one kernel even for packed rows where the model is compiled, plain products where it is
         not. It has no dropout, and no gradients on the CPU: both raise.

A model computes with another backend, or shows its maps, as a twin: its own modules over the same weights.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.packing import check, each
from plait.core.precision import as_asked, as_given
from plait.core.products import Recomputed, hidden, lone, maps, widened
from plait.core.tokens import Tokens, check_mask, unpacked
from plait.errors import PlaitError

BACKENDS = ("sdpa", "eager", "flex")


class Attend(nn.Module):
    """softmax(q k^T * scale + bias) v over the tokens that may be attended to, of queries, keys and values in heads.

    causal: a token sees those before it and itself, unless the context's "allow" says who may attend to whom. dropout:
    of the attention weights, while training. cross: the queries are not of the tokens that are attended to.
    Methods subclass it: `maps` for other weights, `mix` for what has none, `forward` for what needs the tokens.
    """

    backends: tuple[str, ...] = BACKENDS  # which of them it can honour

    def __init__(self, *, causal: bool = False, dropout: float = 0.0, cross: bool = False):
        super().__init__()
        self.causal, self.dropout, self.cross, self.backend = causal, dropout, cross, "sdpa"
        self.tape: list[Tensor] | None = None

    def forward(
        self,
        t: Tokens,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        to: Tokens | None = None,
        bias: Tensor | None = None,
        scale: float | None = None,
    ) -> Tokens:
        """q (B, H, N, E) of `t`; k (B, H, M, E) and v (B, H, M, F) of the tokens `to`, or of `t` itself -> `t` with x
        (B, H, N, F).

        H of keys and values may be a divisor of the queries'. What `to` says of its tokens is honoured here: keep,
        weight, lengths; and of `t`: its memory, and context["allow"]. bias: additive, broadcastable to (B, H, N, M).
        """
        source, memory, lengths = t if to is None else to, t.memory, None
        keep, causal = source.keep, self.causal
        check_mask(keep, k.shape[0])
        if to is None or memory is None:  # a stream that is remembered was cleaned when it was projected
            q, k, v = real_alone(q, k, v, keep)
        if source.weight is not None:
            if self.causal:
                raise PlaitError(
                    "got weighed tokens for causal attention, expected one each: merged ones have no order"
                )
            own = _log(source.weight)
            bias = own if bias is None else bias + own
        if to is None:
            lengths, allow = t.lengths, None if t.context is None else t.context.get("allow")
            causal = causal and allow is None
            if memory is not None:
                if t.weight is not None or lengths is not None:
                    raise PlaitError("got weighed or packed tokens with a memory, expected one plain sequence a row")
                k, v, memory = memory.extend(k, v)
                keep = memory.visible(q.shape[2], causal)
            elif allow is not None:
                allow = allow if allow.dim() == 3 else allow[None]
                keep = allow if keep is None else allow & keep[:, None]
        else:
            unpacked(t, to)
        y = self.mix(q, k, v, keep=keep, bias=bias, scale=scale, lengths=lengths, causal=causal)
        return t.replace(x=y, memory=memory)

    def mix(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        keep: Tensor | None = None,
        bias: Tensor | None = None,
        scale: float | None = None,
        lengths: tuple[int, ...] | None = None,
        causal: bool | None = None,
    ) -> Tensor:
        """As the function `attend`, by `maps` where a subclass has its own or somebody looks at them; what `keep` hides
        must be finite. causal: as the module is, unless given."""
        causal = self.causal if causal is None else causal
        own, dropout = type(self).maps is not Attend.maps, self.dropout if self.training else 0.0
        if own or self.tape is not None:
            if lengths is not None:
                check(q, k, lengths, keep, bias)
                return each(self.mix, q, k, v, lengths, keep=keep, bias=bias, scale=scale, causal=causal)
            weights = self.weights(q, k, keep=keep, bias=bias, scale=scale, causal=causal)
            if own:
                return F.dropout(weights, dropout).to(v.dtype) @ repeated(v, q.shape[1])
        return _attend(
            q,
            k,
            v,
            keep=keep,
            bias=bias,
            causal=causal,
            scale=scale,
            dropout=dropout,
            lengths=lengths,
            backend=self.backend,
        )

    def maps(
        self,
        q: Tensor,
        k: Tensor,
        *,
        keep: Tensor | None = None,
        bias: Tensor | None = None,
        scale: float | None = None,
        causal: bool = False,
    ) -> Tensor:
        """(B, H, N, M) float32: the weights themselves; of a query with nothing to attend to, zeros."""
        mask = _past(q, k, pair_mask(keep), causal)
        gone = None if mask is None and bias is None else hidden(mask, bias)
        found = maps(q, repeated(k, q.shape[1]), mask, bias, scale, gone)
        return found if gone is None else found.masked_fill(gone, 0.0)

    def weights(self, q: Tensor, k: Tensor, **how) -> Tensor:
        """`maps`, which a recorder then sees: for modules that use the same weights several times."""
        found = self.maps(q, k, **how)
        if self.tape is not None:
            self.tape.append(found)
        return found

    def extra_repr(self) -> str:
        return f"causal={self.causal}, dropout={self.dropout}, backend={self.backend}"


def twin(model: nn.Module) -> nn.Module:
    """Modules of its own over the same parameters and buffers: what is changed in the twin leaves `model` alone."""
    return copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})


def with_backend(model: nn.Module, name: str) -> nn.Module:
    """A twin of `model` that computes all attention with `name`, one of `BACKENDS`."""
    if name not in BACKENDS:
        raise PlaitError(f"attention backend: got {name!r}, expected one of {', '.join(BACKENDS)}")
    model = twin(model)
    for module in seams(model):
        if name not in module.backends:
            raise PlaitError(f"{type(module).__name__} has no {name} backend: its own are {', '.join(module.backends)}")
        module.backend = name
    return model


def recorded(model: nn.Module) -> tuple[nn.Module, list[Tensor]]:
    """A twin of `model`, and the list to which it adds every attention map (B, H, N, M) it computes, in call order.

    A packed row gives one map for each run of neighbouring sequences of one length, B being their number. Not to be
    compiled.
    """
    maps: list[Tensor] = []
    model = twin(model)
    for module in seams(model):
        module.tape = maps
    return model, maps


def seams(model: nn.Module) -> list[Attend]:
    """Every place of `model` where attention is computed."""
    return [m for m in model.modules() if isinstance(m, Attend)]


def log_weight(t: Tokens) -> Tensor | None:
    """(B, 1, 1, N) additive bias log(weight): a token that stands for n source tokens is attended to n times."""
    return None if t.weight is None else _log(t.weight)


def _log(weight: Tensor) -> Tensor:
    return weight.clamp(min=1e-6).log()[:, None, None, :]


def repeated(x: Tensor, heads: int) -> Tensor:
    """Keys or values (B, G, M, E) for `heads` queries, each for the H / G neighbours that share it: (B, H, M, E)."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    keep: Tensor | None = None,
    bias: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
    lengths: tuple[int, ...] | None = None,
    backend: str = "sdpa",
) -> Tensor:
    """softmax(q k^T * scale + bias) v, over the keys that may be attended to.

    q (B, H, N, E), k (B, H, M, E), v (B, H, M, F) -> (B, H, N, F).
    keep: (B, M) or (B, N, M) bool, True = may attend. What (B, M) hides is not read, and may be NaN; what some queries
    may see and others not must be finite. bias: additive, broadcastable to (B, H, N, M); -inf hides.
    causal: query n sees keys up to n + M - N. A query with nothing to attend to returns zeros.
    k and v may have fewer heads, a divisor of H: each then serves H / G queries' heads, neighbours.
    lengths: the one row (B = 1) holds sequences of these lengths, each of which attends to itself only, at the cost of
    the sum of their squares. Then N = M, keep is (1, M) and bias is the same for all queries.
    Scores and their softmax are in float32, or float64, in every backend, with gradients and without.
    Raises ValueError where the arguments do not fit each other, or the backend, one of `BACKENDS`, cannot honour one.
    """
    q, k, v = real_alone(q, k, v, keep)
    return _attend(
        q,
        k,
        v,
        keep=keep,
        bias=bias,
        causal=causal,
        scale=scale,
        dropout=dropout,
        lengths=lengths,
        backend=backend,
    )


def real_alone(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, and keys and values (B, H, M, E) with zeros where `keep` (B, M) says that they are not real: a weight of
    zero times NaN is NaN."""
    if keep is None or keep.dim() != 2:
        return q, k, v
    blank = ~keep[:, None, :, None]
    if torch.is_grad_enabled():  # all three are copies, or the projection that they are views of is kept beside two
        q = q.contiguous()
    return q, k.masked_fill(blank, 0.0), v.masked_fill(blank, 0.0)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    keep: Tensor | None,
    bias: Tensor | None,
    causal: bool,
    scale: float | None,
    dropout: float,
    lengths: tuple[int, ...] | None = None,
    backend: str,
) -> Tensor:
    """`attend` of what is finite."""
    if backend not in BACKENDS:
        raise PlaitError(f"attention backend: got {backend!r}, expected one of {', '.join(BACKENDS)}")
    if q.shape[1] != k.shape[1]:
        if q.shape[1] % k.shape[1]:
            raise PlaitError(f"got {q.shape[1]} heads of queries and {k.shape[1]} of keys, expected a multiple")
        # past alone needs no mask where keys are repeated, which is smaller than a mask of N x M
        bare = causal and keep is None and bias is None and 1 < q.shape[2] == k.shape[2] and backend == "sdpa"
        if lengths is None and not dropout and backend != "flex" and not bare:
            return _grouped(q, k, v, keep, bias, causal, scale, backend)
        k, v = repeated(k, q.shape[1]), repeated(v, q.shape[1])
    if lengths is not None:
        check(q, k, lengths, keep, bias)
        if backend != "flex":
            how = dict(causal=causal, scale=scale, dropout=dropout, backend=backend)
            return each(_attend, q, k, v, lengths, keep=keep, bias=bias, **how)
    mask, n, m = pair_mask(keep), q.shape[-2], k.shape[-2]
    q, k, v = as_asked(q, k, v)
    if backend == "flex":
        from plait.core.flex import flex

        y = flex(q, k, v, mask, bias, causal, scale, dropout, lengths)
        return y if mask is None and bias is None else y.masked_fill(hidden(mask, bias), 0.0)
    again = backend == "sdpa" and not dropout and _recomputed(q, k, v, bias)
    plain = backend == "eager" or not again and _plain_alone(q, k, v, bias)
    if causal and (plain or mask is not None or bias is not None or n != m):
        mask, causal = _past(q, k, mask, causal), False
    gone, learns = None, torch.is_grad_enabled()
    certain = q.device.type == "cpu" and not (plain or learns or torch.compiler.is_compiling())
    if (mask is not None or bias is not None) and not certain:
        gone = hidden(mask, bias)
    if plain:
        with as_given(q.device):
            y = F.dropout(maps(q, k, mask, bias, scale, gone), dropout).to(v.dtype) @ v
    else:
        add = _added(q, mask, bias, gone if learns else None)
        if again:
            y = Recomputed.apply(q, k, v, add, causal, scale)
        elif not dropout and lone(q):
            y = widened(q, k, v, add, scale)
        else:
            y = F.scaled_dot_product_attention(q, k, v, add, dropout, causal, scale=scale)
    # Of a query with nothing to attend to kernels give NaN, a mean, or, on the CPU, the zeros that are promised.
    return y if gone is None else y.masked_fill(gone, 0.0)


def _added(q: Tensor, mask: Tensor | None, bias: Tensor | None, gone: Tensor | None) -> Tensor | None:
    """Mask and bias as torch's kernels take them. gone: queries that attend to all, lest their gradients be NaN."""
    if bias is None:
        return mask if mask is None or gone is None else mask | gone
    # the CPU's kernel adds it in float32; others want all of one type
    add = bias if q.device.type == "cpu" and bias.dtype == torch.float32 else bias.to(q.dtype)
    add = add if mask is None else add.masked_fill(~mask, float("-inf"))
    return add if gone is None else add.masked_fill(gone, 0.0)


def pair_mask(keep: Tensor | None) -> Tensor | None:
    """(B, M) or (B, N, M) -> (B, 1, 1 or N, M)."""
    return keep if keep is None else keep[:, None, None, :] if keep.dim() == 2 else keep[:, None]


def _grouped(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor | None,
    bias: Tensor | None,
    causal: bool,
    scale: float | None,
    backend: str,
) -> Tensor:
    """Attention whose keys and values several queries share: the queries of a group stand one after another, so that
    nothing is copied for them."""
    heads, n, m = k.shape[1], q.shape[2], k.shape[2]
    share = q.shape[1] // heads
    if causal and n > 1:
        past = _behind(q, k, pair_mask(keep))
        keep = past[:, 0] if past.dim() == 4 else past[None]
    if keep is not None and keep.dim() == 3:
        keep = keep.repeat(1, share, 1)  # (B, share * N, M)
    if bias is not None:
        h = bias.shape[1]
        bias = bias.expand(-1, h if h == 1 else q.shape[1], n, m)
        bias = bias.repeat(1, 1, share, 1) if h == 1 else bias.unflatten(1, (heads, share)).flatten(2, 3)
    q = q.unflatten(1, (heads, share)).flatten(2, 3)
    y = _attend(q, k, v, keep=keep, bias=bias, causal=False, scale=scale, dropout=0.0, backend=backend)
    return y.unflatten(2, (share, n)).flatten(1, 2)


SHORT = 384  # tokens


def _recomputed(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> bool:
    """Whether the backward pass is by products: in half precision that of the CPU's fused kernel pays a fixed price for
    each head, so that up to about 400 tokens it takes 1.2 to 4 times as long, and it gives a bias no gradient."""
    half = q.dtype in (torch.bfloat16, torch.float16)
    if q.device.type != "cpu" or not half or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    if v.shape[-1] != q.shape[-1] or q.stride(-1) != 1:
        return False
    learnt = bias is not None and bias.requires_grad
    short = max(q.shape[-2], k.shape[-2]) <= SHORT and any(x.requires_grad for x in (q, k, v))
    return learnt or short


def _plain_alone(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> bool:
    """Whether no fused kernel of the CPU takes it, so that what torch does instead takes longer than products: values
    of another width than keys, channels that do not lie side by side, a bias that gets a gradient."""
    if q.device.type != "cpu":
        return False
    learnt = torch.is_grad_enabled() and bias is not None and bias.requires_grad
    return v.shape[-1] != q.shape[-1] or q.stride(-1) != 1 or learnt


def _past(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool) -> Tensor | None:
    """`mask` without the keys that lie ahead of each query, if `causal`."""
    return _behind(q, k, mask) if causal and q.shape[-2] != 1 else mask


def _behind(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    n, m = q.shape[-2], k.shape[-2]
    past = torch.ones(n, m, dtype=torch.bool, device=q.device).tril(m - n)
    return past if mask is None else mask & past
