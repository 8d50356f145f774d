"""Small tokenizer.json files in the layouts that text weights are published with: right ids, few real words."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from plait.core.catalog import ModelInfo
from plait.runs.assemble import argument

WORDS = ("a", "cat", "dog", "on", "the", "mat", "red", "blue", "square", "left", "right", "in", "of", "small", "large")


def write_tokenizer(info: ModelInfo, folder: Path, *, drop: int = 0) -> Path:
    """tokenizer.json of a size's family in `folder`, with as many words as its table has rows, less `drop`."""
    vocab, end = argument(info, "vocab") - drop, info.weights["end"]
    family = {102: bert, 49407: clip, 2: xlm, 5: fnet, 50256: whisper, 50257: whisper}[end]
    folder.mkdir(parents=True, exist_ok=True)
    family(vocab).save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def bert(vocab: int) -> Tokenizer:
    """WordPiece: [PAD] 0, [UNK] 100, [CLS] 101, [SEP] 102, [MASK] 103, as google-bert publishes it."""
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
    made = Tokenizer(models.WordPiece(filled(vocab, special, 1000), unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", 102), ("[CLS]", 101))
    return added(made, special.values())


def clip(vocab: int) -> Tokenizer:
    """Byte-level BPE whose last two ids begin and end a text; no padding, id 0 is "!", as OpenAI publishes it."""
    begin, end = "<|startoftext|>", "<|endoftext|>"
    merges, pieces = [], []
    for word in WORDS:
        so_far, *rest = [*word[:-1], f"{word[-1]}</w>"]
        pieces += [so_far, *rest]
        for letter in rest:
            merges.append((so_far, letter))
            so_far += letter
            pieces.append(so_far)
    ends = {f"{word}</w>" for word in WORDS}
    inner = {300 + i: piece for i, piece in enumerate(p for p in dict.fromkeys(pieces) if p not in ends)}
    words = filled(vocab, {0: "!", vocab - 2: begin, vocab - 1: end} | inner, 1000, "</w>")
    made = Tokenizer(models.BPE(words, list(dict.fromkeys(merges)), unk_token=end, end_of_word_suffix="</w>"))
    made.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.RobertaProcessing((end, vocab - 1), (begin, vocab - 2), False, False)
    return added(made, (begin, end))


def whisper(vocab: int) -> Tokenizer:
    """What a transcript starts with and that it has no times stands before it, as OpenAI's files have it; above that
    only times."""
    begin, end = vocab - 1502, 50256 if vocab == 51864 else 50257
    special = {begin: "<|notimestamps|>", end: "<|endoftext|>", end + 1: "<|startoftranscript|>"}
    made = Tokenizer(models.WordLevel(filled(vocab, special, 1000), unk_token="<|endoftext|>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single=f"{special[end + 1]} {special[begin]} $A {special[end]}",
        special_tokens=[(w, i) for i, w in special.items()],
    )
    return added(made, special.values())


def xlm(vocab: int) -> Tokenizer:
    """Unigram: <s> 0, <pad> 1, </s> 2, <unk> 3, <mask> last, as XLM-V and BEiT-3 have it."""
    return unigram(vocab, {0: "<s>", 1: "<pad>", 2: "</s>", 3: "<unk>", vocab - 1: "<mask>"}, "<s>", "</s>")


def fnet(vocab: int) -> Tokenizer:
    """Unigram: <unk> 1, <pad> 3, [CLS] 4, [SEP] 5, [MASK] 6."""
    special = {0: "<s>", 1: "<unk>", 2: "</s>", 3: "<pad>", 4: "[CLS]", 5: "[SEP]", 6: "[MASK]"}
    return unigram(vocab, special, "[CLS]", "[SEP]")


def unigram(vocab: int, special: dict[int, str], begin: str, end: str) -> Tokenizer:
    words = filled(vocab, special, 1000, prefix="\u2581")
    pieces = [(word, -float(i)) for word, i in sorted(words.items(), key=lambda item: item[1])]
    made = Tokenizer(models.Unigram(pieces, words["<unk>"], False))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(begin, words[begin]), (end, words[end])]
    )
    return added(made, special.values())


def filled(vocab: int, special: dict[int, str], first: int, suffix: str = "", prefix: str = "") -> dict[str, int]:
    """{word: id} without gaps: special ones, WORDS from `first`, and between them words that no text has."""
    ids = {i: f"unused{i}" for i in range(vocab)} | {first + k: f"{prefix}{w}{suffix}" for k, w in enumerate(WORDS)}
    return {word: i for i, word in (ids | special).items()}


def added(made: Tokenizer, special) -> Tokenizer:
    made.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in special])
    return made
