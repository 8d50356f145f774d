"""`plait use`: published models as runs. What they say is what their peers say of the same files with their own
processors; the weights are random, in the published layouts."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, processors

import plait
from plait.core.catalog import systems
from plait.data.kinds import KINDS, Place
from plait.errors import DataError, UsageError
from plait.runs.assemble import recipe
from plait.runs.console import Console
from plait.runs.use import schema_of, work_of
from plait.tasks.published import NONE, ClassifyByTexts, ClassifyPublished
from tests import published
from tests.peers import declare_torchvision
from tests.pocket import ENDS, VOCAB, pocket

SHAPES = ((40, 60), (60, 40), (32, 32), (90, 33), (20, 25))
PICTURE = dict(image=(32, 32), patch=8, width=32, depth=2, heads=2)
CLIP = PICTURE | dict(vocab=VOCAB, length=16, text_width=32, text_depth=2, text_heads=2, embed=16)
TEXTS = (
    "a red cat on the mat",
    "the small blue square",
    "a",
    "in the left of the large square on the right of the mat",
)
CLASSES, TEMPLATES = ["cat", "dog", "red square"], ["a small {} on the left", "the {}", "a {} in the mat"]
QUIET = Console(quiet=True)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of pictures of several shapes, and one file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    for i, shape in enumerate(SHAPES):
        picture(shape, i).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def picture(shape: tuple[int, int], seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (shape[0] // 4 + 1, shape[1] // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(shape[::-1], Image.Resampling.BICUBIC)


def images(folder: Path) -> list[Image.Image]:
    return [Image.open(folder / f"{i}.png").convert("RGB") for i in range(len(SHAPES))]


def shaken(model, by: float = 0.05):
    """Random weights far enough from first ones that norms and biases matter."""
    torch.manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(by * torch.randn_like(p))
    return model.eval()


def words(folder: Path) -> Path:
    """A tokenizer.json beside the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    published.clip(VOCAB).save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A small CLIP of transformers with its processor, and its published folder."""
    declare_torchvision()
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    side = dict(hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, projection_dim=16)
    text = side | dict(vocab_size=VOCAB, max_position_embeddings=16, eos_token_id=VOCAB - 1, bos_token_id=VOCAB - 2)
    eyes = side | dict(image_size=32, patch_size=8)
    model = shaken(CLIPModel(CLIPConfig(text_config=text, vision_config=eyes, projection_dim=16)))
    folder = tmp_path_factory.mktemp("transformers")
    model.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(words(folder)), pad_token="<|endoftext|>")
    processor = CLIPProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}), tokenizer
    )
    return model, processor, folder


@pytest.fixture(scope="module")
def clip(theirs, tmp_path_factory):
    """That CLIP as a run."""
    out = tmp_path_factory.mktemp("runs") / "clip"
    how = ENDS["clip"] | dict(source="transformers", file="model.safetensors", crop_mode="floor")
    with pocket("clip", "vit_b_32_quickgelu", CLIP | dict(quick=True), **how) as name:
        yield plait.use(name, weights=theirs[2], folder=out, console=QUIET)


def test_a_folder_in_the_layout_of_another_publisher_is_read_too(clip, theirs, tmp_path):
    """The row says open_clip, the folder is transformers'."""
    with pocket("clip", "vit_b_32_quickgelu", CLIP | dict(quick=True), **ENDS["clip"]) as name:
        run = plait.use(name, weights=theirs[2], folder=tmp_path / "run", console=QUIET)
    texts = {"text": list(TEXTS)}
    assert run.embed(texts)["vector"].equals(clip.embed(texts)["vector"])


def vectors(table, name: str = "vector") -> np.ndarray:
    """(n, E) of the rows that have one."""
    return np.asarray([v for v in table[name].to_pylist() if v is not None], np.float32)


def unit(x) -> np.ndarray:
    x = x.pooler_output if hasattr(x, "pooler_output") else x
    return torch.nn.functional.normalize(x, dim=-1).detach().numpy()


def test_pictures_and_texts_get_the_vectors_that_transformers_gives_them(clip, theirs, photos):
    model, processor, _ = theirs
    made = clip.embed(photos)
    assert made["image"].to_pylist()[-1] == "broken.png" and made["vector"].null_count == 1
    given = processor(images=images(photos), return_tensors="pt")
    expected = unit(model.get_image_features(**given))
    assert np.abs(vectors(made) - expected).max() < 1e-4
    assert np.abs(expected[0] - expected[1]).max() > 0.05  # they do differ
    given = processor(text=list(TEXTS), return_tensors="pt", padding=True, truncation=True, max_length=16)
    expected = unit(model.get_text_features(**{k: given[k] for k in ("input_ids", "attention_mask")}))
    assert np.abs(vectors(clip.embed({"text": list(TEXTS)})) - expected).max() < 1e-4
    again = plait.load(clip.folder)
    called: list[tuple[str, int]] = []
    for slot, tower in again.model.bound.system.towers.items():
        tower.register_forward_hook(lambda _, x, y, slot=slot: called.append((slot, len(x[0]))))
    assert again.embed(photos).equals(made) and called == [("image", 6), ("text", 1)]
    assert again.named(["a", "b", "c"]) and called[2:] == [("image", 1), ("text", 3)]  # what is not there costs little


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A small CLIP of open_clip, and the run that its file makes."""
    declare_torchvision()
    import open_clip

    eyes = open_clip.CLIPVisionCfg(layers=2, width=32, head_width=16, patch_size=8, image_size=32)
    text = open_clip.CLIPTextCfg(context_length=16, vocab_size=VOCAB, width=32, heads=2, layers=2)
    model = shaken(open_clip.CLIP(16, eyes, text))
    folder = tmp_path_factory.mktemp("open_clip")
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    words(folder)
    with pocket("clip", "vit_b_32", CLIP, **ENDS["clip"], file="open_clip_model.safetensors") as name:
        yield model, plait.use(name, weights=folder, folder=folder / "run", console=QUIET)


@torch.no_grad()
def test_classes_that_texts_name_get_the_probabilities_that_open_clip_gives_them(other, photos):
    import open_clip

    model, run = other
    tokenizer = Tokenizer.from_str(run.schema.column("text").params["tokenizer"])

    def ids(texts: list[str]) -> torch.Tensor:
        return torch.tensor([e.ids + [0] * (16 - len(e.ids)) for e in tokenizer.encode_batch(texts)])

    said = [partial(str.format, template) for template in TEMPLATES]
    classes = open_clip.build_zero_shot_classifier(model, ids, CLASSES, said)
    transform = open_clip.image_transform(32, is_train=False)
    vectors = model.encode_image(torch.stack([transform(p) for p in images(photos)]), normalize=True)
    expected = (model.logit_scale.exp() * vectors @ classes).softmax(1).numpy()
    made = run.named(CLASSES, templates=TEMPLATES).predict(photos)
    found = np.asarray([made[f"p({c})"].to_pylist() for c in CLASSES]).T
    assert np.abs(found[:-1].astype(float) - expected).max() < 1e-4 and expected.std(0).max() > 0.01
    assert made["label"].to_pylist() == [*(CLASSES[i] for i in expected.argmax(1)), None]
    assert made["unread"].to_pylist()[-1] == "image" and set(found[-1]) == {None}
    alone = run.named(CLASSES, templates=TEMPLATES[:1]).predict(photos)["probability"].to_pylist()
    assert np.abs(np.asarray(alone[:-1]) - expected.max(1)).max() > 1e-3  # one template is not all
    usual = run.named(["dog", "cat"]).predict(photos)
    assert usual.equals(run.named(["dog", "cat"], templates=["a photo of a {}"]).predict(photos))


@torch.no_grad()
def test_a_classifier_tells_the_classes_that_timm_tells(photos, tmp_path):
    declare_torchvision()
    import timm
    from timm.data import create_transform

    peer = timm.create_model("vit_tiny_patch16_224", num_classes=12, img_size=32, patch_size=8, depth=2)
    peer = shaken(peer)
    save_file(peer.state_dict(), tmp_path / "model.safetensors")
    transform = create_transform(32, crop_pct=0.9, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)
    x = torch.stack([transform(p) for p in images(photos)])
    expected, pooled = peer(x).softmax(1).numpy(), unit(peer.forward_head(peer.forward_features(x), pre_logits=True))
    names = [f"kind {i}" for i in range(12)]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
    with pocket("vit", "tiny_patch16_224", dict(PICTURE, width=192, heads=3, num_classes=12)) as name:
        run = plait.use(name, weights=tmp_path, folder=tmp_path / "a", classes=tmp_path / "names.txt", console=QUIET)
        bare = plait.use(name, weights=tmp_path, folder=tmp_path / "b", console=QUIET)
        (tmp_path / "config.json").write_text(json.dumps({"id2label": {str(i): f"breed {i}" for i in range(12)}}))
        told = plait.use(name, weights=tmp_path / "model.safetensors", folder=tmp_path / "c", console=QUIET)
        with pytest.raises(UsageError, match=r"tells 12 classes, got 3 names: give each its own"):
            plait.use(name, weights=tmp_path, folder=tmp_path / "d", classes=["a", "b", "c"], console=QUIET)
        with pytest.raises(UsageError, match=r"got 12 names, 'a' more than once"):
            plait.use(name, weights=tmp_path, folder=tmp_path / "d", classes=["a"] * 12, console=QUIET)
    made = run.predict(photos)
    found = np.asarray([made[f"p({c})"].to_pylist()[:-1] for c in names], float).T
    assert np.abs(found - expected).max() < 1e-4 and np.ptp(expected, 1).min() > 0.01
    for other, says in ((bare, int), (told, "breed {}".format)):
        assert other.predict(photos)["label"].to_pylist() == [*map(says, expected.argmax(1).tolist()), None]
    assert np.abs(vectors(run.embed(photos)) - pooled).max() < 1e-4
    near = run.search(photos, image=photos / "3.png", k=2)
    assert (near[0].cell, near[0].score) == ("3.png", pytest.approx(1, abs=1e-5)) and near[1].score < 1
    rows = {"image": [str(photos / f"{i}.png") for i in range(5)], "label": [names[i] for i in expected.argmax(1)]}
    scores = {s.name: s for s in run.evaluate(rows, allow_outside=True).scores}
    assert scores["accuracy"].value == 1 and scores["accuracy"].n == 5
    assert scores["log loss"].value == pytest.approx(-np.log(expected.max(1)).mean(), abs=1e-4)


def test_a_row_of_no_class_is_given_one_as_seldom_as_is_said():
    """By chance as often as 5% of the draws, whatever the cosines are; and where others are far off, hardly a class is
    lost."""
    rng, n, most = np.random.default_rng(0), 400, []
    for m in (19, 40, 333):
        found = []
        for _ in range(60):
            others, rows = rng.gamma(2, size=m) ** 2, rng.gamma(2, size=n) ** 2  # of one kind, as skewed as can be
            task = ClassifyByTexts(["a", "b"], "image", torch.zeros(2, 3), 1.0, others.astype(np.float32))
            outputs = {"outputs": np.zeros((n, 2), np.float32), "alike": rows.astype(np.float32), "there": rows > -1}
            told = task.columns(task.finish(outputs))
            assert [c == NONE for c in told["label"]] == [p is None for p in told["probability"]]
            assert [c == NONE for c in told["label"]] == [p > 0.05 for p in told["none"]]
            found.append(np.mean([c != NONE for c in told["label"]]))
        most.append(np.mean(found))
    exact = [np.floor(0.05 * (m + 1)) / (m + 1) for m in (19, 40, 333)]  # 1/20, 2/41, 16/334
    assert np.abs(np.array(most) - exact).max() < 0.012 and 0.03 < min(most)


def test_none_of_these_is_what_looks_like_the_others(other, photos, tmp_path):
    _, run = other
    (tmp_path / "all").mkdir(), (tmp_path / "others").mkdir()
    for i in range(30):
        picture((40, 40), 100 + i).save(tmp_path / "all" / f"{i:02}.png")
    named = run.named(CLASSES)
    best = (vectors(run.embed(tmp_path / "all")) @ named.task.texts.numpy().T).max(1)
    others = np.sort(np.argsort(best)[:24])
    for i in others:
        shutil.copy(tmp_path / "all" / f"{i:02}.png", tmp_path / "others")
    plain = named.predict(tmp_path / "all")
    made = run.named(CLASSES, none=tmp_path / "others").predict(tmp_path / "all")
    assert made.column_names == [*plain.column_names[:-1], "none", "unread"]
    assert all(made[f"p({c})"].equals(plain[f"p({c})"]) for c in CLASSES)
    assert made["none"].to_pylist() == pytest.approx([(1 + (best[others] >= b).sum()) / 25 for b in best])
    expected = [NONE if i in others else c for i, c in enumerate(plain["label"].to_pylist())]
    assert made["label"].to_pylist() == expected and len({*expected}) > 1
    assert run.named(CLASSES, none=tmp_path / "others").predict(photos)["label"].to_pylist()[-1] is None
    with pytest.raises(DataError, match="has 5 readable rows of no class: expected 19 or more"):
        run.named(CLASSES, none=photos)


@torch.no_grad()
def test_pictures_are_captioned_as_by_transformers(photos, tmp_path):
    declare_torchvision()
    from transformers import GitConfig, GitForCausalLM
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    eyes = dict(hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=32)
    text = dict(vocab_size=VOCAB, hidden_size=48, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4)
    ends = dict(bos_token_id=101, eos_token_id=102, pad_token_id=0, max_position_embeddings=32)
    peer = shaken(GitForCausalLM(GitConfig(vision_config=eyes | dict(patch_size=8), **text, **ends)))
    peer.save_pretrained(tmp_path)
    tokenizer = published.bert(VOCAB)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    process = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pixels = process(images(photos), return_tensors="pt")["pixel_values"]
    written = peer.generate(pixel_values=pixels, max_length=32, do_sample=False)
    expected = [tokenizer.decode(ids.tolist(), skip_special_tokens=True) for ids in written]
    shape = dict(image=(32, 32), patch=8, image_width=32, image_depth=2, image_heads=2, vocab=VOCAB, length=32)
    with pocket("git", "base_coco", shape | dict(width=48, depth=2, heads=4), file="model.safetensors") as name:
        run = plait.use(name, weights=tmp_path, folder=tmp_path / "run", console=QUIET)
    made = run.predict(photos)
    assert made.column_names == ["row", "caption", "probability", "unread"]
    assert made["caption"].to_pylist() == [*expected, ""] and len({*expected}) > 1
    with pytest.raises(UsageError, match="no vectors"):
        run.embed(photos)
    with pytest.raises(UsageError, match="this run does caption: only a run of"):
        run.search(photos, text="a cat")
    table = {"image": [str(photos / f"{i}.png") for i in range(5)], "caption": [e.strip() for e in expected]}
    scores = {s.name: s.value for s in run.evaluate(table, allow_outside=True).scores}
    assert scores["chrF"] > 0.9 and scores["perplexity"] > 1  # none of these texts ends: the last word is cut off


@torch.no_grad()
def test_sounds_are_transcribed_as_by_transformers(tmp_path):
    declare_torchvision()
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    (tmp_path / "sounds").mkdir()
    heard = [np.sin(np.arange(n) * pitch).astype(np.float32) / 2 for n, pitch in ((40_000, 0.1), (9000, 1), (8000, 2))]
    for i, sound in enumerate(heard):
        soundfile.write(tmp_path / "sounds" / f"{i}.wav", sound, 16_000, subtype="FLOAT")
    end, first, begin = VOCAB - 4, VOCAB - 3, VOCAB - 2
    special = {end: "<|endoftext|>", first: "<|startoftranscript|>", begin: "<|notimestamps|>"}
    tokenizer = Tokenizer(models.WordLevel(published.filled(VOCAB, special, 1000), unk_token="<|endoftext|>"))
    around = f"{special[first]} {special[begin]} $A {special[end]}"
    known = [(word, i) for i, word in special.items()]
    tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=known)
    published.added(tokenizer, special.values()).save(str(tmp_path / "tokenizer.json"))
    layers = dict(encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, d_model=32)
    ends = dict(bos_token_id=end, eos_token_id=end, pad_token_id=end, decoder_start_token_id=first)
    wide = dict(encoder_ffn_dim=128, decoder_ffn_dim=128, num_mel_bins=40, max_target_positions=24)
    peer = shaken(WhisperForConditionalGeneration(WhisperConfig(vocab_size=VOCAB, **layers, **wide, **ends)), 0.1)
    for layer in peer.model.decoder.layers:  # what is heard is to be heard
        layer.encoder_attn.v_proj.weight.mul_(20)
    peer.save_pretrained(tmp_path)
    x = WhisperFeatureExtractor(feature_size=40)(heard, sampling_rate=16_000, return_tensors="pt")["input_features"]
    ids = torch.tensor([[first, begin]]).repeat(3, 1)
    sound = peer.model.encoder(x)
    for _ in range(22):  # the likeliest word each time, as far as there are places
        ids = torch.cat([ids, peer(encoder_outputs=sound, decoder_input_ids=ids).logits[:, -1:].argmax(2)], 1)
    expected = [tokenizer.decode(row, skip_special_tokens=True) for row in ids.tolist()]
    shape = dict(mels=40, vocab=VOCAB, length=23, before=(first,), begin=begin, end=end, width=32)
    row = dict(begin=begin, end=end, file="model.safetensors")
    with pocket("whisper", "tiny", shape | dict(hear_depth=2, depth=2, heads=4), **row) as name:
        run = plait.use(name, weights=tmp_path, folder=tmp_path / "run", console=QUIET)
    made = run.predict(tmp_path / "sounds")["text"].to_pylist()
    assert made == expected and len({*expected}) > 1


def test_every_published_size_makes_a_run_or_is_refused_in_a_sentence(tmp_path):
    """All that stands in a run but its weights."""
    tokenizer, done = words(tmp_path), Counter()
    for name in plait.list_models():
        info = plait.model_info(name)
        if not {"hub", "url"} & set(info.weights):
            continue
        try:
            task, takes = work_of(info)
            schema = schema_of(info, task, takes, {}, tokenizer)
        except UsageError as why:
            done[str(why).split(" ")[0]] += 1
            continue
        done[task.name] += 1
        made = recipe(info, schema, task, pretrained=True)
        assert made.role in info.roles and [s.name for s in schema.slots] == list(takes)
        column = schema.column("image").params if "image" in takes else {}
        assert ("crop_pct" in info.weights) == ("crop" in column) or "image" not in takes
        assert column.get("size", [32, 32])[0] >= 32, name
        if task.name == "answer":  # question and answer stand in as many places as there are
            assert schema.column("text").params["max_tokens"] + schema.column("answer").params["max_tokens"] <= 512
    assert {"retrieve", "embed", "classify_published", "caption", "answer", "transcribe_in_words"} <= set(done)
    assert done["classify_published"] > 140 and done["plait"] > 50 and done["what"] > 2  # is for ..., is published


@torch.no_grad()
@pytest.mark.parametrize(
    "system, size, more",
    [
        ("albef", "base_384_coco", dict(vocab=VOCAB, mask=103, guess=False)),
        ("beit3", "base_patch16_224_retrieval", dict(vocab=VOCAB, mask=103)),
        ("mobileclip", "s1", dict(vocab=VOCAB)),
        ("vitamin_clip", "s", dict(vocab=VOCAB)),
        ("fnet", "base", dict(vocab=VOCAB, num_classes=0)),
        ("cvt", "13", {}),
        ("dinov2", "small_patch14", dict(num_classes=0)),
        ("vit_clip", "base_patch16_quickgelu_224", {}),
    ],
)
def test_what_a_run_gives_is_what_its_model_gives(system, size, more, photos, tmp_path):
    family = published.bert if "mask" in more else published.clip
    ends = ENDS[family.__name__] | dict(file="model.safetensors")
    with pocket(system, size, systems()[system].sizes["toy"] | more, **ends) as name:
        info = plait.model_info(name)
        model = shaken(plait.create_model(name))
        state = plait.save_weights(model, info.weights["source"])
        save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "model.safetensors")
        family(VOCAB).save(str(tmp_path / "tokenizer.json"))
        run = plait.use(name, weights=tmp_path, folder=tmp_path / "run", console=QUIET)
        batch = run.rows({"text": list(TEXTS)} if info.takes == ("text",) else photos).batch(np.arange(4))
        ready = run.model.bound.prepared(batch)
        (slot, *_) = info.takes
        if "embedder" in info.roles:
            expected = model.embed({slot: ready[slot], "present": {slot: ready["present"][slot]}})[slot]
        else:
            expected = model.pool(model.tokens(ready[slot], ready["keep"].get(slot)))
        if "text" in info.takes:
            ids = KINDS["text"].encode("a cat", run.schema.column("text").params, Place())
            assert (ids[-1] == info.weights["end"]) == (system != "albef")  # whose code puts no end
        made = run.embed({"text": list(TEXTS)} if slot == "text" else photos)
    assert np.abs(vectors(made)[:4] - unit(expected)).max() < 1e-5
    assert isinstance(run.task, ClassifyPublished) == (system == "cvt")
