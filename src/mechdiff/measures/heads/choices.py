"""The select prompts alone choose the closer layers, the orders of heads and the top heads."""

from collections.abc import Sequence

import polars as pl

from mechdiff import labels, shares
from mechdiff.labels import Player
from mechdiff.measures.divergence.formula import total_effect
from mechdiff.measures.heads.plan import HeadsOptions
from mechdiff.rows import empty
from mechdiff.spacing import evenly_spaced
from mechdiff.study.execution import Execution

LEAST = 1e-6
"""Of the largest effect of a head: less is rounding, and no top head."""


def heads_options(run: Execution) -> HeadsOptions:
    options = run.prepared.study.asked(HeadsOptions)
    assert options
    return options


def chosen_effects(run: Execution) -> pl.DataFrame:
    """`direction layer site unit v`: the mean effect of every head, MLP and whole layer on the select prompts, in nats; empty without."""
    frames = [run.folder.load(cell.key).frame for cell in run.cells if cell.stage == "heads" and cell.key["split"] == "select"]
    if not frames:
        return pl.DataFrame(schema={"direction": pl.String, "layer": pl.Int64, "site": pl.String, "unit": pl.String, "v": pl.Float64})
    base, tuned = (run.states(side, "select", "decision") for side in ("base", "tuned"))
    names = [name for shard in run.captures("base", "select", "decision") for name in shard.key["ids"]]
    total = pl.DataFrame({"prompt": names, "total": total_effect(base.logits, tuned.logits, run.prepared.tokens).numpy()})
    rows = pl.concat(frames).join(total, on="prompt")
    v = pl.when(pl.col("metric") != shares.OTHER).then("value").otherwise(pl.col("total") - pl.col("value"))
    return rows.group_by("direction", "layer", "site", "unit", maintain_order=True).agg(v=v.mean())


def closer_layers(run: Execution) -> tuple[list[int], str]:
    """The layers whose sets of heads are run, and what chose them: "named", "select" (the largest mean effect of all heads there), or "spread"."""
    options = heads_options(run)
    if options.closer != "hot":
        return list(options.closer), "named"
    effects = chosen_effects(run).filter(pl.col("unit") == labels.ALL).group_by("layer").agg(pl.col("v").mean())
    if effects.is_empty():
        return list(evenly_spaced(options.hot, options.layer_numbers(run.n_layers))), "spread"
    return sorted(effects.sort("v", "layer", descending=[True, False])["layer"].head(options.hot).to_list()), "select"


def network_orders(run: Execution, direction: str) -> dict[str, list[Player]]:
    """All players of the measure's layers by their "single" effects, and by "attribution" where that knows all of them."""
    layers = heads_options(run).layer_numbers(run.n_layers)
    found = {by: [player for player in order(run, direction, by) if player[0] in layers] for by in ("single", "attribution")}
    return {by: players for by, players in found.items() if players and set(players) == set(found["single"])}


def order(run: Execution, direction: str, by: str) -> list[Player]:
    """All heads and MLPs of the network, the strongest on select first, `by` "single" effect or "attribution"; empty where that is not known."""
    if by == "single":
        found = chosen_effects(run).filter(pl.col("direction") == direction, pl.col("unit").ne_missing(labels.ALL))
    else:
        found = attributed(run, direction)
    found = found.sort(-pl.col("v"), "layer", "site", "unit", nulls_last=True)
    return [(layer, labels.head_of(unit)) for layer, unit in found.select("layer", "unit").iter_rows()]


def attributed(run: Execution, direction: str) -> pl.DataFrame:
    """`layer site unit v`: by gradients, how far each head and MLP moves the running model towards the other, mean over the select prompts."""
    cells = [
        cell for cell in run.cells if cell.stage == "attribution" and (cell.key["split"], cell.key["direction"]) == ("select", direction)
    ]
    rows = pl.concat([run.folder.load(cell.key).frame for cell in cells]) if cells else empty()
    players = (pl.col("site") == "mlp_out") & pl.col("unit").is_null() | labels.is_head()
    rows = rows.filter(pl.col("arm") == "grad_x_diff", players, pl.col("direction") == direction, pl.col("value").is_not_nan())
    towards = -1 if direction == labels.BASE_INTO_TUNED else 1
    return rows.group_by("layer", "site", "unit", maintain_order=True).agg(v=towards * pl.col("value").mean())


def within(players: Sequence[Player], layer: int) -> list[int]:
    """The heads of one layer, in an order of all players."""
    return [head for at, head in players if at == layer and head is not None]


def greedy_order(run: Execution, direction: str, layer: int) -> list[int]:
    """What `head_orders` found; nothing without select prompts."""
    cells = [cell for cell in run.cells if cell.stage == "head_orders" and cell.key["direction"] == direction]
    return [int(head) for cell in cells for head in run.folder.load(cell.key).tensors[str(layer)]]


def top_heads(run: Execution) -> list[Player]:
    """The heads of the largest effect on select, in either direction."""
    found = chosen_effects(run).filter(labels.is_head())
    best = found.group_by("layer", "unit").agg(pl.col("v").max()).sort(-pl.col("v"), "layer", "unit")
    best = best.filter(pl.col("v") > LEAST * pl.col("v").max())
    return [(layer, labels.head_of(unit)) for layer, unit in best.select("layer", "unit").head(heads_options(run).top).iter_rows()]
