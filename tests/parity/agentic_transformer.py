"""Agentic Transformer against transformers' Decision Transformer, which it is on a single try where nothing is told
after an action: actions of trajectories whose beginning is padding, at steps anywhere in an episode.

Of their model what says the next states and returns is left out, which this one has not.
"""

from __future__ import annotations

import torch

import plait
from plait.core.catalog import systems
from tests.parity.compare import Row, count, perturb, relative_error
from tests.parity.decision_transformer import WORLDS, said, trajectories
from tests.parity.norms import epsilons
from tests.peers import declare_torchvision

SYSTEM = "agentic_transformer"
CASES = {f"{SYSTEM}_{size}": "a single try" for size in systems()[SYSTEM].sizes if size.startswith("gym_")}


@torch.no_grad()
def parity(name: str) -> Row:
    declare_torchvision()
    from transformers import DecisionTransformerConfig, DecisionTransformerModel

    states, actions = WORLDS[name.split("_")[3]]
    made = DecisionTransformerConfig(state_dim=states, act_dim=actions, max_ep_len=1000)
    theirs = perturb(DecisionTransformerModel(made))
    ours = plait.create_model(name, after=(), places=made.n_positions).eval()
    plait.load_weights(ours, theirs.state_dict(), source="transformers")
    assert epsilons(ours) == epsilons(theirs)
    x, keep, steps = trajectories(states, actions)
    want = said(theirs, x, keep, steps).action_preds
    got = ours.act(x | {"steps": steps, "keep": dict.fromkeys(x, keep)})["actions"]
    unread = (theirs.encoder.wte, theirs.predict_state, theirs.predict_return)
    known = count(theirs) - sum(map(count, unread))
    return Row(
        name,
        "transformers Decision Transformer, a single try",
        count(ours),
        known,
        relative_error(got[keep], want[keep]),
    )
