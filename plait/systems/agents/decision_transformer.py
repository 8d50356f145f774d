"""Decision Transformer: Reinforcement Learning via Sequence Modeling. Chen et al., 2021. arXiv:2106.01345.

New here: a policy is a sequence model. Each step is three tokens, the return that is still asked for, the state and the
action, with a learned mark of the step's number; a causal transformer says at each state's token what to do. Trained on
anybody's trajectories with the returns that these had, it is then asked for the return that one would like to have.

Differs: a step may lack any of the three, such as the action of the last one. The published layout is a language
model's: of its table of places the first is added everywhere, its only word is read by nobody and dropped.
"""

from __future__ import annotations

from torch import nn

from plait.core.weights import Drop, Rename, Transpose
from plait.parts.towers.steps import Steps, channels_of

READS = ("returns", "states", "actions")  # the order of a step's tokens


class DecisionTransformer(Steps):
    """Trajectories so far -> what to do at each step, and which state and return are expected after it.

    slots: {"returns": {"channels": 1}, "states": ..., "actions": ...}. batch[slot] is (B, T, C), "returns" being those
    still asked for; batch["steps"], length, places: as `Steps`. tanh: actions lie between -1 and 1.
    """

    fits = ("slots",)

    def __init__(self, *, slots, width=128, depth=3, heads=1, length=1000, places=1024, tanh=True, dropout=0.1):
        channels = channels_of(slots, READS)
        super().__init__(channels, width, depth, heads, length, places, dropout)
        self.takes, self.tanh = tuple(slots), tanh
        self.say = nn.ModuleDict({name: nn.Linear(width, c) for name, c in channels.items()})

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
