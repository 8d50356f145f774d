"""Adapters: what they start as, what learns, merging, and peft's files."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import plait
from plait.core.attend import seams
from plait.core.catalog import systems
from plait.errors import DataError, PlaitError
from plait.methods.adaptation.lora import merge
from plait.parts.adapters import CONFIG, WEIGHTS, LoRALinear, read_adapter, write_adapter
from plait.train.optim import adamw
from tests.contract.examples import example, run, toy
from tests.peers import declare_torchvision

OURS = dict(width=32, depth=2, heads=2, hidden=64, vocab=64, length=16)
BARE = {"efficientvit_m", "fmvit", "tokenformer", "zipformer"}  # attention is in other modules' hands


def adapters(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}


def shaken(model, size=0.1):
    """Every B as if it had learnt."""
    with torch.no_grad():
        for m in adapters(model).values():
            m.lora_B.weight.copy_(size * torch.randn(m.lora_B.weight.shape))
    return model


def heard(model, batch, system):
    """Names of the linear layers that any output hangs on: some models have layers that no one asks."""
    sum(v.square().sum() for v in run(model, batch, system).values() if v.requires_grad).backward()
    linear = {n: m.weight.grad for n, m in model.named_modules() if type(m) is nn.Linear}
    return {name for name, grad in linear.items() if grad is not None and grad.abs().sum() > 0}


def scaled(model):
    """Whether its branches begin at a millionth."""
    return any(n.endswith("gamma") and p.abs().max() < 1e-5 for n, p in model.named_parameters())


def words(rows=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(1, 64, (rows, 9), generator=g), torch.ones(rows, 9, dtype=torch.bool)


@pytest.mark.parametrize("system", [pytest.param(s, id=s.name) for s in systems().values()])
def test_it_starts_as_the_model_learns_in_every_layer_and_merges(system):
    model = toy(system).eval()
    batch = example(model)
    told = heard(toy(system).eval(), batch, system)
    with torch.no_grad():
        want = run(model, batch, system)
        if system.name in BARE or not seams(model):
            with pytest.raises(PlaitError, match="no linear layers around attention"):
                plait.apply_method(model, "lora", rank=2)
            return
        plait.apply_method(model, "lora", rank=2)
        for k, v in run(model, batch, system).items():  # kernels round by where their operands lie
            torch.testing.assert_close(v, want[k], rtol=1e-5, atol=1e-5, msg=lambda m, k=k: f"{k}: {m}")
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        f"{n}.lora_{k}.weight" for n in adapters(model) for k in "AB"
    }
    out = run(shaken(model), batch, system)
    sum(v.square().sum() for v in out.values() if v.requires_grad).backward()
    for name, m in adapters(model).items():
        if name in told:
            assert m.lora_A.weight.grad.abs().sum() > 0 and m.lora_B.weight.grad.abs().sum() > 0, name
    keys = list(toy(system).state_dict())
    merge(model)
    assert list(model.state_dict()) == keys and not adapters(model) and told
    for k, v in run(model, batch, system).items():
        torch.testing.assert_close(v, out[k], rtol=1e-4, atol=1e-4, msg=lambda m, k=k: f"{k}: {m}")
    assert any((v - want[k]).abs().max() > 1e-5 for k, v in run(model, batch, system).items()) or scaled(model)


def test_an_optimizer_moves_adapters_alone_and_the_undo_leaves_the_model():
    model = plait.create_model("vit_toy", num_classes=0).eval()
    before, x = {k: v.clone() for k, v in model.state_dict().items()}, torch.rand(2, 3, 32, 32)
    want = model(x)
    undo = plait.apply_method(model, "lora", targets="all")
    assert torch.equal(model(x), want)
    optimizer = adamw(model, 0.01, 0.05)
    for _ in range(2):
        model(x).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items() if "lora" not in k)
    assert not torch.equal(model(x), want) and all(m.lora_B.weight.abs().sum() > 0 for m in adapters(model).values())
    undo()
    assert torch.equal(model(x), want) and all(p.requires_grad for p in model.parameters())


def test_targets_are_names_and_an_unknown_one_is_told():
    model = plait.create_model("vit_toy")
    plait.apply_method(model, "lora", targets=("up", "qkv"))
    assert {n.rpartition(".")[2] for n in adapters(model)} == {"up", "qkv"}
    with pytest.raises(ValueError, match="has adapters already"):
        plait.apply_method(model, "lora")
    for options, why in ((dict(targets=("qvk",)), "no linear layer qvk: its own are"), (dict(rank=0), "1 or more")):
        fresh = plait.create_model("vit_toy")
        with pytest.raises(ValueError, match=why):
            plait.apply_method(fresh, "lora", **options)
        assert all(p.requires_grad for p in fresh.parameters())


@pytest.mark.parametrize("targets", [["query", "value"], ["query", "key", "value", "dense"]])
def test_peft_and_plait_read_each_others_files(targets, tmp_path):
    declare_torchvision()
    import peft
    from transformers import BertConfig, BertModel

    size = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=64)
    theirs = BertModel(BertConfig(max_position_embeddings=16, **size)).eval()
    base = {k: v.clone() for k, v in theirs.state_dict().items()}
    tuned = peft.get_peft_model(theirs, peft.LoraConfig(target_modules=targets, r=3, lora_alpha=12)).eval()
    with torch.no_grad():
        for name, p in tuned.named_parameters():
            if "lora_B" in name:
                p.copy_(0.3 * torch.randn(p.shape))
    tuned.save_pretrained(tmp_path / "peft")
    ids, keep = words()
    want = tuned(input_ids=ids, attention_mask=keep.long()).last_hidden_state

    def ours():
        made = plait.create_model("bert_toy", num_classes=0, **OURS)
        return plait.load_weights(made, base, source="transformers").eval()

    model = ours()
    plain = model.tokens(ids, keep).x
    read_adapter(model, tmp_path / "peft", source="transformers")
    got = model.tokens(ids, keep).x
    assert (got - want).norm() < 1e-5 * want.norm() < (got - plain).norm()
    merged = merge(model).tokens(ids, keep).x
    torch.testing.assert_close(merged, got, rtol=1e-4, atol=1e-5)

    again = ours()
    read_adapter(again, tmp_path / "peft", source="transformers")
    write_adapter(again, tmp_path / "ours", source="transformers", base="here")
    bare = BertModel(BertConfig(max_position_embeddings=16, **size)).eval()
    bare.load_state_dict(base)
    back = peft.PeftModel.from_pretrained(bare, tmp_path / "ours").eval()
    found = back(input_ids=ids, attention_mask=keep.long()).last_hidden_state
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)


def test_peft_reads_adapters_of_our_own_modules(tmp_path):
    declare_torchvision()
    import peft

    model, x = plait.create_model("vit_toy").eval(), torch.rand(2, 3, 32, 32)
    plait.apply_method(model, "lora", rank=3, alpha=5.0)
    want = shaken(model)(x)
    write_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(nn.Sequential(plait.create_model("vit_toy").eval())[0], tmp_path).eval()
    torch.testing.assert_close(theirs(x), want, rtol=1e-5, atol=1e-6)
    other = plait.create_model("vit_toy").eval()
    undo = read_adapter(other, tmp_path)
    assert torch.equal(other(x), want)
    undo()
    assert torch.equal(other(x), plait.create_model("vit_toy").eval()(x))


def test_files_that_cannot_be_used_are_told(tmp_path):
    model = plait.create_model("vit_toy")
    plait.apply_method(model, "lora")
    write_adapter(model, tmp_path)
    fresh, config, state = (
        plait.create_model("vit_toy"),
        json.loads((tmp_path / CONFIG).read_text()),
        load_file(tmp_path / WEIGHTS),
    )

    def told(error, why, config=config, state=state, target=fresh, **how):
        (tmp_path / CONFIG).write_text(json.dumps(config))
        save_file(state, tmp_path / WEIGHTS)
        with pytest.raises(error, match=why):
            read_adapter(target, tmp_path, **how)

    told(DataError, "use_dora.*expected a plain LoRA", config=config | {"use_dora": True})
    told(DataError, "got the key odd", state=state | {"odd": torch.zeros(1)})
    told(DataError, "an A and a B of each", state=dict(list(state.items())[:1]))
    told(PlaitError, "is it of this size", target=plait.create_model("vit_toy", width=64))
    told(PlaitError, "which the layout 'timm' has not", source="timm")
    (tmp_path / CONFIG).unlink()
    with pytest.raises(DataError, match="holds no adapter"):
        read_adapter(fresh, tmp_path)
    with pytest.raises(PlaitError, match="apply the method lora first"):
        write_adapter(fresh, tmp_path)
