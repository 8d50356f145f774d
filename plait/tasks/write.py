"""How does it go on? A text per row that follows the row's own, written by a generator, word by word."""

from __future__ import annotations

from plait.tasks.caption import Caption

ROLES = ("generator",)
TAKES = ("text",)


class Write(Caption):
    """A text that follows a text, with or without a picture or a sound beside it: the answer to a question, the end of
    a sentence, the same in other words. What is read and what is written are of one vocabulary."""

    name = choice = "write"
    noun = "texts that go on"
    auto = "llama"
    one_vocabulary = True
    wants = "writing goes on from one column of texts"

    @classmethod
    def reads(cls, kinds: list[str]) -> bool:
        return sorted(kinds) in (["text"], ["image", "text"], ["audio", "text"])


TASKS = (Write,)
