"""Writing: cached equals recomputed, rows know nothing of each other, beams against every possible text and against
transformers."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import plait
from plait.parts.generation import Sampler, Trie, Written, beam, best, generate
from tests.peers import declare_torchvision

BEGIN, END = 2, 3


def writer(seed: int = 0, sharp: float = 1.0, **arguments) -> nn.Module:
    """A toy whose opinions depend on the picture and on what it has written, and that prefers no word on the whole,
    save the end a bit."""
    model = plait.create_model("git_toy", seed=seed, **arguments).eval()
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=g))
        model.head.weight.mul_(sharp)
        ids = torch.randint(0, model.vocab, (64, 6), generator=g)
        logits, _ = model.step(ids, model.prefill(pictures(64)))
        model.head.bias.sub_(logits.mean((0, 1)))
        model.head.bias[END] += 0.5 * logits.std()
    return model


def pictures(rows: int, seed: int = 0) -> dict:
    return {"image": torch.randn(rows, 3, 32, 32, generator=torch.Generator().manual_seed(seed))}


def one(batch: dict, row: int) -> dict:
    return {k: v[row : row + 1] for k, v in batch.items()}


def texts(written: Written) -> list[list[int]]:
    return [row[keep].tolist() for row, keep in zip(written.tokens, written.keep, strict=True)]


def logs(model: nn.Module, batch: dict, said: list[int]) -> Tensor:
    """(V,) log-probabilities after `said`, everything computed anew."""
    ids = torch.tensor([[BEGIN, *said]])
    return model.step(ids, model.prefill(batch))[0][0, -1].log_softmax(-1)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
def test_greedy_writing_is_what_full_recomputation_writes(seed):
    model, batch = writer(seed, vocab=16), pictures(6, seed)
    written = generate(model, batch, most=12)
    # different texts of different lengths
    assert len({tuple(t) for t in texts(written)}) > 1 and len(set(map(len, texts(written)))) > 1
    for row, text in enumerate(texts(written)):
        said, score = [], 0.0
        while len(said) < 12 and END not in said:
            now = logs(model, one(batch, row), said)
            said.append(int(now.argmax()))
            score += float(now.max())
        assert said == text
        assert float(written.score[row]) == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("write", [generate, beam], ids=["greedy", "beam"])
def test_a_row_alone_is_written_as_in_a_batch(write):
    model, batch = writer(1, vocab=16), pictures(7)
    together = write(model, batch, most=12)
    lengths = together.keep.sum(1)
    assert lengths.min() < lengths.max() and (together.tokens[~together.keep] == 0).all()
    for row, text in enumerate(texts(together)):
        alone = write(model, one(batch, row), most=12)
        assert texts(alone) == [text]
        torch.testing.assert_close(alone.score, together.score[row : row + 1], rtol=1e-5, atol=1e-4)


def every_text(model: nn.Module, batch: dict, most: int, vocab: int) -> dict[tuple[int, ...], float]:
    """The log-probability of every text that ends or is `most` words long."""
    out, grow = {}, {(): 0.0}
    for _ in range(most):
        longer = {}
        for said, score in grow.items():
            now = logs(model, batch, list(said)).tolist()
            longer |= {(*said, word): score + now[word] for word in range(vocab)}
        out |= {said: score for said, score in longer.items() if said[-1] == END}
        grow = {said: score for said, score in longer.items() if said[-1] != END}
    return out | grow


@torch.no_grad()
@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, -0.5])
def test_wide_beams_find_the_best_of_all_texts(penalty):
    model, batch = writer(4, vocab=5), pictures(3, 5)
    found = beam(model, batch, most=4, size=125, penalty=penalty)
    greedy = generate(model, batch, most=4)
    narrow = beam(model, batch, most=4, size=2, penalty=penalty)
    for row in range(3):
        scores = {
            text: score / len(text) ** penalty for text, score in every_text(model, one(batch, row), 4, 5).items()
        }
        right = max(scores, key=scores.get)
        assert tuple(texts(found)[row]) == right
        assert float(found.score[row]) == pytest.approx(scores[right], abs=1e-4)
        assert float(narrow.score[row]) == pytest.approx(scores[tuple(texts(narrow)[row])], abs=1e-4)
        assert scores[tuple(texts(greedy)[row])] <= scores[right]
    # greed does not always pay
    assert any(tuple(a) != tuple(b) for a, b in zip(texts(greedy), texts(found))) or penalty == 0


def test_one_beam_is_greedy():
    model, batch = writer(2), pictures(5)
    # with a penalty, a longer text than the greedy one may still win
    found = beam(model, batch, most=10, size=1, penalty=0.0)
    assert texts(found) == texts(generate(model, batch, most=10))


@pytest.fixture(scope="module")
def peer():
    declare_torchvision()
    from transformers import GitConfig, GitForCausalLM, GitVisionConfig

    vision = GitVisionConfig(
        image_size=32, patch_size=8, hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2
    )
    made = GitConfig(
        vision_config=vision.to_dict(), vocab_size=16, hidden_size=48, intermediate_size=192, num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32, bos_token_id=BEGIN, eos_token_id=END, pad_token_id=0,
    )  # fmt: skip
    return GitForCausalLM(made).eval()


@pytest.mark.parametrize("seed", range(4))
def test_greedy_and_beams_write_what_transformers_writes(peer, seed):
    ours, batch = writer(seed, vocab=16), pictures(6, seed)
    peer.load_state_dict(plait.save_weights(ours, "transformers"))
    inputs = dict(pixel_values=batch["image"], input_ids=torch.full((6, 1), BEGIN), max_new_tokens=12, do_sample=False)
    theirs = peer.generate(**inputs)[:, 1:]
    assert texts(generate(ours, batch, most=12)) == [cut(row) for row in theirs.tolist()]
    for penalty in (0.0, 0.6, 1.0):
        more = dict(
            num_beams=4,
            length_penalty=penalty,
            early_stopping="never",
            return_dict_in_generate=True,
            output_scores=True,
        )
        theirs = peer.generate(**inputs, **more)
        found = beam(ours, batch, most=12, size=4, penalty=penalty)
        assert texts(found) == [cut(row) for row in theirs.sequences[:, 1:].tolist()]
        torch.testing.assert_close(found.score, theirs.sequences_scores, rtol=1e-4, atol=1e-4)


def test_a_question_goes_on_from_its_last_word(peer):
    ours, batch = writer(1, vocab=16), pictures(4, 3)
    peer.load_state_dict(plait.save_weights(ours, "transformers"))
    asked = torch.randint(4, 16, (4, 6), generator=torch.Generator().manual_seed(0))
    theirs = peer.generate(pixel_values=batch["image"], input_ids=asked, max_new_tokens=10, do_sample=False)[:, 6:]
    mine = generate(ours, batch | {"text": asked[:, :-1]}, most=10, begin=asked[:, -1])
    assert texts(mine) == [cut(row) for row in theirs.tolist()]


def cut(row: list[int]) -> list[int]:
    return row[: row.index(END) + 1] if END in row else row


NAMES = [[5, 6], [5, 6, 7], [5, 9], [10], [11, 5, 6, 7], [11, 5, 8]]


@torch.no_grad()
@pytest.mark.parametrize("write", [generate, beam], ids=["greedy", "beam"])
def test_only_allowed_texts_are_written_and_wide_beams_find_the_best(write):
    model, batch = writer(3), pictures(8)
    allowed = Trie(NAMES, END)
    written = texts(write(model, batch, most=8, allowed=allowed))
    assert all(text[:-1] in NAMES and text[-1] == END for text in written)
    wide = beam(model, batch, most=8, size=12, penalty=0.0, allowed=allowed)
    for row, text in enumerate(texts(wide)):
        scores = []
        for name in NAMES:
            ids = torch.tensor([[BEGIN, *name]])
            now = model.step(ids, model.prefill(one(batch, row)))[0][0].log_softmax(-1)
            scores.append(float(now.gather(1, torch.tensor([*name, END])[:, None]).sum()))
        assert text[:-1] == NAMES[max(range(len(NAMES)), key=scores.__getitem__)]
        assert float(wide.score[row]) == pytest.approx(max(scores), abs=1e-4)


def test_sampling_follows_the_probabilities_and_its_seed():
    shares = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03])
    many = shares.log().expand(20_000, -1)

    def found(seed: int = 0, **options) -> Tensor:
        return torch.bincount(Sampler(torch.Generator().manual_seed(seed), **options)(many), minlength=5) / len(many)

    torch.testing.assert_close(found(), shares, rtol=0, atol=0.012)
    torch.testing.assert_close(found(temperature=0.5), shares**2 / (shares**2).sum(), rtol=0, atol=0.012)
    torch.testing.assert_close(found(top_k=2), torch.tensor([2 / 3, 1 / 3, 0, 0, 0]), rtol=0, atol=0.012)
    torch.testing.assert_close(found(top_p=0.8), torch.tensor([0.5, 0.25, 0.15, 0, 0]) / 0.9, rtol=0, atol=0.012)
    torch.testing.assert_close(found(top_p=0.75), torch.tensor([2 / 3, 1 / 3, 0, 0, 0]), rtol=0, atol=0.012)
    assert found(top_p=1e-6)[0] == 1 and found(top_k=1)[0] == 1
    assert torch.equal(found(seed=5), found(seed=5)) and not torch.equal(found(seed=5), found(seed=6))
    none = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(100, -1)
    assert (Sampler(torch.Generator())(none) == 1).all()  # what is not allowed is never chosen


def test_sampled_texts_differ_and_repeat_with_the_seed():
    model, batch = writer(1, sharp=0.5), pictures(3)

    def once(seed: int) -> list[list[int]]:
        return texts(
            generate(model, batch, most=8, pick=Sampler(torch.Generator().manual_seed(seed), top_k=20, top_p=0.95))
        )

    assert once(0) == once(0) != once(1)
    allowed = generate(model, batch, most=8, pick=Sampler(torch.Generator().manual_seed(0)), allowed=Trie(NAMES, END))
    assert all(text[:-1] in NAMES for text in texts(allowed))


@pytest.mark.parametrize("options, complaint", [
    (dict(most=0), "most=0"),
    (dict(most=33), "expected 1 to 32"),
    (dict(most=3, allowed=Trie(NAMES, END)), "longest allowed text"),
])  # fmt: skip
def test_what_has_no_room_is_refused(options, complaint):
    for write in (generate, beam):
        with pytest.raises(ValueError, match=complaint):
            write(writer(), pictures(1), **options)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="no text"):
        Trie([], END)
    with pytest.raises(ValueError, match="0 beams"):
        beam(writer(), pictures(1), most=3, size=0)
    for wrong in (dict(temperature=0.0), dict(top_p=0.0), dict(top_k=0)):
        with pytest.raises(ValueError, match="expected"):
            Sampler(torch.Generator(), **wrong)
    assert best(torch.tensor([[0.0, 1.0]])).tolist() == [1]


def test_texts_of_every_length_are_counted_once():
    assert len(Trie(itertools.chain(NAMES, NAMES), END).next) == len(Trie(NAMES, END).next)
