"""ALBEF's objective and what it is made of: negatives, hidden words, queues, the teacher; and the layouts of the
published files."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

import plait
from plait.core.catalog import build
from plait.core.weights import convert
from plait.parts.objectives.contrastive import contrastive
from plait.parts.objectives.matching import hard_negatives, hide_words
from plait.parts.objectives.momentum import Queue, alike, ema_update, queue_contrast, soft_contrast
from plait.systems.pairs import albef
from tests.contract.examples import example
from tests.parity import albef as official


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def training(seed: int = 0, **arguments):
    model = plait.create_model("albef_toy", seed=seed, answer_depth=0, **arguments).train()
    return model, albef.make_state(model, 0)


def units(rows: int, width: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, width, generator=seeded(seed)), dim=-1)


def queues(size: int = 6, width: int = 8) -> torch.nn.ModuleDict:
    return torch.nn.ModuleDict({"image": Queue(size, width), "text": Queue(size, width)})


# --- negatives


def test_hard_negatives_are_never_the_pair_nor_of_its_group():
    group = torch.tensor([0, 1, 0, 2, 3])
    allowed = ~alike(group, 5, group.device)
    scores = torch.full((5, 5), -50.0).masked_fill(~allowed, 50.0)  # what is not allowed is by far the most alike
    for seed in range(200):
        index, found = hard_negatives(scores, allowed, seeded(seed))
        assert found.all() and allowed[torch.arange(5), index].all()


def test_hard_negatives_follow_the_softmax_of_the_scores():
    scores = torch.tensor([[9.0, 0.0, 1.0, 2.0]]).expand(40_000, 4)
    allowed = torch.tensor([[False, True, True, True]]).expand(40_000, 4)
    index, _ = hard_negatives(scores, allowed, seeded())
    shares = torch.bincount(index, minlength=4) / 40_000
    torch.testing.assert_close(
        shares, torch.cat([torch.zeros(1), torch.tensor([0.0, 1.0, 2.0]).softmax(0)]), atol=0.01, rtol=0
    )


def test_a_row_without_a_negative_says_so():
    index, found = hard_negatives(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.bool), seeded())
    assert not found.any() and index.tolist() == [0]


# --- hidden words


def test_words_are_hidden_at_berts_rates():
    ids = torch.randint(5, 1000, (400, 100), generator=seeded(1))
    candidates = torch.rand(ids.shape, generator=seeded(2)) < 0.9
    hidden, labels = hide_words(ids, candidates, seeded(), mask=4, vocab=1000)
    chosen = labels != -100
    assert torch.equal(hidden[~chosen], ids[~chosen]) and torch.equal(labels[chosen], ids[chosen])
    assert not (chosen & ~candidates).any()
    assert abs(chosen.sum() / candidates.sum() - 0.15) < 0.006
    assert abs((hidden[chosen] == 4).float().mean() - 0.8) < 0.02
    assert abs((hidden[chosen] == ids[chosen]).float().mean() - 0.1) < 0.015
    again = hide_words(ids, candidates, seeded(), mask=4, vocab=1000)
    assert torch.equal(again[0], hidden) and torch.equal(again[1], labels)


# --- queue and teacher


def test_a_queue_wraps_around_and_keeps_the_last():
    queue, seen = Queue(7, 2), torch.arange(40.0).view(20, 2)
    for start in range(0, 18, 3):  # 3 does not divide 7
        queue.push(seen[start : start + 3], torch.arange(start, start + 3))
        held = min(start + 3, 7)
        assert queue.filled().sum() == held
        assert sorted(queue.ids[queue.filled()].tolist()) == list(range(start + 3 - held, start + 3))
        assert torch.equal(queue.features[queue.filled()], seen[queue.ids[queue.filled()]])


def test_a_batch_larger_than_the_queue_leaves_its_last_rows():
    queue = Queue(4, 1)
    queue.push(torch.ones(3, 1))
    queue.push(torch.arange(10.0)[:, None])
    assert sorted(queue.features[:, 0].tolist()) == [6, 7, 8, 9] and queue.filled().all() and (queue.ids == -1).all()
    queue.push(torch.zeros(0, 1))
    assert sorted(queue.features[:, 0].tolist()) == [6, 7, 8, 9]


def test_ema_arithmetic():
    slow, fast = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    wanted = [0.995**3 * s + (1 - 0.995**3) * f for s, f in zip(copy.deepcopy(slow).parameters(), fast.parameters())]
    for _ in range(3):
        ema_update(slow, fast, 0.995)
    for p, w in zip(slow.parameters(), wanted):
        torch.testing.assert_close(p, w)


def test_after_the_step_the_teacher_follows_and_the_queues_take_in():
    model, state = training()
    batch = example(model, rows=5)
    start = copy.deepcopy(state.teacher.state_dict())
    with torch.no_grad():
        vectors = state.teacher.embed(batch)
    sum(albef.objective(model, batch, state, seeded()).values()).backward()
    assert not state.queues["image"].filled().any() and all(
        torch.equal(v, start[k]) for k, v in state.teacher.state_dict().items()
    )
    torch.optim.SGD(model.parameters(), 0.1).step()
    with torch.no_grad():
        model.temperature.fill_(3.0)
    albef.after_step(model, state)
    assert model.temperature.tolist() == [0.5] and int(state.step) == 1 and not state.pending
    for slot, queue in state.queues.items():
        assert queue.filled().sum() == 5
        torch.testing.assert_close(queue.features[:5], vectors[slot])
    moved = dict(model.named_parameters())["match.weight"]
    torch.testing.assert_close(state.teacher.match.weight, 0.995 * start["match.weight"] + 0.005 * moved)
    assert not any(p.requires_grad for p in state.parameters())


def test_the_state_is_restored_from_a_checkpoint():
    model, state = training()
    albef.objective(model, example(model, rows=5), state, seeded())
    albef.after_step(model, state)
    other = albef.make_state(plait.create_model("albef_toy", seed=9, answer_depth=0), 0)
    other.load_state_dict(state.state_dict())
    batch = example(model, rows=4, seed=3)
    a, b = (albef.objective(model, batch, s, seeded(1)) for s in (state, other))
    assert all(torch.equal(a[k], b[k]) for k in a)


# --- alignment


def test_with_no_queue_and_no_distillation_alignment_is_infonce():
    image, text, temperature = units(5, 8, 1), units(5, 8, 2), torch.tensor([0.1])
    vectors, real = {"image": image, "text": text}, torch.ones(5, dtype=torch.bool)
    loss, scores = queue_contrast(vectors, vectors, queues(), real, None, temperature, 0.0)
    logits, truth = image @ text.T / 0.1, torch.arange(5)
    torch.testing.assert_close(loss, (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2)
    torch.testing.assert_close(scores["image"], logits)


def test_a_queue_adds_negatives_and_its_rows_of_the_same_group_are_positives():
    image, text, old = units(3, 8, 1), units(3, 8, 2), units(2, 8, 3)
    vectors, real, t = {"image": image, "text": text}, torch.ones(3, dtype=torch.bool), torch.tensor([0.1])
    full = queues()
    for queue in full.values():
        queue.push(old, torch.tensor([8, 9]))
    loss, _ = queue_contrast(vectors, vectors, full, real, torch.tensor([7, 8, 6]), t, 0.0)
    sides = []
    for mine, other in ((image, text), (text, image)):
        logs = (mine @ torch.cat([other, old]).T / 0.1).log_softmax(1)
        sides.append(-(logs[0, 0] + (logs[1, 1] + logs[1, 3]) / 2 + logs[2, 2]) / 3)
    torch.testing.assert_close(loss, sum(sides) / 2)


def test_without_queues_both_sides_learn_as_in_plain_contrast():
    image, text, temperature = units(5, 8, 1).requires_grad_(), units(5, 8, 2).requires_grad_(), torch.tensor([0.1])
    then = {"image": units(5, 8, 3), "text": units(5, 8, 4)}
    real, group = torch.ones(5, dtype=torch.bool), torch.tensor([0, 1, 0, 2, 3])
    loss, _ = queue_contrast({"image": image, "text": text}, then, queues(0), real, group, temperature, 0.0)
    plain = contrastive(image, text, -temperature.log(), group[:, None] == group)
    torch.testing.assert_close(loss, *plain.values())
    for a, b in zip(torch.autograd.grad(loss, (image, text)), torch.autograd.grad(*plain.values(), (image, text))):
        torch.testing.assert_close(a, b)


def test_distillation_alone_is_least_where_model_and_teacher_agree():
    scores = torch.randn(4, 6, generator=seeded())
    same, allowed = torch.eye(4, 6, dtype=torch.bool), torch.ones(4, 6, dtype=torch.bool)
    agreed = soft_contrast(scores, scores, same, allowed, 1.0)
    torch.testing.assert_close(agreed, -(scores.softmax(1) * scores.log_softmax(1)).sum(1))  # the entropy
    assert (soft_contrast(scores + torch.randn(4, 6, generator=seeded(1)), scores, same, allowed, 1.0) > agreed).all()


# --- the whole objective


def test_every_parameter_gets_a_gradient():
    model, state = training()
    losses = albef.objective(model, example(model, rows=6), state, seeded())
    assert losses.keys() == {"align", "match", "words"} and all(v.dim() == 0 and v.isfinite() for v in losses.values())
    sum(losses.values()).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_without_a_word_head_nothing_is_hidden():
    model, state = training(guess=False)
    batch = example(model, rows=4)
    assert albef.objective(model, batch, state, seeded()).keys() == {"align", "match"} and "words" not in model(batch)


def test_a_row_that_is_no_pair_counts_for_nothing_and_is_not_queued():
    model, state = training()
    batch = example(model, rows=5)
    batch["present"]["image"][1] = False
    batch["present"]["text"][3] = False
    pairs = {k: v[[0, 2, 4]] for k, v in batch.items() if k in model.takes}
    pairs["keep"] = {"text": batch["keep"]["text"][[0, 2, 4]]}
    losses = [albef.objective(model, b, albef.make_state(model, 0), seeded())["align"] for b in (batch, pairs)]
    torch.testing.assert_close(*losses)
    albef.objective(model, batch, state, seeded())
    albef.after_step(model, state)
    assert [int(q.count) for q in state.queues.values()] == [3, 3]


@pytest.mark.parametrize("lacks", [("image",), ("text",), ("image", "text")])
def test_a_batch_without_a_pair_is_finite_and_reaches_both_towers(lacks):
    model, state = training()
    batch = example(model, rows=2)
    for slot in lacks:
        batch["present"][slot][:] = False
    losses = albef.objective(model, batch, state, seeded())
    sum(losses.values()).backward()
    assert losses["align"].detach() == 0 and losses["match"].detach() == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    albef.after_step(model, state)
    assert int(state.queues["image"].count) == 0


def test_a_single_pair_and_bfloat16_are_finite():
    model, state = training()
    with torch.autocast("cpu", torch.bfloat16):
        for rows in (1, 4):
            assert all(
                v.isfinite() for v in albef.objective(model, example(model, rows=rows), state, seeded()).values()
            )


def test_the_first_hidden_place_is_what_forward_answers():
    model = plait.create_model("albef_toy").eval()
    batch = example(model)
    batch["text"][0, 5], batch["text"][0, 8], batch["text"][2, 3] = model.mask, model.mask, model.mask
    image, text = model.encode(batch)
    fused = model.cross(text, image).x
    wanted = model.words(torch.stack([fused[0, 5], fused[1, 0], fused[2, 3]]))
    torch.testing.assert_close(model(batch)["words"], wanted)


def test_both_towers_learn_to_agree_in_a_short_run():
    model, state = training(queue=0)
    batch, generator = example(model, rows=8) | {"row": torch.arange(8)}, seeded()
    # large patches of colour
    batch["image"] = torch.randn(8, 3, 4, 4, generator=seeded(5)).repeat_interleave(8, 2).repeat_interleave(8, 3)
    optimizer, words = torch.optim.AdamW(model.parameters(), 2e-3), []
    for _ in range(60):
        losses = albef.objective(model, batch, state, generator)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        albef.after_step(model, state)
        words.append(losses["words"].detach())
    vectors = model.eval().embed(batch)
    assert (vectors["image"] @ vectors["text"].T).argmax(1).tolist() == list(range(8))
    assert sum(words[-10:]) < 0.9 * sum(words[:10])


# --- the official layouts


@pytest.mark.parametrize("size, source", [("base", "official"), ("base_384_coco", "official_retrieval")])
def test_the_published_files_fit(size, source):
    recorded = "base" if source == "official" else "base_384"
    model = build(f"albef_{size}")
    state = {k: torch.empty(shape, device="meta") for k, shape in official.keys(recorded).items()}
    assert len(state) == official.NUMBERS[recorded]["count_keys"]
    ours = convert(state, albef.RULES[source])
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert sum(p.numel() for p in model.parameters()) == official.NUMBERS[recorded]["parameters"]
    back = convert(ours, albef.RULES[source], reverse=True)
    lost = ("_m.", "_queue", "queue_ptr", "position_ids")
    assert {k: v.shape for k, v in back.items()} == {
        k: v.shape for k, v in state.items() if not any(x in k for x in lost)
    }


def test_tied_words_that_differ_are_refused():
    state = official.weights("toy")
    state["text_encoder.cls.predictions.decoder.weight"] = state["text_encoder.cls.predictions.decoder.weight"] + 1
    with pytest.raises(ValueError, match="differ"):
        plait.load_weights(plait.create_model("albef_toy"), state, "official")


def test_every_recorded_number_is_met():
    seen = {what: official.relative_error(ours, theirs) for what, ours, theirs in official.comparisons()}
    assert len(seen) == 26 and not {k: v for k, v in seen.items() if not v < 1e-5}
