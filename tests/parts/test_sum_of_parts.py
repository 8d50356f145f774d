"""A head that is a sum: the prior, what each part says, and what their fusion adds."""

from __future__ import annotations

import torch

from plait.parts.heads.parts import Features, SumOfParts

B, D, K = 4, 6, 3
PRIOR = torch.tensor([0.5, -1.0, 2.0])


def head() -> SumOfParts:
    torch.manual_seed(0)
    made = SumOfParts(D, {"image": 5, "number": 4}, {"number": 2}, PRIOR)
    for p in made.parameters():
        torch.nn.init.normal_(p)
    return made


def features(present: dict[str, list[bool]], visible: dict | None = None) -> Features:
    g = torch.Generator().manual_seed(1)
    parts = {"image": torch.randn(B, 5, generator=g), "number": torch.randn(B, 4, generator=g)}
    there = {slot: torch.tensor(p) for slot, p in present.items()}
    seen = None if visible is None else {slot: torch.tensor(p) for slot, p in visible.items()}
    raw = {"number": torch.randn(B, 2, generator=g)}
    return Features(torch.randn(B, D, generator=g), parts, raw, there, None, seen)


EVERY = {"image": [True] * B, "number": [True] * B}


def test_the_whole_is_the_sum_and_each_part_answers_with_the_prior() -> None:
    h, f = head(), features(EVERY)
    total, own = h(f)
    image = h.parts["image"](f.parts["image"])
    number = h.parts["number"](f.parts["number"]) + h.linear["number"](f.raw["number"])
    torch.testing.assert_close(own, {"image": PRIOR + image, "number": PRIOR + number})
    torch.testing.assert_close(total, PRIOR + h.fused(f.fused) + image + number)


def test_absent_parts_say_nothing_and_a_row_without_any_gets_the_prior() -> None:
    h, f = head(), features({"image": [True, False, True, False], "number": [True, True, False, False]})
    total, own = h(f)
    assert torch.equal(total[3], PRIOR)
    torch.testing.assert_close(total[1], h.fused(f.fused)[1] + own["number"][1])
    torch.testing.assert_close(total[2], h.fused(f.fused)[2] + own["image"][2])
    hidden = features(EVERY, {"image": [False] * B, "number": [True] * B})  # hidden from the whole, heard alone
    total, own = h(hidden)
    torch.testing.assert_close(total, h.fused(hidden.fused) + own["number"])
    assert not torch.allclose(own["image"], PRIOR.expand(B, K))


def test_the_loss_of_the_whole_reaches_no_part_where_there_are_several() -> None:
    h, f = head(), features(EVERY)
    h(f)[0].sum().backward()
    assert h.fused.weight.grad.abs().sum() > 0
    assert all(layer.weight.grad is None for layer in [*h.parts.values(), *h.linear.values()])
    h(f)[1]["image"].sum().backward()
    assert h.parts["image"].weight.grad.abs().sum() > 0 and h.parts["number"].weight.grad is None
    alone = SumOfParts(D, {"image": 5}, {}, PRIOR)  # a single part has no loss of its own
    alone(f._replace(present={"image": f.present["image"]}))[0].sum().backward()
    assert alone.parts["image"].weight.grad.abs().sum() > 0


def test_it_starts_at_the_prior_and_can_be_silenced_to_the_linear_answer() -> None:
    f = features(EVERY)
    fresh = SumOfParts(D, {"image": 5, "number": 4}, {"number": 2}, PRIOR)
    assert torch.equal(fresh(f)[0], PRIOR.expand(B, K)) and not any(p.requires_grad for p in fresh.linear.parameters())
    h = head()
    straight = h.straight(f.raw, f.present)
    torch.testing.assert_close(straight, PRIOR + h.linear["number"](f.raw["number"]))
    with torch.no_grad():
        h.quiet()
    torch.testing.assert_close(h(f)[0], straight)
    gone = features({"image": [True] * B, "number": [False] * B})
    assert torch.equal(h.straight(gone.raw, gone.present), PRIOR.expand(B, K))
