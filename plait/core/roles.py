"""What a model can be asked for: a protocol for each role. A system names its roles in `ROLES`, and its model has their
methods; a task names the roles that it can use and binds to one of them, never to a system.

B batch, N tokens, D width, E width of an embedding, S samples, T frames, K classes, V vocabulary. `keep` is bool, True
= real; None: all real. A batch is a dict of tensors by slot, with "keep" and "present" beside them
(docs/architecture.md).
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from plait.core.tokens import Tokens


@runtime_checkable
class Model(Protocol):
    """What every system has. takes: the slots that it reads. fits: the arguments of its constructor that follow from
    the data: image (H, W), rate (samples a second) and seconds (of the longest sound), vocab and mask (of the
    tokenizer), or slots, whatever there is to read.
    """

    takes: tuple[str, ...]
    fits: tuple[str, ...]


@runtime_checkable
class Backbone(Model, Protocol):
    """Reads one modality. width: D of what `pool` gives."""

    width: int

    def forward(self, x: Tensor, /, keep: Tensor | None = None) -> Tensor:
        """(B, K): the answers of its own classifier; the pooled features where it has none."""
        ...

    def tokens(self, x: Tensor, /, keep: Tensor | None = None) -> Tokens:
        """Pictures (B, 3, H, W), ids (B, N) or sounds (B, S) -> tokens."""
        ...

    def pool(self, t: Tokens, /) -> Tensor:
        """(B, D): one vector a row."""
        ...


@runtime_checkable
class Embedder(Model, Protocol):
    """Puts several modalities into one space. embed_width: E. logit_scale (1,): the logarithm of the factor of a
    cosine. One that keeps several vectors of a text in one also has `late`, how two of these are compared."""

    embed_width: int
    logit_scale: Tensor

    def embed(self, batch: dict, /) -> dict[str, Tensor]:
        """{slot: (B, E)} unit vectors; zeros in rows where the slot is absent."""
        ...


@runtime_checkable
class Fuser(Model, Protocol):
    """Reads several modalities together. width: D of the fused vector; part_widths: D of each part, empty where the
    system has none."""

    width: int
    part_widths: dict[str, int]

    def fuse(self, batch: dict, /) -> dict:
        """{"fused": (B, D), "parts": {slot: (B, D_slot)}}; "vectors" {slot: (B, E)} of one that is an embedder too, and
        "losses" {name: ()} where its layers gave some out."""
        ...


@runtime_checkable
class Transcriber(Model, Protocol):
    """Hears a sound and says a label for each frame. Built with `labels=V`, of which 0 is CTC's blank."""

    width: int

    def transcribe(self, x: Tensor, /, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Sounds (B, S) -> logits (B, T, V), in time, zeros beyond the end, and lengths (B,)."""
        ...

    def frames(self, samples: int, /) -> int:
        """How many frames a sound of so many samples has."""
        ...

    def tokens(self, x: Tensor, /, keep: Tensor | None = None) -> Tokens:
        """As a backbone's."""
        ...

    def pool(self, t: Tokens, /) -> Tensor:
        """As a backbone's."""
        ...


@runtime_checkable
class Detector(Model, Protocol):
    """Finds things in a picture: Q guesses, each a box and what is in it. Built with `labels=K`.

    exclusive: a guess is of one label or of nothing, which is the last of K + 1 logits; otherwise each of K labels is a
    question of its own.
    """

    width: int
    exclusive: bool

    def detect(self, x: Tensor, /, keep: Tensor | None = None) -> dict[str, Any]:
        """Pictures (B, 3, H, W), keep (B, H, W) -> {"logits": (B, L, Q, K or K + 1), "boxes": (B, L, Q, 4)} after each
        of L layers, the last of which answers. A box is its middle, width and height (x, y, w, h), as shares of what
        is real of the picture. "first_logits" (B, N, K) and "first_boxes" (B, N, 4) where guesses are chosen among N;
        "losses" {name: ()} where layers gave some out."""
        ...


@runtime_checkable
class Masked(Model, Protocol):
    """Guesses what is hidden of what it reads."""

    def places(self, batch: dict, /) -> dict[str, int]:
        """{slot: N}: how many places of each slot may be hidden."""
        ...

    def guess(self, batch: dict, luck: dict[str, Tensor], /) -> dict[str, dict[str, Tensor]]:
        """luck {slot: (B, N)}, numbers from 0 to 1 that decide what is hidden -> {"costs": {name: (B,)}}, what each
        row's guesses cost, NaN where it has nothing of that, and {"blind": {name: (B,)}}, what guesses of the simplest
        kind would."""
        ...


@runtime_checkable
class Generator(Model, Protocol):
    """Writes a text, word by word. begin, end: ids; length: the most words. A cache is a pytree of tensors, B first.

    One may also have `never` and `never_first`: ids that it does not write at all, or not as the first word.
    """

    begin: int
    end: int
    length: int

    def prefill(self, batch: dict, /) -> Any:
        """The cache of what there is to read, and of the text so far."""
        ...

    def step(self, tokens: Tensor, cache: Any, keep: Tensor | None = None) -> tuple[Tensor, Any]:
        """Words (B, N) -> logits (B, N, V) of the word after each, and the cache with these words read."""
        ...


@runtime_checkable
class Codec(Model, Protocol):
    """Turns pictures into small maps and back. channels: C of these. factor: f, the pixels on a side of each place.
    scale: what brings them to a spread of about one."""

    channels: int
    factor: int
    scale: float

    def encode(self, x: Tensor, /) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, H, W) -> mean and log variance (B, C, H / f, W / f) of their latents."""
        ...

    def decode(self, z: Tensor, /) -> Tensor:
        """Latents (B, C, h, w) -> pictures (B, 3, f h, f w)."""
        ...


@runtime_checkable
class Diffuser(Model, Protocol):
    """Makes of noise, step by step, what a condition asks for. sample: (C, H, W) of what it denoises, latents of its
    `codec`, or pictures in [-1, 1] where that is None. predicts: "noise", as `samplers.diffusion` has it, or the
    "velocity" of `samplers.flow`."""

    sample: tuple[int, int, int]
    predicts: str
    codec: Any

    def condition(self, batch: dict, /) -> Tensor:
        """(B, D): what the columns of a batch ask for; absent ones, and ids of 0, say nothing."""
        ...

    def denoise(self, x: Tensor, time: Tensor, condition: Tensor, /) -> Tensor:
        """x (B, C, H, W) at times (B,), from 0 to 1000, noise alone -> (B, C, H, W); (B, 2 C, H, W) with a variance."""
        ...


@runtime_checkable
class Policy(Model, Protocol):
    """Says what to do, step by step, to earn the return that is asked for. Reads the slots "states", "actions" and
    "returns" (still asked for), each (B, T, C), and "steps" (B, T), their numbers. length: the most steps of an
    episode. tries: how many episodes it reads one after another at most; of more than one it is also told "rewards" and
    "done", each (B, T, 1)."""

    length: int
    tries: int

    def act(self, batch: dict, /) -> dict:
        """{"actions": (B, T, A)}: what to do at each step, of its state and its return and all before them; "losses"
        {name: ()} that its layers gave out."""
        ...


ROLES: dict[str, type] = {
    "backbone": Backbone,
    "embedder": Embedder,
    "fuser": Fuser,
    "transcriber": Transcriber,
    "detector": Detector,
    "generator": Generator,
    "masked": Masked,
    "codec": Codec,
    "diffuser": Diffuser,
    "policy": Policy,
}
