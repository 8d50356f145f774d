"""BERT: every public layout, small; the masked-word head; what a wrong eps would cost."""

from __future__ import annotations

import pytest
import torch

import plait
from tests.parity.compare import perturb, relative_error
from tests.peers import declare_torchvision

TINY = dict(
    vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
    max_position_embeddings=16
)  # fmt: skip


def peer(name: str, **config):
    declare_torchvision()
    import transformers

    return perturb(getattr(transformers, name)(transformers.BertConfig(**TINY, **config)))


def ours(**arguments):
    return plait.create_model("bert_toy", **{"num_classes": 0, **arguments}).eval()


def example():
    ids = torch.randint(1, 64, (3, 12), generator=torch.Generator().manual_seed(0))
    keep = torch.arange(12) < torch.tensor([12, 7, 3])[:, None]
    return ids, keep


@pytest.mark.parametrize(
    "name, source, arguments",
    [
        ("BertModel", "transformers", {}),
        ("BertForSequenceClassification", "transformers_classifier", dict(num_classes=5)),
        ("BertForPreTraining", "transformers_pretraining", dict(num_classes=2, mlm=True)),
    ],
)
def test_every_class_has_a_layout_and_it_goes_back(name, source, arguments):
    theirs = peer(name, **({"num_labels": 5} if source == "transformers_classifier" else {}))
    model = plait.load_weights(ours(**arguments), theirs.state_dict(), source)
    back = plait.save_weights(model, source)
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(v, back[k]) for k, v in theirs.state_dict().items())


@torch.no_grad()
def test_the_classifier_agrees():
    theirs = peer("BertForSequenceClassification", num_labels=5)
    ids, keep = example()
    expected = theirs(input_ids=ids, attention_mask=keep.long()).logits
    assert (
        relative_error(
            plait.load_weights(ours(num_classes=5), theirs.state_dict(), "transformers_classifier")(ids, keep), expected
        )
        < 1e-5
    )


def published(state: dict, old_names: bool) -> dict:
    """`state` of BertForPreTraining as Google's files hold it: tied copies left out, norms by their old names."""
    state = {k: v for k, v in state.items() if not k.startswith("cls.predictions.decoder.")}
    if not old_names:
        return state
    return {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
        for k, v in state.items()
    }


@pytest.mark.parametrize("old_names", [True, False])
def test_published_files_load_with_their_heads_and_without(old_names):
    theirs = peer("BertForPreTraining").state_dict()
    whole = plait.load_weights(ours(num_classes=2, mlm=True), theirs, "transformers_pretraining").state_dict()
    state = published(theirs, old_names)
    loaded = plait.load_weights(ours(num_classes=2, mlm=True), state, "google_pretraining").state_dict()
    assert all(torch.equal(v, loaded[k]) for k, v in whole.items())
    bare = plait.load_weights(
        ours(), {**state, "bert.embeddings.position_ids": torch.arange(16)[None]}, "google"
    ).state_dict()
    assert bare.keys() < whole.keys() and all(torch.equal(v, whole[k]) for k, v in bare.items())
    with pytest.raises(ValueError, match="unknown"):
        plait.load_weights(ours(), state, "google_pretraining")


def test_an_untied_decoder_is_refused():
    state = peer("BertForPreTraining").state_dict()
    state["cls.predictions.decoder.weight"] = state["cls.predictions.decoder.weight"] + 1
    with pytest.raises(ValueError, match="differ"):
        plait.load_weights(ours(num_classes=2, mlm=True), state, "transformers_pretraining")


@torch.no_grad()
def test_masked_words_need_their_head():
    ids, keep = example()
    model = ours()
    with pytest.raises(ValueError, match="mlm=True"):
        model.words(model.tokens(ids, keep))


@torch.no_grad()
def test_the_eps_of_the_norms_matters():
    """The check that the others can fail: another eps is seen where a norm's input is small."""
    theirs = peer("BertModel", initializer_range=1e-3)
    ids, keep = example()
    expected = theirs(input_ids=ids, attention_mask=keep.long()).last_hidden_state
    model = plait.load_weights(ours(), theirs.state_dict(), "transformers")
    assert relative_error(model.tokens(ids, keep).x[keep], expected[keep]) < 1e-5
    for norm in [m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)]:
        norm.eps = 1e-6
    assert relative_error(model.tokens(ids, keep).x[keep], expected[keep]) > 1e-3
