"""Decision Transformer: Reinforcement Learning via Sequence Modeling. Chen et al., 2021. arXiv:2106.01345.

New here: a policy is a sequence model. Each step is three tokens, the return that is still asked for, the state and the
action, with a learned mark of the step's number; a causal transformer says at each state's token what to do. Trained on
anybody's trajectories with the returns that these had, it is then asked for the return that one would like to have.

Differs: a step may lack any of the three, such as the action of the last one. The published layout is a language
model's: of its table of places the first is added everywhere, its only word is read by nobody and dropped.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from plait.core.block import Attention, Block, FeedForward, Pre, Stack
from plait.core.tokens import Tokens
from plait.core.weights import Drop, Rename, Transpose
from plait.errors import PlaitError
from plait.parts.presence import fill_absent

READS = ("returns", "states", "actions")  # the order of a step's tokens


class DecisionTransformer(nn.Module):
    """Trajectories so far -> what to do at each step, and which state and return are expected after it.

    slots: {"returns": {"channels": 1}, "states": ..., "actions": ...}. batch[slot] is (B, T, C), "returns" being those
    still asked for; batch["steps"] (B, T) int64 the steps' numbers in their episodes, if not 0, 1, 2, ...
    length: the most steps of an episode. places: rows of the table of which the first is used. tanh: actions lie
    between -1 and 1.
    """

    fits = ("slots",)

    def __init__(self, *, slots, width=128, depth=3, heads=1, length=1000, places=1024, tanh=True, dropout=0.1):
        super().__init__()
        if set(slots) != set(READS):
            raise PlaitError(f"got slots {', '.join(slots)}, expected {', '.join(READS)}: a policy reads these")
        channels = {name: slots[name]["channels"] for name in READS}
        self.takes, self.width, self.length, self.tanh = tuple(slots), width, length, tanh
        self.blanks = {name: ((1, c), torch.float32) for name, c in channels.items()}
        self.embed = nn.ModuleDict({name: nn.Linear(c, width) for name, c in channels.items()})
        self.steps = nn.Embedding(length, width)
        self.norm_in, self.drop = nn.LayerNorm(width), nn.Dropout(dropout)
        self.places = nn.Parameter(torch.empty(places, width))
        mix, feed = partial(Attention, causal=True, dropout=dropout), partial(FeedForward, act=nn.ReLU)
        steps = (
            [Pre(nn.LayerNorm(width), f, nn.Dropout(dropout)) for f in (mix(width, heads), feed(width, 4 * width))]
            for _ in range(depth)
        )
        self.stack = Stack(*(Block(*pair) for pair in steps))
        self.norm = nn.LayerNorm(width)
        self.say = nn.ModuleDict({name: nn.Linear(width, c) for name, c in channels.items()})

    def reset(self) -> None:
        nn.init.trunc_normal_(self.places, std=0.02)

    def tokens(self, batch: dict) -> Tokens:
        """(B, 3 T, D): return, state, action, return, ...; of a step that lacks one the token is not real."""
        s = fill_absent(batch, self.blanks)
        count = max(v.shape[1] for v in s.values.values())
        if count > self.length:
            raise PlaitError(f"got {count} steps, expected at most {self.length}: give the last ones, with their steps")
        here = batch.get("steps", torch.arange(count, device=next(iter(s.values.values())).device))
        when = self.steps(here)
        xs, keeps = [], []
        for name in READS:
            x, keep = s.values[name], s.mask(name)
            x, lack = x.masked_fill(~keep[..., None], 0.0), count - x.shape[1]
            xs.append(self.embed[name](F.pad(x, (0, 0, 0, lack))) + when)
            keeps.append(F.pad(keep, (0, lack)))
        x, keep = torch.stack(xs, 2).flatten(1, 2), torch.stack(keeps, 2).flatten(1, 2)
        t = self.stack(Tokens(self.drop(self.norm_in(x) + self.places[0]), keep=keep))
        return t.replace(x=self.norm(t.x))

    def act(self, batch: dict) -> dict:
        """{"actions": (B, T, A)} at each step, of its state and all before; "states" and "returns" (B, T, C) expected
        after its action; "losses" {name: ()}."""
        t = self.tokens(batch)
        _, seen, done = t.x.unflatten(1, (-1, len(READS))).unbind(2)  # (B, T, D): after the state, after the action
        actions = self.say["actions"](seen)
        said = {name: self.say[name](done) for name in ("states", "returns")}
        return {"actions": actions.tanh() if self.tanh else actions, **said, "losses": t.losses or {}}

    def forward(self, batch: dict) -> dict:
        """As `act`."""
        return self.act(batch)


MODEL = DecisionTransformer
TAKES = ("series",)
ROLES = ("policy",)
DEFAULT = "nano"
TOY = dict(
    returns=dict(kind="series", channels=1),
    states=dict(kind="series", channels=3),
    actions=dict(kind="series", channels=2),
)
HOPPER = TOY | dict(states=dict(kind="series", channels=11), actions=dict(kind="series", channels=3))
WALKER = TOY | dict(states=dict(kind="series", channels=17), actions=dict(kind="series", channels=6))
SIZES = {
    "toy": dict(slots=TOY, width=32, depth=2, heads=2, length=64, places=1, dropout=0.0),
    "nano": dict(slots=TOY, width=64, heads=2, places=1),
    "gym_hopper_medium": dict(slots=HOPPER),
    "gym_hopper_medium_replay": dict(slots=HOPPER),
    "gym_hopper_expert": dict(slots=HOPPER),
    "gym_walker2d_medium": dict(slots=WALKER),
    "gym_walker2d_medium_replay": dict(slots=WALKER),
    "gym_walker2d_expert": dict(slots=WALKER),
    "gym_halfcheetah_medium": dict(slots=WALKER),
    "gym_halfcheetah_medium_replay": dict(slots=WALKER),
    "gym_halfcheetah_expert": dict(slots=WALKER),
}

GYM = dict(source="transformers", licence="none stated", transformers=True)
WEIGHTS = {
    "gym_hopper_medium": GYM | dict(hub="edbeeching/decision-transformer-gym-hopper-medium"),
    "gym_hopper_medium_replay": GYM | dict(hub="edbeeching/decision-transformer-gym-hopper-medium-replay"),
    "gym_hopper_expert": GYM | dict(hub="edbeeching/decision-transformer-gym-hopper-expert"),
    "gym_walker2d_medium": GYM | dict(hub="edbeeching/decision-transformer-gym-walker2d-medium"),
    "gym_walker2d_medium_replay": GYM | dict(hub="edbeeching/decision-transformer-gym-walker2d-medium-replay"),
    "gym_walker2d_expert": GYM | dict(hub="edbeeching/decision-transformer-gym-walker2d-expert"),
    "gym_halfcheetah_medium": GYM | dict(hub="edbeeching/decision-transformer-gym-halfcheetah-medium"),
    "gym_halfcheetah_medium_replay": GYM | dict(hub="edbeeching/decision-transformer-gym-halfcheetah-medium-replay"),
    "gym_halfcheetah_expert": GYM | dict(hub="edbeeching/decision-transformer-gym-halfcheetah-expert"),
}

LAYER, OURS = "encoder.h.{i}", "stack.blocks.{i}"
RULES = {
    "transformers": [
        Rename("embed_return.{p}", "embed.returns.{p}"),
        Rename("embed_state.{p}", "embed.states.{p}"),
        Rename("embed_action.{p}", "embed.actions.{p}"),
        Rename("embed_timestep.weight", "steps.weight"),
        Rename("embed_ln.{p}", "norm_in.{p}"),
        Rename("encoder.wpe.weight", "places"),
        Rename(f"{LAYER}.ln_1.{{p}}", f"{OURS}.mix.norm.{{p}}"),
        Transpose(f"{LAYER}.attn.c_attn.weight", f"{OURS}.mix.f.qkv.weight"),
        Rename(f"{LAYER}.attn.c_attn.bias", f"{OURS}.mix.f.qkv.bias"),
        Transpose(f"{LAYER}.attn.c_proj.weight", f"{OURS}.mix.f.out.weight"),
        Rename(f"{LAYER}.attn.c_proj.bias", f"{OURS}.mix.f.out.bias"),
        Rename(f"{LAYER}.ln_2.{{p}}", f"{OURS}.feed.norm.{{p}}"),
        Transpose(f"{LAYER}.mlp.c_fc.weight", f"{OURS}.feed.f.up.weight"),
        Rename(f"{LAYER}.mlp.c_fc.bias", f"{OURS}.feed.f.up.bias"),
        Transpose(f"{LAYER}.mlp.c_proj.weight", f"{OURS}.feed.f.down.weight"),
        Rename(f"{LAYER}.mlp.c_proj.bias", f"{OURS}.feed.f.down.bias"),
        Rename("encoder.ln_f.{p}", "norm.{p}"),
        Rename("predict_return.{p}", "say.returns.{p}"),
        Rename("predict_state.{p}", "say.states.{p}"),
        Rename("predict_action.0.{p}", "say.actions.{p}"),
        Drop("encoder.wte.weight"),
        Drop(f"{LAYER}.attn.bias"),
        Drop(f"{LAYER}.attn.masked_bias"),
    ],
}
