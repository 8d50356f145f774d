"""Emergent Agentic Transformer from Chain of Hindsight Experience. Liu and Abbeel, 2023. arXiv:2305.16554.

New here: a policy reads several tries one after another, the worst first, each of which is said to have been asked for
what the best of them got. After each action a step also holds its reward and whether a try is now done that got what
was asked. So the policy learns to do better than the tries before, and it goes on like this when it acts: it tries
again and again, with its own earlier tries in view.

Differs: only the actions of the best try are learnt; what the last try gets is told, not the most that any did. Scores,
as elsewhere here, are of `--task act`, where chains are made of the rows of a table.
"""

from __future__ import annotations

from torch import nn

from plait.core.weights import Drop, Rename
from plait.parts.towers.steps import Steps, channels_of
from plait.systems.agents.decision_transformer import READS
from plait.systems.agents.decision_transformer import RULES as SINGLE


class AgenticTransformer(Steps):
    """Tries so far, one after another -> what to do at each step.

    slots: as `decision_transformer`'s, "returns" being what is still missing from what the best try gets. after: what a
    step tells after its action, of "rewards" and "done" (1 where a try ends that got what was asked), each (B, T, 1) in
    the batch, whether `slots` names them or not. batch["steps"] (B, T) begins anew with each try. length: the most
    steps of a try. tries: how many there are at most.
    """

    fits = ("slots",)

    def __init__(
        self, *, slots, after=("rewards", "done"), tries=4, width=128, depth=3, heads=1, length=1000, places=1,
        tanh=True, dropout=0.1,
    ):  # fmt: skip
        channels = channels_of({name: spec for name, spec in slots.items() if name not in after}, READS)
        reads = channels | dict.fromkeys(after, 1)
        super().__init__(reads, width, depth, heads, length, places, dropout, tries=tries)
        self.takes, self.tanh, self.each = tuple(slots), tanh, len(reads)
        self.say = nn.ModuleDict({"actions": nn.Linear(width, channels["actions"])})

    def act(self, batch: dict) -> dict:
        """{"actions": (B, T, A)} at each step, of its state and all before, earlier tries among it; "losses" {name:
        ()}."""
        t = self.tokens(batch)
        actions = self.say["actions"](t.x.unflatten(1, (-1, self.each))[:, :, READS.index("states")])
        return {"actions": actions.tanh() if self.tanh else actions, "losses": t.losses or {}}

    def forward(self, batch: dict) -> dict:
        """As `act`."""
        return self.act(batch)


MODEL = AgenticTransformer
TAKES = ("series",)
ROLES = ("policy",)
DEFAULT = "nano"
TOY = dict(
    returns=dict(kind="series", channels=1),
    states=dict(kind="series", channels=3),
    actions=dict(kind="series", channels=2),
)
TOLD = dict(rewards=dict(kind="series", channels=1), done=dict(kind="series", channels=1))
HOPPER = TOY | dict(states=dict(kind="series", channels=11), actions=dict(kind="series", channels=3))
WALKER = TOY | dict(states=dict(kind="series", channels=17), actions=dict(kind="series", channels=6))
SIZES = {
    "toy": dict(slots=TOY | TOLD, width=32, depth=2, heads=2, length=64, tries=3, dropout=0.0),
    "nano": dict(slots=TOY, width=64, heads=2),
    "gym_hopper": dict(slots=HOPPER),
    "gym_walker2d": dict(slots=WALKER),
    "gym_halfcheetah": dict(slots=WALKER),
}
WEIGHTS = {}  # none are published

OWN = [Rename(f"embed_{name}.{{p}}", f"embed.{name}.{{p}}") for name in ("rewards", "done")]  # which theirs has not
LEFT = [Drop("predict_return.{p}"), Drop("predict_state.{p}")]
RULES = {"transformers": [*LEFT, *OWN, *SINGLE["transformers"]]}  # of a decision transformer that says what to do
