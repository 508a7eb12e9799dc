"""Beyond one layer, sets of heads are swapped across the network, and the attention of the top heads is recorded."""

import json
from collections.abc import Sequence
from typing import Any

import polars as pl
import torch
from torch import Tensor

from mechdiff import labels
from mechdiff.engine.attention_patterns import attention_at_decision, attention_at_end, pattern_js_nats
from mechdiff.engine.counterfactuals import score_rows
from mechdiff.errors import ModelError
from mechdiff.labels import CROSSED, Player
from mechdiff.measures.heads import formula, shapley
from mechdiff.measures.heads.bench import AT_ONCE, Bench, columns, head_layout
from mechdiff.measures.heads.choices import closer_layers, greedy_order, heads_options, network_orders, top_heads, within
from mechdiff.measures.transport.compute import table
from mechdiff.models.pair import Model
from mechdiff.prompts.matching import Vocabulary
from mechdiff.rows import OVERLAP, empty
from mechdiff.store.disk import as_bytes
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution
from mechdiff.study.experiment import Result

ACROSS = (1, 2, 3, 5, 8, 12, 20, 32, 50, 80, 120, 200, 320, 500, 800, 1200, 2000, 3200)
"""Sizes of the nested sets across the network."""

AT_RANDOM = 5
"""Of those sizes, the smallest ones at which random sets are drawn too."""

SHOWN = 5
"""Tokens that the record names of what a head looks at."""

DRAWN, TOKENS, LONGEST = 3, 24, 1024
"""Of how many top heads whole patterns are kept, on how many last tokens of one prompt, and how long that prompt may be."""
WHOLE = "whole "
"""Starts the name of a whole pattern among the tensors of `looks`."""


# ---- across the network ------------------------------------------------------------------------------------------------------------


def head_network(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of nested sets of heads, and of heads and MLPs, across all layers: by single effect, by attribution, and at random."""
    assert model
    bench, key = Bench(run, cell, model), cell.key
    blocks = {layer: bench.block(layer) for layer in key["layers"]}
    mlps = {layer: bench.state(bench.theirs, "mlp_out", layer) for layer in key["layers"]}
    places: list[dict[str, Any]] = []
    sets: list[tuple[Player, ...]] = []
    for site, only_heads in (("attn_proj", True), (None, False)):
        by = [
            [player for player in one if not only_heads or player[1] is not None] for one in network_orders(run, bench.direction).values()
        ]
        everyone = by[0]
        nested = {frozenset(players[:k]): tuple(players[:k]) for players in by for k in ACROSS if k < len(players)}
        sets += [*nested.values(), tuple(everyone)]
        places += [{"site": site, "unit": labels.set_unit(map(labels.player_name, sorted(one, key=_place)))} for one in nested.values()]
        places.append({"site": site, "unit": labels.ALL})
        for k in [k for k in ACROSS if k < len(everyone)][:AT_RANDOM] if only_heads else []:
            drawn = shapley.random_coalitions(len(everyone), k, key["draws"], key["seed"])
            sets += [tuple(everyone[i] for i in sorted(one)) for one in drawn]
            places += [{"site": site, "rank": k, "control": labels.draw("random_set", i)} for i in range(len(drawn))]
    frames = []
    for start in range(0, len(sets), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        variants = [formula.swap_across(one, blocks, mlps) for one in sets[part]]
        named = columns(places[part], measure="heads", direction=key["direction"], split=key["split"], arm="contribution")
        frames.append(score_rows(bench.scores(variants, (bench.metric, OVERLAP)), named, key["ids"]))
    return pl.concat(frames), {}


def _place(player: Player) -> tuple[int, int]:
    return player[0], 1 << 30 if player[1] is None else player[1]


# ---- attention ---------------------------------------------------------------------------------------------------------------------


def looks(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Tensors: where the top heads look at the decision position, `[prompt, token]` by the head's name, 0 behind the end of a prompt; and of the
    first of them, by WHOLE and the name, `[last token, token]` of the first prompt.

    A family that does not say where its heads look gives its reason instead.
    """
    assert model
    chosen = top_heads(run)
    layers = sorted({layer for layer, _ in chosen})
    if not layers:  # no head has an effect on select
        return empty(), {}
    try:
        patterns = [attention_at_decision(model, clean, layers) for clean in run.cleans(cell, model)]
    except ModelError as error:
        return empty(), {"refused": as_bytes(str(error))}
    longest = max(one[layers[0]].shape[1] for one in patterns)
    found = {}
    for layer, head in chosen:
        rows = [torch.nn.functional.pad(one[layer][head or 0], (0, longest - one[layer].shape[1])) for one in patterns]
        found[labels.player_name((layer, head))] = torch.stack(rows).numpy()
    return empty(), found | _whole(run, cell, model, chosen[:DRAWN])


def _whole(run: Execution, cell: Cell, model: Model, chosen: Sequence[Player]) -> dict[str, Any]:
    """The patterns of a few heads over the last tokens of the first prompt; nothing for a prompt that is too long to keep all heads' patterns."""
    clean = next(iter(run.cleans(cell, model)))
    if len(clean.ids) > LONGEST:
        return {}
    kept = attention_at_end(model, clean, sorted({layer for layer, _ in chosen}), TOKENS)
    return {f"{WHOLE}{labels.player_name((layer, head))}": kept[layer][head or 0].numpy() for layer, head in chosen}


def attention(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of how far the two models' attention of the top heads differ."""
    values = [
        {"layer": layer, "unit": labels.head_unit(head), "prompt": name, "value": js}
        for (layer, head), per_prompt in _pairs(run, cell).items()
        if head is not None
        for name, (_, _, js) in zip(cell.key["ids"], per_prompt, strict=True)
    ]
    return table(values, measure="heads", split=cell.key["split"], site="attn_proj", metric="attention_js_nats"), {}


def _pairs(run: Execution, cell: Cell) -> dict[Player, list[tuple[Tensor, Tensor, float]]]:
    """Of each top head and prompt the two models' patterns over the aligned positions, and their JS; what is at no aligned place is one outcome."""
    held = {one.side: run.folder.load(one.key).tensors for one in run.cells if one.stage == "looks"}
    found: dict[Player, list[tuple[Tensor, Tensor, float]]] = {}
    for player in top_heads(run) if not refused(run) else ():
        pairs = []
        for i, name in enumerate(cell.key["ids"]):
            places = run.prompt(cell.key["split"], name).positions
            base, tuned = (
                torch.from_numpy(held[side][labels.player_name(player)][i])[[place[which] for place in places]]
                for which, side in enumerate(("base", "tuned"))
            )
            pairs.append((base, tuned, float(pattern_js_nats(base, tuned))))
        found[player] = pairs
    return found


def refused(run: Execution) -> str | None:
    """Why attention was not looked at; None where it was."""
    held = [run.folder.load(one.key).tensors for one in run.cells if one.stage == "looks"]
    said = [json.loads(bytes(one["refused"]).decode()) for one in held if "refused" in one]
    return said[0] if said else None


# ---- for the record ----------------------------------------------------------------------------------------------------------------


def heads_record(run: Execution) -> dict[str, Any]:
    """For the record: `heads` (the closer layers, the orders and what chose them, what top heads look at)."""
    if not any(cell.stage == "heads" for cell in run.cells):
        return {}
    options, (layers, chosen) = heads_options(run), closer_layers(run)
    layout = head_layout(run)
    orders = {direction: network_orders(run, direction) for direction in CROSSED}
    return {
        "heads": {
            "closer_layers": layers,
            "chosen": chosen,
            "n_candidates": len(options.layer_numbers(run.n_layers)),
            "n_heads": layout.n_heads,
            "n_groups": layout.n_groups,
            "heads_per_group": layout.n_heads // layout.n_groups,
            "exact": layout.n_heads <= options.exact_up_to,
            **options.model_dump(include={"permutations", "draws"}),
            "orders": {
                direction: {way: [*map(labels.player_name, found)] for way, found in by.items()} for direction, by in orders.items()
            },
            "greedy": {direction: {str(layer): greedy_order(run, direction, layer) for layer in layers} for direction in CROSSED},
            **{
                way: {direction: {str(layer): within(by.get(way, []), layer) for layer in layers} for direction, by in orders.items()}
                for way in ("single", "attribution")
            },
            "attention": _looked_at(run),
            "attention_patterns": _patterns(run),
            "attention_refused": refused(run),
        }
    }


def _looked_at(run: Execution) -> list[dict[str, Any]]:
    """What the top heads look at, on the prompts of the record: the tokens of the largest weights in each model."""
    found = []
    for cell in [one for one in run.cells if one.stage == "attention"]:
        vocabulary = run.prepared.vocabularies["tuned"]
        for player, pairs in _pairs(run, cell).items():
            for name, (base, tuned, js) in zip(cell.key["ids"], pairs, strict=True):
                one = run.prompt(cell.key["split"], name)
                ids = [one.ids_tuned[place[1]] for place in one.positions]
                said = {side: _most(weights, ids, vocabulary) for side, weights in (("base", base), ("tuned", tuned))}
                found.append({"head": labels.player_name(player), "prompt": name, **said, "js": js})
    return found


def _patterns(run: Execution) -> dict[str, Any]:
    """Of a few top heads the whole patterns of both models over the aligned tokens at the end of one prompt: who attends to whom."""
    held = {one.side: run.folder.load(one.key).tensors for one in run.cells if one.stage == "looks"}
    names = [name.removeprefix(WHOLE) for name in held.get("tuned", {}) if name.startswith(WHOLE) and name in held.get("base", {})]
    cell = next((one for one in run.cells if one.stage == "attention"), None)
    if not names or cell is None:
        return {}
    prompt = cell.key["ids"][0]
    one, heads = run.prompt(cell.key["split"], prompt), []
    ids = (one.ids_base, one.ids_tuned)
    least = [len(ids[which]) - len(held[side][WHOLE + names[0]]) for which, side in enumerate(("base", "tuned"))]
    places = torch.tensor([place for place in one.positions if place[0] >= least[0] and place[1] >= least[1]])
    for name in names:
        both = {}
        for which, side in enumerate(("base", "tuned")):
            at = places[:, which]
            pattern = torch.from_numpy(held[side][WHOLE + name])[at - least[which]][:, at]
            both[side] = [[round(float(w), 3) for w in row[: i + 1]] for i, row in enumerate(pattern)]
        heads.append({"head": name, **both})
    text = run.prepared.vocabularies["tuned"].text
    return {"prompt": prompt, "tokens": [text(ids[1][at]) for at in places[:, 1].tolist()], "heads": heads}


def _most(weights: Tensor, ids: Sequence[int], vocabulary: Vocabulary) -> list[tuple[str, float]]:
    top = weights.topk(min(SHOWN, len(weights)))
    return [(vocabulary.text(ids[i]), round(float(w), 4)) for w, i in zip(top.values, top.indices.tolist(), strict=True)]
