"""Whisper in small: what is heard, what stands before a text, what is never written; and whose words its sizes know."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch
from torch import Tensor

import plait
from plait.data.kinds import KINDS, Place
from plait.data.kinds.base import FitOptions
from plait.errors import PlaitError, UsageError
from plait.parts.generation import Trie, beam, generate
from plait.runs.vocabulary import check_vocabulary
from tests.published import write_tokenizer


@pytest.fixture(scope="module")
def model():
    return plait.create_model("whisper_toy").eval()


def sounds(rows: int = 3) -> Tensor:
    return 0.1 * torch.randn(rows, 1200, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_after_a_sound_silence_is_heard_and_no_sound_is_silence(model):
    x = sounds()
    whole = torch.cat([x, torch.zeros(3, 400)], 1)
    assert torch.equal(model.hear(x), model.hear(whole)) and model.hear(x).shape == (3, 20, 32)
    keep = torch.arange(1200) < 700
    assert torch.equal(model.hear(x, keep.expand(3, -1)), model.hear(x[:, :700]))
    text = torch.randint(10, 64, (3, 4))
    silent = model.prefill({"audio": torch.zeros(3, 9), "text": text})
    assert torch.equal(model.prefill({"text": text}).sound, silent.sound)
    with pytest.raises(PlaitError, match="1601 samples, expected at most 1600: cut them"):
        model.hear(torch.zeros(1, 1601))


@torch.no_grad()
def test_quiet_places_stand_eight_powers_of_ten_below_the_loudest_of_their_own_sound(model):
    x = sounds(1) * torch.tensor([[10.0], [1.0]])
    x[:, 600:] = 0.0
    found, _ = model.ear(x)
    least, most = found.amin((1, 2)), found.amax((1, 2))
    torch.testing.assert_close(4 * (most - least), torch.tensor([8.0, 8.0]))
    torch.testing.assert_close(4 * (most[0] - most[1]), torch.tensor(2.0), rtol=1e-4, atol=0.0)


@torch.no_grad()
def test_what_was_said_before_and_what_is_asked_stand_before_the_text(model):
    x, text, said = sounds(2), torch.randint(10, 64, (2, 5)), torch.randint(10, 64, (2, 3))
    keep = torch.tensor([[True] * 5, [False] * 5])
    got, _ = model.step(said, model.prefill({"audio": x, "text": text, "keep": {"text": keep}}))
    start = model.prefill({"audio": x})
    empty = start._replace(memory=start.memory.without_last(2))  # without what is asked
    for row, before in enumerate(([6, *text[0].tolist(), 4, 5], [4, 5])):
        alone = torch.utils._pytree.tree_map(lambda leaf: leaf[row : row + 1], empty)
        ids = torch.cat([torch.tensor([before]), said[row : row + 1]], 1)
        want, _ = model.step(ids, alone)
        torch.testing.assert_close(got[row : row + 1], want[:, -3:], rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("write", [generate, lambda *a, **k: beam(*a, size=3, **k)], ids=["greedily", "by beams"])
def test_some_words_are_never_written_and_some_not_first(model, write):
    model, batch = plait.create_model("whisper_toy", seed=1).eval(), {"audio": sounds(6)}
    model.words.table.weight.mul_(20.0)
    free = plait.create_model("whisper_toy", seed=1, never=(), never_first=()).eval()
    free.load_state_dict(model.state_dict())
    first, _ = free.step(torch.full((6, 1), 2), free.prefill(batch))
    wanted, later = (int(i) for i in first.mean((0, 1)).topk(2).indices)
    model.never, model.never_first = (wanted,), (later,)
    open_, shut = write(free, batch, most=12), write(model, batch, most=12)
    assert (open_.tokens == wanted).any() and (shut.keep.sum(1) > 1).any()
    assert not ((shut.tokens == wanted) & shut.keep).any() and not (shut.tokens[:, 0] == later).any()
    trie = Trie([[wanted, later]], model.end)
    assert write(model, batch, most=12, allowed=trie).tokens.tolist() == [[wanted, later, model.end]] * 6


@pytest.mark.parametrize("name", ["whisper_tiny_en", "whisper_base", "whisper_distil_large_v3"])
def test_texts_that_are_written_follow_the_last_word_of_the_prompt(name, tmp_path):
    info, texts = plait.model_info(name), pa.chunked_array([["the red cat", "a dog"]])
    options = FitOptions(Place(), tokenizer_file=str(write_tokenizer(info, tmp_path)))
    asked = KINDS["text"].fit_target(texts, options)
    check_vocabulary(info, asked, "it")
    begin, end = info.arguments["begin"], info.arguments["end"]
    assert (begin, end) == (info.weights["begin"], info.weights["end"])
    assert KINDS["text"].encode("the red cat", asked, Place()).tolist() == [begin, 1004, 1006, 1001, end]
    with pytest.raises(UsageError, match=r"before .* at most one each"):  # of a text that is read
        KINDS["text"].fit(texts, options)
    other = plait.model_info("whisper_tiny" if name.endswith("en") else "whisper_tiny_en")
    with pytest.raises(UsageError, match="the begin token"):
        check_vocabulary(other, asked, "it")
