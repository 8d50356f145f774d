"""Spelling: every text of known characters comes back as it was, and what cannot be spelled is seen."""

from __future__ import annotations

import json
import random

import pytest

from plait.data.kinds.spelling import UNKNOWN, Spelling, tidy

TEXTS = ["one two two", "three two one", "one  one two", "Ça va ? 42", "naïve\u0301", "two\nlines"]


@pytest.mark.parametrize("size", [None, 10, 40, 200])
def test_texts_come_back(size):
    spelling = Spelling.learn(TEXTS, size)
    again = Spelling(**json.loads(json.dumps(spelling.to_json())))
    for text in TEXTS:
        labels = spelling.encode(text)
        assert spelling.decode(labels) == tidy(text) and again.encode(text) == labels
        assert all(1 <= label <= len(spelling) for label in labels)


@pytest.mark.parametrize("size", [None, 60])
def test_what_cannot_be_spelled_is_one_label_a_character(size):
    spelling = Spelling.learn(TEXTS, size)
    assert spelling.decode(spelling.encode("one xyz two")) == f"one {UNKNOWN * 3} two"
    assert spelling.encode("zzz") == ([spelling.ids["\u2581"]] if spelling.merges else []) + [spelling.unknown] * 3


def test_pieces_are_fewer_than_characters():
    characters, pieces = Spelling.learn(TEXTS), Spelling.learn(TEXTS, 60)
    assert len(pieces.encode("one two")) < len(characters.encode("one two")) == 7
    assert "\u2581two" in pieces.pieces


def test_blanks_are_left_out():
    spelling = Spelling.learn(["ab"])
    assert spelling.decode([0, 1, -100, 0, 2]) == "ab" and spelling.encode("") == []


def test_any_mixture_of_characters_comes_back():
    rng = random.Random(0)
    texts = ["".join(rng.choice("abc dé\u4e2d") for _ in range(rng.randrange(1, 20))) for _ in range(200)]
    spelling = Spelling.learn(texts, 80)
    assert spelling.merges and all(spelling.decode(spelling.encode(t)) == tidy(t) for t in texts)
