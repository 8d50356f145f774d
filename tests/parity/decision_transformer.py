"""Decision Transformer against transformers: actions, and the states and returns that it expects, of trajectories whose
beginning is padding, at steps anywhere in an episode."""

from __future__ import annotations

import torch

import plait
from plait.core.catalog import systems
from tests.parity.compare import Row, count, perturb, relative_error
from tests.parity.norms import epsilons
from tests.peers import declare_torchvision

SYSTEM = "decision_transformer"
CASES = {f"{SYSTEM}_{size}": row["references"]["transformers"] for size, row in systems()[SYSTEM].weights.items()}
WORLDS = {"hopper": (11, 3), "walker2d": (17, 6), "halfcheetah": (17, 6)}  # numbers of a state and of an action


def trajectories(states: int, actions: int) -> tuple[dict, torch.Tensor, torch.Tensor]:
    """{slot: (B, T, C)}, keep and steps (B, T): their beginnings are padding, at steps anywhere in an episode."""
    g = torch.Generator().manual_seed(1)
    channels = {"returns": 1, "states": states, "actions": actions}
    x = {slot: torch.randn(3, 20, count, generator=g) for slot, count in channels.items()}
    keep = torch.arange(20) >= torch.tensor([0, 7, 15])[:, None]
    return x, keep, (torch.tensor([[980], [0], [300]]) + torch.arange(20)) * keep


def said(theirs: torch.nn.Module, x: dict, keep: torch.Tensor, steps: torch.Tensor):
    """What transformers' model makes of them."""
    return theirs(
        states=x["states"],
        actions=x["actions"],
        rewards=torch.zeros(3, 20, 1),
        returns_to_go=x["returns"],
        timesteps=steps,
        attention_mask=keep.long(),
    )


@torch.no_grad()
def parity(name: str) -> Row:
    declare_torchvision()
    from transformers import DecisionTransformerConfig, DecisionTransformerModel

    states, actions = WORLDS[name.split("_")[3]]
    # what the published config.json says; a file of 6.6 MB holds no more than 1,000 steps
    made = DecisionTransformerConfig(state_dim=states, act_dim=actions, max_ep_len=1000)
    theirs = perturb(DecisionTransformerModel(made))
    ours = plait.load_weights(plait.create_model(name).eval(), theirs.state_dict(), source="transformers")
    assert epsilons(ours) == epsilons(theirs)
    x, keep, steps = trajectories(states, actions)
    expected = said(theirs, x, keep, steps)
    got = ours.act(x | {"steps": steps, "keep": dict.fromkeys(x, keep)})
    truth = {"actions": expected.action_preds, "states": expected.state_preds, "returns": expected.return_preds}
    error = max(relative_error(got[what][keep], value[keep]) for what, value in truth.items())
    unread = theirs.encoder.wte.weight.numel()  # the table of a single word, which nobody reads
    return Row(name, f"transformers {CASES[name]}", count(ours), count(theirs) - unread, error)
