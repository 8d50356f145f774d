"""GIT's own claims: who sees whom, frames of a film in their order, class names and answers as texts."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.core.attend import recorded
from plait.parts.generation import Trie, beam, generate


def git(**arguments):
    return plait.create_model("git_toy", **arguments).eval()


def pictures(rows: int, *more: int) -> torch.Tensor:
    return torch.randn(rows, *more, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_the_picture_sees_itself_and_a_word_sees_the_picture_and_what_was_said():
    model, x = git(), pictures(2)
    watched, maps = recorded(model)
    cache = watched.prefill({"image": x})
    tower, decoder = maps[:2], maps[2:]  # two layers each
    assert [m.shape[-2:] for m in maps] == [(17, 17)] * 4 and all((m > 0).all() for m in (*tower, *decoder))
    watched, maps = recorded(model)
    watched.step(torch.tensor([[5, 6, 7]] * 2), cache)
    past = torch.cat([torch.ones(3, 17), torch.ones(3, 3).tril()], 1) > 0
    assert len(maps) == 2 and all(((m > 0) == past).all() for m in maps)


@torch.no_grad()
def test_a_film_is_read_frame_after_frame_and_each_has_its_time():
    model, x = git(frames=3), pictures(2, 3)
    ids = torch.tensor([[5, 6]] * 2)

    def words(film):
        return model.step(ids, model.prefill({"image": film}))[0]

    assert model.prefill({"image": x}).memory.keep.shape == (2, 3 * 17)
    still = words(x)
    # marks of time start at nothing: a film is then a set of frames
    torch.testing.assert_close(words(x.flip(1)), still)
    for i, time in enumerate(model.times):
        time.normal_(generator=torch.Generator().manual_seed(i))
    assert not torch.allclose(words(x.flip(1)), words(x), atol=1e-3)
    model.prefill({"image": x[:, :2]})  # a shorter film is read too
    # a picture has no time
    torch.testing.assert_close(words(x[:, 0]), git(frames=0).step(ids, git().prefill({"image": x[:, 0]}))[0])
    with pytest.raises(ValueError, match="film of 4 frames, expected at most 3"):
        words(pictures(2, 4))


@torch.no_grad()
def test_pictures_of_other_sizes_are_read():
    model = git()
    x = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(1))
    assert model.prefill({"image": x}).memory.keep.shape == (2, 1 + 6 * 8)
    assert model({"image": x})["words"].isfinite().all()


@torch.no_grad()
def test_a_question_is_a_text_that_is_there_already():
    model, x = git(), pictures(3)
    asked = torch.randint(5, 64, (3, 6), generator=torch.Generator().manual_seed(2))
    keep = torch.arange(6) < torch.tensor([6, 4, 5])[:, None]
    batch = {"image": x, "text": asked, "keep": {"text": keep}}
    answers = generate(model, batch, most=5)
    other = generate(model, batch | {"text": asked.roll(1, 0)}, most=5)
    assert not torch.equal(answers.score, other.score)
    for row in range(3):  # padding within a batch is not seen
        alone = generate(model, {"image": x[row : row + 1], "text": asked[row][keep[row]][None]}, most=5)
        assert torch.equal(alone.tokens[0], answers.tokens[row])
        torch.testing.assert_close(alone.score[0], answers.score[row], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_classes_are_texts_that_a_list_allows():
    """Trained on nothing but its loss, the toy names what it sees, and nothing else."""
    torch.manual_seed(0)
    model = plait.create_model("git_toy").train()
    names = [[10, 11], [10, 12, 13], [14]]
    colours = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    texts = torch.tensor([[2, 10, 11, 3, 0], [2, 10, 12, 13, 3], [2, 14, 3, 0, 0]])
    keep = texts > 0
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(40):
        kinds = torch.randint(0, 3, (16,))
        x = colours[kinds][:, :, None, None] + 0.3 * torch.randn(16, 3, 32, 32)
        with torch.enable_grad():
            logits, _ = model.step(texts[kinds][:, :-1], model.prefill({"image": x}), keep[kinds][:, :-1])
            loss = torch.nn.functional.cross_entropy(
                logits[keep[kinds][:, 1:]], texts[kinds][:, 1:][keep[kinds][:, 1:]]
            )
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
    model.eval()
    x = colours[:, :, None, None] + 0.3 * torch.randn(3, 3, 32, 32)
    allowed = Trie(names, end=3)
    for write in (generate, beam):
        said = write(model, {"image": x}, most=6, allowed=allowed)
        assert [t[k].tolist()[:-1] for t, k in zip(said.tokens, said.keep)] == names
