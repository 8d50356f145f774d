"""From a file or a text to logits: by `plait.Reader` and our model, and by the peer's own pipeline and its model, with
the same random weights. A few run always, all of them with `pytest -m parity_all`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch import Tensor

import plait
from plait.errors import DataError, UsageError
from tests.data.test_crop import picture, tag_of
from tests.parity.compare import perturb, relative_error
from tests.peers import declare_torchvision
from tests.published import unigram, write_tokenizer

TOLERANCE = 1e-4
SHAPES = [(301, 214), (97, 333)]  # whose middles transformers and torchvision round differently
TEXTS = ["a red square", "The cat on the mat, in  blue of left dog!"]
Pair = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Two PNGs of no even shape, and a WAV of 16 bits that is silent at first and nearly full at last."""
    folder = tmp_path_factory.mktemp("files")
    for n, shape in enumerate(SHAPES):
        picture(shape, seed=n).save(folder / f"{n}.png")
    time = np.arange(4 * 16_000) / 16_000
    sound = 0.999 * np.sin(3000 * time + 300 * time**2) * (time / 4) ** 3
    soundfile.write(folder / "s.wav", sound, 16_000, subtype="PCM_16")
    return folder


def pictures(files: Path) -> list[str]:
    return [str(files / f"{n}.png") for n in range(len(SHAPES))]


def opened(files: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in pictures(files)]


def with_timm(name: str, files: Path) -> Pair:
    import timm
    from timm.data import create_transform, resolve_data_config

    info = plait.model_info(name)
    arch = info.references["timm"].split(".")[0]
    cfg = tag_of(info, arch)
    prepare = create_transform(**resolve_data_config(pretrained_cfg=cfg.to_dict()))
    theirs = perturb(timm.create_model(arch, num_classes=cfg.num_classes))
    ours = plait.load_weights(plait.create_model(name).eval(), theirs.state_dict(), "timm")
    batch = plait.Reader(name)(image=pictures(files))
    return ours(batch["image"]), theirs(torch.stack([prepare(p) for p in opened(files)]))


def clip_words(folder: Path) -> Path:
    """tokenizer.json as the hub has it, of open_clip's own table."""
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    known = SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    words = {names.get(word, word): i for word, i in known.encoder.items()}
    made = CLIPTokenizer(vocab=words, merges=[*known.bpe_ranks])
    made.backend_tokenizer.save(str(folder / "clip.json"))
    return folder / "clip.json"


def with_open_clip(name: str, files: Path) -> Pair:
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    info = plait.model_info(name)
    peer, hub = info.references["open_clip"], info.weights["hub"].split("/")
    cfgs = (get_pretrained_cfg(peer, tag) for tag in list_pretrained_tags_by_model(peer))
    cfg = next(c for c in cfgs if c.get("hf_hub", "").split("/")[:2] == hub)
    theirs = perturb(open_clip.create_model(peer))
    how = {key: cfg[key] for key in ("mean", "std", "interpolation", "resize_mode")}
    prepare = open_clip.image_transform(theirs.visual.image_size, is_train=False, **how)
    ours = plait.load_weights(plait.create_model(name).eval(), theirs.state_dict(), "open_clip")
    batch = plait.Reader(name, tokenizer=clip_words(files))(image=pictures(files), text=TEXTS)
    got, ids = ours(batch), open_clip.get_tokenizer(peer)(TEXTS)
    images = theirs.encode_image(torch.stack([prepare(p) for p in opened(files)]), normalize=True)
    wanted = images @ theirs.encode_text(ids, normalize=True).T
    return got["image"] @ got["text"].T, wanted


def tokens(file: Path, pad: str, **how) -> dict[str, Tensor]:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(file), pad_token=pad, **how)(
        TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False
    )


def with_bert(name: str, files: Path) -> Pair:
    from transformers import BertModel

    from tests.parity.bert import config

    info = plait.model_info(name)
    words = write_tokenizer(info, files / "bert")
    theirs = perturb(BertModel(config(info.references["transformers"])))
    ours = plait.load_weights(plait.create_model(name).eval(), theirs.state_dict(), "transformers")
    batch = plait.Reader(name, tokenizer=words)(text=TEXTS)
    return ours.pool(ours.tokens(batch["text"], batch["keep"]["text"])), theirs(**tokens(words, "[PAD]")).pooler_output


def with_t5(name: str, files: Path) -> Pair:
    from tokenizers import processors

    from tests.parity.t5 import peer

    made = unigram(32_100, {0: "<pad>", 1: "</s>", 2: "<unk>"}, "<pad>", "</s>")
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.save(str(files / "t5.json"))
    theirs = perturb(peer(plait.model_info(name).references["transformers"], 2))
    ours = plait.create_model(name, depth=2).eval()
    plait.load_weights(ours, theirs.state_dict(), plait.model_info(name).weights["source"])
    batch, said = plait.Reader(name, tokenizer=files / "t5.json")(text=TEXTS), torch.tensor([[0, 7, 9], [0, 3, 5]])
    got, _ = ours.step(said, ours.prefill(batch))
    return got, theirs(**tokens(files / "t5.json", "<pad>"), decoder_input_ids=said).logits


def with_cvt(name: str, files: Path) -> Pair:
    from transformers import CvtConfig, CvtForImageClassification
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

    theirs = perturb(CvtForImageClassification(CvtConfig(num_labels=1000, depth=[1, 2, 10])))
    ours = plait.load_weights(plait.create_model(name).eval(), theirs.state_dict(), "transformers")
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # as the published preprocessor_config.json says
    prepare = ConvNextImageProcessorPil(size={"shortest_edge": 224}, crop_pct=0.875, image_mean=mean, image_std=std)
    x = prepare(opened(files), return_tensors="pt").pixel_values
    return ours(plait.Reader(name)(image=pictures(files))["image"]), theirs(x).logits


def with_git(name: str, files: Path) -> Pair:
    from transformers import GitConfig, GitForCausalLM
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    words = write_tokenizer(plait.model_info(name), files / "git")
    made = GitConfig(num_hidden_layers=2, vision_config={"num_hidden_layers": 2})
    theirs = perturb(GitForCausalLM(made))
    ours = plait.create_model(name, depth=2, image_depth=2).eval()
    plait.load_weights(ours, theirs.state_dict(), "transformers")
    batch = plait.Reader(name, tokenizer=words)(image=pictures(files), text=TEXTS)
    keep = batch["keep"]["text"]
    got, _ = ours.step(batch["text"], ours.prefill({"image": batch["image"]}), keep)
    x = CLIPImageProcessorPil(size={"shortest_edge": 224})(opened(files), return_tensors="pt").pixel_values
    asked = tokens(words, "[PAD]")
    n = asked["input_ids"].shape[1]
    wanted = theirs(**asked, pixel_values=x).logits[:, -n:]
    return got[:, :n][keep[:, :n]], wanted[asked["attention_mask"].bool()]


def with_whisper(name: str, files: Path) -> Pair:
    from transformers import WhisperFeatureExtractor

    from tests.parity.whisper import lively, published

    theirs = lively(published(plait.model_info(name).references["transformers"]))
    ours = plait.load_weights(plait.create_model(name).eval(), theirs.state_dict(), "transformers")
    batch = plait.Reader(name)(audio=[str(files / "s.wav")])
    sound, rate = soundfile.read(files / "s.wav", dtype="float32")
    heard = WhisperFeatureExtractor(feature_size=80)(sound, sampling_rate=rate, return_tensors="pt").input_features
    asked = torch.tensor([[*ours.before, ours.begin]])
    got, _ = ours.step(asked[:, -1:], ours.prefill(batch))
    return got, theirs(heard, decoder_input_ids=asked).logits[:, -1:]


CASES: dict[str, Callable[[str, Path], Pair]] = {
    "vit_tiny_patch16_224": with_timm,
    "bert_l2_h128": with_bert,
    "whisper_tiny": with_whisper,
    "deit_tiny_patch16_224": with_timm,
    "swin_tiny_patch4_window7_224": with_timm,
    "resnet_18.tv_in1k": with_timm,
    "edgenext_xx_small": with_timm,
    "efficientvit_m_m0": with_timm,
    "crossvit_tiny": with_timm,
    "davit_tiny": with_timm,
    "tiny_vit_5m_224": with_timm,
    "hiera_tiny_224": with_timm,
    "maxvit_tiny_tf_384": with_timm,
    "dinov2_small_patch14": with_timm,
    "vit_siglip_base_patch16_224": with_timm,
    "vitamin_small_224": with_timm,
    "clip_vit_b_32": with_open_clip,
    "mobileclip_s1": with_open_clip,
    "vitamin_clip_s": with_open_clip,
    "cvt_13": with_cvt,
    "git_base": with_git,
    "t5_small": with_t5,
}
FEW = 3


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.parity_all] * (n >= FEW), id=name) for n, name in enumerate(CASES)],
)
@torch.no_grad()
def test_what_is_read_from_disk_gives_the_peers_logits(name, files, record_property):
    declare_torchvision()
    torch.manual_seed(0)  # some references draw their weights from the global state
    got, wanted = CASES[name](name, files)
    error = relative_error(got, wanted)
    record_property("error", error)
    print(f"{name}: {error:.1e}")
    assert error < TOLERANCE


@torch.no_grad()
def test_another_way_of_reading_would_show(files, monkeypatch):
    """Or the tests above would prove nothing."""
    declare_torchvision()
    from plait.runs import reading

    for wrong in (
        dict(interpolation="bilinear"),
        dict(crop_pct=1.0),
        dict(crop_mode="floor"),
        dict(crop_mode="squash"),
    ):
        how = reading.cropped(plait.model_info("vit_tiny_patch16_224").weights) | wrong
        monkeypatch.setattr(reading, "cropped", lambda row: how)
        torch.manual_seed(0)
        assert relative_error(*with_timm("vit_tiny_patch16_224", files)) > 3 * TOLERANCE, wrong
        monkeypatch.undo()


def test_what_a_reader_cannot_read_is_named(files, tmp_path):
    read = plait.Reader("vit_tiny_patch16_224")
    batch = read(image=[pictures(files)[0], None, (files / "1.png").read_bytes()])
    assert batch["image"].shape == (3, 3, 224, 224) and batch["present"]["image"].tolist() == [True, False, True]
    assert set(batch) == {"image", "keep", "present"}
    assert plait.Reader("vit_tiny_patch16_224", image=(64, 96))(image=pictures(files))["image"].shape == (2, 3, 64, 96)
    (tmp_path / "odd.png").write_bytes(b"no picture")
    for given, why, kind in (
        (dict(image=[str(tmp_path / "odd.png")]), "odd.png' cannot be read: not a picture", DataError),
        (dict(image=["nowhere.png"]), "nowhere.png cannot be read: No such file", DataError),
        (dict(text=["a"]), "reads no text", UsageError),
        (dict(), "got nothing", UsageError),
    ):
        with pytest.raises(kind, match=why):
            read(**given)
    with pytest.raises(UsageError, match="2 of image, 1 of text: give each row one of each"):
        plait.Reader("clip_vit_b_32")(image=pictures(files), text=["a"])
    with pytest.raises(UsageError, match="has no published weights"):
        plait.Reader("vit_nano")
    with pytest.raises(UsageError, match="is not the tokenizer of clip_vit_b_32's weights"):
        words = write_tokenizer(plait.model_info("bert_l2_h128"), tmp_path / "bert")
        plait.Reader("clip_vit_b_32", tokenizer=words)(text=["a"])


def test_a_text_is_as_long_as_the_model_reads(tmp_path):
    """And not as those beside it are."""
    words = write_tokenizer(plait.model_info("bert_l2_h128"), tmp_path / "bert")
    batch = plait.Reader("bert_l2_h128", tokenizer=words)(text=["a cat"] * 200 + ["cat " * 600])
    assert batch["text"].shape == (201, 512) and batch["keep"]["text"].sum(1).tolist() == [4] * 200 + [512]
