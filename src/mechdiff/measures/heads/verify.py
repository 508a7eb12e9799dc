"""Swaps of heads are computed once more by whole forward passes."""

from typing import Any

from torch import Tensor

from mechdiff import labels
from mechdiff.architectures.sites import Site
from mechdiff.audit import answers, whole
from mechdiff.audit.distributions import NotRecomputed, Row, of_law, run_with
from mechdiff.audit.rerun import Rerun
from mechdiff.engine.counterfactuals import LOCATING as LAW_METRICS
from mechdiff.measures.heads.plan import HeadsOptions


def again(run: Rerun, row: Row) -> float:
    """Contributions of heads exchanged, single, in sets, across blocks, also over an answer; and what a whole MLP gives."""
    if answers.what_of(row["metric"]):
        side = labels.runner(row["direction"])
        if row["control"] == "no_op":
            return answers.of_laws(run, row, side, answers.clean(run, side, row["split"], row["prompt"]))
        unit = row["unit"].removesuffix(f", {labels.answer_position(run.prepared.study.answers.tokens)}")
        return answers.of_laws(
            run, row, side, run_with_heads(run, row, players(run, {**row, "unit": unit}))[:, : run.prepared.tokens.n_shared]
        )
    if row["metric"] not in (*LAW_METRICS, "fisher_nats"):
        raise NotRecomputed("Shapley values are means over many sets; attention patterns have no second way here")
    if row["control"] == "no_op":
        return of_law(run, row, run_with(run, row, dict))
    if row["control"] and labels.control_kind(row["control"]) != "random_set":
        raise NotRecomputed("random edits are draws")
    if row["arm"] not in ("contribution", "routing", "write"):
        raise NotRecomputed(f"the condition {row['arm']}")
    law = run_with_heads(run, row, players(run, row))[-1]
    if row["metric"] != "fisher_nats":
        return of_law(run, row, law)
    everyone = run_with_heads(run, {**row, "unit": labels.ALL}, [(row["layer"], head) for head in range(run.nets["base"].shape.n_heads)])[
        -1
    ]
    own = run.law(labels.runner(row["direction"]), row["split"], row["prompt"])
    own, law, everyone = (one[: run.prepared.tokens.n_shared] for one in (own, law, everyone))
    p, moved = own.softmax(-1), everyone - own
    return float((p * (law - own) * (moved - (p * moved).sum())).sum() / 2)


def players(run: Rerun, row: Row) -> list[labels.Player]:
    """(block, head), or (block, None) for its MLP, of a row's unit."""
    unit, layer, shape = row["unit"], row["layer"], run.nets["base"].shape
    if row["site"] == "mlp_out":
        return [(layer, None)]
    if layer is None and unit == labels.ALL:  # the whole network: its heads, or (of no one site) its MLPs too
        options, mlps = run.prepared.study.asked(HeadsOptions), [None] if row["site"] is None else []
        assert options
        return [(block, one) for block in options.layer_numbers(shape.n_layers) for one in (*range(shape.n_heads), *mlps)]
    if unit is None:
        raise NotRecomputed("random sets across the network are draws")
    if layer is None:
        return [labels.player_of(name) for name in labels.set_of(unit)]
    if (group := labels.group_of(unit)) is not None:
        size = shape.n_heads // shape.n_kv_heads
        return [(layer, group * size + i) for i in range(size)]
    return [(layer, head) for head in labels.heads_of(unit, shape.n_heads)]


def run_with_heads(run: Rerun, row: Row, chosen: list[labels.Player]) -> Tensor:
    """Logits `[pos, vocab]` of a run in which these heads and MLPs give what the other model's give: their own part is taken out as it is by then.

    At the decision position, or of a row over an answer at every position of it.
    """
    side, other = labels.sides(row["direction"])
    split, prompt, arm, over = row["split"], row["prompt"], row["arm"], answers.what_of(row["metric"]) is not None
    key = ("heads", row["direction"], split, prompt, arm, tuple(chosen), over)
    if key in run.cached:
        return run.cached[key]
    ids, n_pos = answers.read(run, side, split, prompt) if over else (run.ids(side, split, prompt), 1)

    def given(site: Site) -> Tensor:
        return answers.states(run, other, split, prompt, [site])[site] if over else run.state(other, split, prompt, site)

    z_now: dict[int, Tensor] = {}
    touches: dict[Site, whole.Touch] = {}
    for layer in sorted({layer for layer, head in chosen if head is not None}):
        mine = [head for block, head in chosen if block == layer and head is not None]
        theirs = given(Site(layer, "z")).reshape(n_pos, run.nets["base"].shape.n_heads, -1)
        w_own, w_other = run.output(side, layer).double(), run.output(other, layer).double()

        def note(states: Tensor, layer: int = layer) -> None:
            z_now[layer] = states[-n_pos:].detach().clone()

        def swap(
            states: Tensor, layer: int = layer, mine: list = mine, theirs: Any = theirs, w_own: Any = w_own, w_other: Any = w_other
        ) -> Tensor:
            own = z_now[layer].reshape(theirs.shape).double()
            there = theirs.double()
            ends = {"contribution": (w_other, w_own), "routing": (w_own, w_own)}.get(arm)
            new = states.clone()
            for head in mine:
                if arm == "write":
                    change = there[:, head] @ (w_other[head] - w_own[head])
                else:
                    assert ends
                    change = there[:, head] @ ends[0][head] - own[:, head] @ ends[1][head]
                new[-n_pos:] += change.to(new)
            return new

        touches[Site(layer, "z")], touches[Site(layer, "attn_proj")] = note, swap
    for layer in (layer for layer, head in chosen if head is None):
        value = given(Site(layer, "mlp_out"))

        def put(states: Tensor, value: Tensor = value) -> Tensor:
            new = states.clone()
            new[-n_pos:] = value
            return new

        touches[Site(layer, "mlp_out")] = put
    with run.model(side) as model, whole.touched(model, touches):
        run.cached[key] = run.prepared.tokens.place(whole.logits(model, ids, everywhere=True)[-n_pos:], side)
    return run.cached[key]
