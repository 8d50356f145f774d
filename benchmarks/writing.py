"""Writing word by word: words a second against transformers, memories that grow against such that are laid out, and
what 16,384 words cost in memory.

    python benchmarks/writing.py [--rounds 3] [--words 24] [speed] [memory] [long]

The model has 134 M parameters in the layout of Llama: 12 layers of width 768, 12 heads, 32,000 words, random weights,
the same on both sides. One thread, CPU time, in turns; ratios are medians of the rounds.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import plait
from plait.core.memory import Memory
from plait.core.packed import packed
from tests.peers import declare_torchvision

SHAPE = dict(vocab=32000, length=32768, width=768, depth=12, heads=12, kv_heads=12, hidden=2048, tied=False)
KINDS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def ours(kind: torch.dtype, **other):
    return plait.create_model("llama_nano", **SHAPE | other, dtype=kind).eval()


def theirs(model, kind: torch.dtype):
    declare_torchvision()
    from transformers import LlamaConfig, LlamaForCausalLM

    made = LlamaConfig(
        vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=32768, rms_norm_eps=1e-5, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    peer = LlamaForCausalLM(made).to(kind)
    peer.load_state_dict(plait.save_weights(model, "transformers"))
    return peer.eval()


def write(model, cache, token: torch.Tensor, words: int) -> torch.Tensor:
    said = []
    for _ in range(words):
        logits, cache = model.step(token, cache)
        token = logits[:, -1].argmax(-1, keepdim=True)
        said.append(token)
    return torch.cat(said, 1)


def in_turns(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each, round by round; each runs once before for nothing."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for round in range(rounds + 1):
        for name, run in runs.items():
            seconds = run()
            if round:
                found[name].append(seconds)
    return found


def ratio(over: list[float], under: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(over, under))


def speed(rounds: int, words: int) -> None:
    """After 64 words of prompt: a step at a time on both sides, and transformers' generate."""
    for name, kind in KINDS.items():
        model = ours(kind)
        peer = theirs(model, kind)
        for rows in (1, 8):
            swift, ids = packed(model, rows), torch.randint(5, 32000, (rows, 64))
            said = {}

            def mine(which):
                cache = which.prefill({"text": ids[:, :-1]}).laid_out(64 + words)
                begun = time.process_time()
                said[which] = write(which, cache, ids[:, -1:], words)
                return time.process_time() - begun

            def loop():
                cache, token = peer(ids[:, :-1], use_cache=True).past_key_values, ids[:, -1:]
                begun = time.process_time()
                for _ in range(words):
                    out = peer(token, past_key_values=cache, use_cache=True)
                    token = out.logits[:, -1].argmax(-1, keepdim=True)
                return time.process_time() - begun

            def whole():
                cache = peer(ids[:, :-1], use_cache=True).past_key_values
                begun = time.process_time()
                how = dict(max_new_tokens=words, min_new_tokens=words, do_sample=False)
                said["peer"] = peer.generate(ids, past_key_values=cache, attention_mask=torch.ones_like(ids), **how)
                return time.process_time() - begun

            runs = {"plait": lambda: mine(model), "packed": lambda: mine(swift), "forward": loop, "generate": whole}
            found = in_turns(runs, rounds)
            same = [float((said[m] == said["peer"][:, 64:]).float().mean()) for m in (model, swift)]
            told = ", ".join(f"{n} {rows * words / statistics.median(t):.1f}/s" for n, t in found.items())
            print(f"{name}, {rows} streams: {told}; the same words {same[0]:.0%}, packed {same[1]:.0%}")
            for n in ("plait", "packed"):
                print(f"  {n}: {ratio(found['forward'], found[n]):.2f} of forward, "
                      f"{ratio(found['generate'], found[n]):.2f} of generate", flush=True)  # fmt: skip


def filled(model, rows: int, held: int, kind: torch.dtype) -> Memory:
    """A memory as after so many words, of random keys and values."""
    shape = (rows, SHAPE["kv_heads"], held, 64)
    pages = tuple({"self": (torch.randn(shape).to(kind), torch.randn(shape).to(kind))} for _ in model.stack.blocks)
    return Memory(pages, torch.ones(rows, held, dtype=torch.bool))


def memory(rounds: int, words: int) -> None:
    """Words 1,000 to 1,024: the three memories."""
    for name, kind in KINDS.items():
        model = ours(kind)
        for rows in (1, 8):
            swift, token = packed(model, rows), torch.randint(5, 32000, (rows, 1))
            grown = filled(model, rows, 1000, kind)
            forms = {"grows": lambda: grown, "laid out": lambda: grown.laid_out(1024)}
            forms["fixed"] = lambda: grown.fixed(1024)
            logits = {form: swift.step(token, make())[0] for form, make in forms.items()}

            def run(make):
                cache = make()
                begun = time.process_time()
                write(swift, cache, token, words)
                return time.process_time() - begun

            found = in_turns({form: lambda make=make: run(make) for form, make in forms.items()}, rounds)
            off = max(float((logits[f] - logits["grows"]).abs().max()) for f in forms)
            off /= float(logits["grows"].abs().max())
            told = ", ".join(f"{f} {rows * words / statistics.median(t):.1f}/s" for f, t in found.items())
            gain = ratio(found["grows"], found["laid out"])
            print(f"{name}, {rows} streams at 1,024: {told}; laid out is {gain:.2f} of growing, differs by {off:.0e}",
                  flush=True)  # fmt: skip


def long(rounds: int, words: int) -> None:
    """What 16,384 words take beside the weights, held and read at once, and the word after them."""

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2

    pages = [Memory(({"self": (torch.zeros(1, g, 16384, 64),) * 2},) * 12) for g in (12, 4)]
    sizes = [sum(t.nbytes for page in held.pages for t in page["self"]) / 1024**3 for held in pages]
    print(f"keys and values of 16,384 words in float32: {sizes[0]:.2f} GiB, with 4 heads of them {sizes[1]:.2f} GiB")
    del pages
    model = ours(torch.float32)
    start = peak()
    cache = model.prefill({"text": torch.randint(5, 32000, (1, 16384))})
    model.step(torch.full((1, 1), 7), cache)
    print(f"reading them at once and writing one more: peak {peak() - start:+.2f} GiB beside {start:.2f} before")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--words", type=int, default=24)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        for run in (speed, memory, long):
            if run.__name__ in (given.what or ("speed", "memory", "long")):
                run(given.rounds, given.words)


if __name__ == "__main__":
    main()
