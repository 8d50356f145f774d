"""RoBERTa, DistilBERT and MPNet: every public layout, small; padding on either side; the masked-word head."""

from __future__ import annotations

import pytest
import torch

import plait
from tests.parity.compare import perturb, relative_error
from tests.peers import declare_torchvision

TINY = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)
OFFSET = dict(max_position_embeddings=18, pad_token_id=1, layer_norm_eps=1e-5)
PLAIN = dict(vocab_size=64, dim=32, n_layers=2, n_heads=2, hidden_dim=128, max_position_embeddings=16)
SYSTEMS = {
    "roberta": ("Roberta", TINY | OFFSET | dict(type_vocab_size=1)),
    "distilbert": ("DistilBert", PLAIN),
    "mpnet": ("MPNet", TINY | OFFSET),
}
every_reader = pytest.mark.parametrize("name", SYSTEMS)


def peer(name: str, what: str, **config):
    declare_torchvision()
    import transformers

    kind, tiny = SYSTEMS[name]
    made = getattr(transformers, f"{kind}Config")(**tiny, **config)
    return perturb(getattr(transformers, f"{kind}{what}")(made))


def ours(name: str, **arguments):
    return plait.create_model(f"{name}_toy", **{"num_classes": 0, **arguments}).eval()


def example(pad: int):
    ids = torch.randint(5, 64, (3, 12), generator=torch.Generator().manual_seed(0))
    keep = torch.arange(12) < torch.tensor([12, 7, 3])[:, None]
    return torch.where(keep, ids, pad), keep


@torch.no_grad()
@every_reader
def test_every_class_has_a_layout_that_goes_back_and_agrees(name):
    bare, whole = peer(name, "Model"), peer(name, "ForSequenceClassification", num_labels=5)
    model = plait.load_weights(ours(name), bare.state_dict(), "transformers")
    ids, keep = example(bare.config.pad_token_id)
    given = dict(input_ids=ids, attention_mask=keep.long())
    assert relative_error(model.tokens(ids, keep).x[keep], bare(**given).last_hidden_state[keep]) < 1e-5
    model = plait.load_weights(ours(name, num_classes=5), whole.state_dict(), "transformers_classifier")
    assert relative_error(model(ids, keep), whole(**given).logits) < 1e-5
    back = plait.save_weights(model, "transformers_classifier")
    state = {k: v for k, v in whole.state_dict().items() if "position_ids" not in k}
    assert back.keys() == state.keys() and all(torch.equal(v, back[k]) for k, v in state.items())


@every_reader
def test_a_published_file_loads_without_the_head_of_its_training(name):
    theirs = peer(name, "ForMaskedLM").state_dict()
    source = next(iter(row["source"] for row in plait.core.catalog.systems()[name].weights.values()))
    whole = plait.load_weights(ours(name, mlm=True), theirs, "transformers_mlm").state_dict()
    bare = plait.load_weights(ours(name), theirs, source).state_dict()
    assert bare.keys() < whole.keys() and all(torch.equal(v, whole[k]) for k, v in bare.items())
    with pytest.raises(ValueError, match="mlm=True"):
        ours(name).words(ours(name).tokens(*example(0)))


@torch.no_grad()
@pytest.mark.parametrize("name", ["roberta", "mpnet"])
def test_padding_in_front_changes_nothing(name):
    """As in the published code, which counts the places of what is no padding."""
    theirs = peer(name, "Model")
    model = plait.load_weights(ours(name), theirs.state_dict(), "transformers")
    ids, keep = example(1)
    n = 7
    front = torch.cat([torch.full((1, 5), 1), ids[1:2, :n]], 1), torch.arange(12)[None] >= 5
    got = model.tokens(*front).x[:, 5:]
    assert relative_error(got, model.tokens(ids[1:2, :n]).x) < 1e-5
    want = theirs(input_ids=front[0], attention_mask=front[1].long()).last_hidden_state[:, 5:]
    assert relative_error(got, want) < 1e-5


@every_reader
def test_a_text_that_is_too_long_is_refused(name):
    with pytest.raises(ValueError, match="a sequence of 17 tokens, but there are positions for 16"):
        ours(name).tokens(torch.ones(1, 17, dtype=torch.int64))
