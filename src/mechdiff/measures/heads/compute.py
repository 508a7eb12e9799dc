"""Heads are swapped: every one of every layer, in order of effect, and in sets at the closer layers."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from mechdiff import labels
from mechdiff.architectures.sites import Site
from mechdiff.engine.counterfactuals import LOCATING, Along, score_rows
from mechdiff.engine.distributions import EVERY, kl_nats
from mechdiff.engine.replay import Variant, Write
from mechdiff.measures.heads import formula
from mechdiff.measures.heads import shapley as heads_shapley
from mechdiff.measures.heads.bench import Bench, block, columns, output_of, units
from mechdiff.measures.heads.choices import closer_layers, greedy_order, network_orders, within
from mechdiff.measures.heads.formula import Block
from mechdiff.measures.transport.compute import maps_at, per_prompt
from mechdiff.models.pair import SIDES, Model
from mechdiff.rows import empty
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution
from mechdiff.study.experiment import Result


def every_head(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of each head, key-value group, and MLP of every layer. On select with the direction's own metric alone."""
    assert model
    bench, key = Bench(run, cell, model), cell.key
    layers, published = list(key["layers"]), key["split"] == "report"
    blocks = {layer: bench.block(layer) for layer in layers}
    changes = {layer: one.change() for layer, one in blocks.items()}
    everyone = [formula.swap(layer, changes[layer], range(blocks[layer].n_heads)) for layer in layers]
    along = _checked(bench, layers, everyone) if published else None
    variants: list[Variant] = []
    places: list[dict[str, Any]] = []
    for layer in layers:
        for unit, chosen in units(run, blocks[layer].n_heads, groups=published):
            variants.append(formula.swap(layer, changes[layer], chosen))
            places.append({"layer": layer, "site": "attn_proj", "unit": unit})
    groups = [layers.index(label["layer"]) for label in places]
    asked: dict[str, Any] = {"measure": "heads", "direction": key["direction"], "split": key["split"], "arm": "contribution"}
    metrics = LOCATING if published else (bench.metric,)
    found = bench.scores(variants, metrics, Along(name="fisher_nats", weights=along, which=groups) if along is not None else None)
    frames = [score_rows(found, columns(places, **asked), key["ids"], floor=key["floor"] and published)]
    mlps: list[Variant] = [{Site(layer, "mlp_out"): Write(value=bench.state(bench.theirs, "mlp_out", layer)[:, None])} for layer in layers]
    frames.append(
        score_rows(bench.scores(mlps, metrics), columns([{"layer": layer, "site": "mlp_out"} for layer in layers], **asked), key["ids"])
    )
    return pl.concat(frames), {}


def heads_over_answers(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of each head of every layer, and of all heads of a layer, swapped at every position of the answers."""
    assert model
    key = cell.key
    states = {side: run.states_of(cell, side).kinds["z"] for side in SIDES}
    variants: list[Variant] = []
    places: list[dict[str, Any]] = []
    for layer in key["layers"]:
        change = block(run, layer, {side: held[layer] for side, held in states.items()}, model.side).change()
        for unit, chosen in units(run, change.shape[-2], groups=False):
            variants.append(formula.swap(layer, change, chosen))
            places.append({"layer": layer, "unit": labels.along_answer(unit, key["answer"]["tokens"])})
    named = columns(places, measure="heads", direction=key["direction"], split=key["split"], site="attn_proj", arm="contribution")
    return run.variants(cell, model, variants, named, floor=True, metrics=LOCATING), {}


def _checked(bench: Bench, layers: Sequence[int], everyone: Sequence[Variant]) -> Tensor:
    """Holds v(all heads) of every layer against the whole site; returns the weights of `fisher_nats`, by layer."""
    run, model = bench.run, bench.model
    own = bench.states[model.side].logits
    whole = []
    for layer in layers:
        bias = {side: output_of(run, side, layer)[1] for side in ("base", "tuned")}
        states = {side: bench.state(side, "attn_proj", layer) for side in ("base", "tuned")}
        whole.append(formula.same_by_site(layer, states[model.side], states[bench.theirs], bias[bench.theirs] - bias[model.side]))
    moved = run.moved(bench.cell, model, [*everyone, *whole])
    effects = kl_nats(own[:, None], own[:, None] + moved)
    for i, layer in enumerate(layers):
        formula.refuse_mismatch(model.ref, layer, effects[:, i], effects[:, len(layers) + i], 0.0, model.dtype)
    return torch.stack([bench.fisher_weights(moved[:, i]) for i in range(len(layers))])


def head_orders(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Tensors: the greedy order of the heads of each closer layer on select, by the layer's number. Rows: what its first 1, 2, ... do there."""
    assert model
    bench = Bench(run, cell, model)
    found, frames = {}, [empty()]
    for layer in closer_layers(run)[0]:
        ways: dict[heads_shapley.Coalition, np.ndarray] = {}
        game = bench.game(layer, bench.block(layer).change(), ways)
        order = heads_shapley.greedy(game, min(cell.key["picks"], game.n))
        found[str(layer)] = np.array(order)
        sets = list(dict.fromkeys([*heads_shapley.prefixes(order), game.everyone]))
        values = dict(zip(sets, game.values(sets), strict=True))
        several = [one for one in sets if 1 < len(one) < game.n]  # v of single heads, and of all, are rows of `every_head`
        named = [({"unit": labels.heads_unit(one, game.n), "metric": bench.metric}, bench.as_metric(values[one])) for one in several]
        named += [({"unit": labels.heads_unit(one, game.n), "metric": bench.way}, ways[one]) for one in sets]
        frames.append(_as_rows(bench, layer, named))
    return pl.concat(frames), found


# ---- sets of heads at one layer ----------------------------------------------------------------------------------------------------


def head_sets(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of sets of heads at the closer layers: orders, pairs, random sets, Shapley values, arms, random edits."""
    assert model
    bench, frames = Bench(run, cell, model), [empty()]
    for layer in closer_layers(run)[0]:
        here = bench.block(layer)
        frames += [_sets(bench, here), _arms(bench, here), _mapped(bench, layer)]
        if bench.breaks:  # noise leads nowhere: in a recovery it has no share to be held against
            frames.append(_null_edits(bench, layer))
    return pl.concat(frames), {}


def _sets(bench: Bench, here: Block) -> pl.DataFrame:
    """Rows of the sets of one block's heads, by the direction's metric and by their projection on what all of them do."""
    run, settings, seed = bench.run, bench.cell.key["settings"], bench.cell.key["seed"]
    n, change = here.n_heads, here.change()
    ways: dict[heads_shapley.Coalition, np.ndarray] = {}
    game = bench.game(here.layer, change, ways)
    exact = n <= settings["exact_up_to"]
    draws = {
        k: heads_shapley.random_coalitions(n, k, settings["draws"], seed)
        for k in (heads_shapley.sizes(n, settings["exact_up_to"]) if settings["draws"] else [])
    }
    named = list(dict.fromkeys(one for one in _named(run, bench.direction, here.layer, n, settings["top"]) if 1 < len(one) < n))
    orders = heads_shapley.permutations(n, settings["permutations"], seed)
    prefixes = [] if exact else [one for each in orders for one in heads_shapley.prefixes(each)]
    game.values([*(heads_shapley.every(n) if exact else prefixes), *named, *(one for drawn in draws.values() for one in drawn)])
    shapley = heads_shapley.shapley_exact(game) if exact else heads_shapley.shapley_sampled(game, orders)[0]
    found: list[tuple[dict[str, Any], np.ndarray]] = [
        ({"unit": labels.heads_unit(one, n), "metric": bench.metric}, bench.as_metric(game.value(one))) for one in named
    ]
    found += [({"unit": labels.head_unit(head), "metric": "shapley_nats"}, values) for head, values in enumerate(shapley)]
    for k, drawn in draws.items():
        for i, one in enumerate(drawn):
            what = {"unit": labels.heads_unit(one, n), "rank": k, "control": labels.draw("random_set", i)}
            found += [(what | {"metric": bench.metric}, bench.as_metric(game.value(one))), (what | {"metric": bench.way}, ways[one])]
    found += [({"unit": labels.heads_unit(one, n), "metric": bench.way}, ways[one]) for one in named]
    return _as_rows(bench, here.layer, found)


def _named(run: Execution, direction: str, layer: int, n: int, top: int) -> Iterable[heads_shapley.Coalition]:
    """Prefixes of the orders, what is left without each of them and without each head, and pairs of the top heads."""
    everyone = frozenset(range(n))
    for head in range(n):
        yield everyone - {head}
    orders = {way: within(players, layer) for way, players in network_orders(run, direction).items()}
    for heads_in_order in (greedy_order(run, direction, layer), *orders.values()):
        for prefix in heads_shapley.prefixes(heads_in_order):
            yield prefix
            yield everyone - prefix
    for pair in combinations(orders.get("single", [])[:top], 2):
        yield frozenset(pair)


def _as_rows(bench: Bench, layer: int, found: Sequence[tuple[dict[str, Any], np.ndarray]]) -> pl.DataFrame:
    """Rows of values per prompt."""
    key = bench.cell.key
    fixed = {"measure": "heads", "direction": key["direction"], "split": key["split"], "site": "attn_proj", "arm": "contribution"}
    return per_prompt(found, key["ids"], layer=layer, **fixed)


def _arms(bench: Bench, here: Block) -> pl.DataFrame:
    """Rows of each head and all by what it reads, by what it writes, and by z alone."""
    chosen = units(bench.run, here.n_heads, groups=False)
    variants: list[Variant] = []
    places: list[dict[str, Any]] = []
    for arm in ("routing", "write"):
        change = here.change(arm)
        variants += [formula.swap(here.layer, change, one) for _, one in chosen]
        places += [{"unit": unit, "arm": arm, "site": "attn_proj"} for unit, _ in chosen]
    for strength in bench.cell.key["settings"]["z_swap"]:
        variants += [formula.swap_z(here, one, strength) for _, one in chosen]
        places += [{"unit": unit, "arm": "z_swap", "site": "z", "strength": None if strength == 1 else strength} for unit, _ in chosen]
    return _arm_rows(bench, here.layer, variants, places, bench.direction)


def _arm_rows(bench: Bench, layer: int, variants: Sequence[Variant], places: Sequence[Mapping[str, Any]], direction: str) -> pl.DataFrame:
    named = columns(places, measure="heads", direction=direction, split=bench.cell.key["split"], layer=layer)
    return score_rows(bench.scores(variants, EVERY), named, bench.cell.key["ids"])


def _mapped(bench: Bench, layer: int) -> pl.DataFrame:
    """Rows of heads whose z is what a map of z makes of the base's: closeness where the tuned model runs, transport proper where the base does."""
    run = bench.run
    fits = [one for one in run.cells if one.stage == "fits" and one.key["kind"] == "z"]
    if not fits:
        return empty()
    source, runs = bench.state("base", "z", layer), bench.model.side
    direction = labels.direction_of(runs, "base")
    weights, shape = {side: output_of(run, side, layer)[0] for side in ("base", "tuned")}, bench.block(layer).own.shape[1:]
    frames = [empty()]
    for arm in fits[0].key["settings"]["maps"]:
        one = maps_at(run, fits[0], layer).there[arm]
        mapped = one.transform(source).float().unflatten(1, shape)
        here = Block(
            layer=layer, own=bench.state(runs, "z", layer).unflatten(1, shape), other=mapped, w_own=weights[runs], w_other=weights["tuned"]
        )
        chosen, change = units(run, here.n_heads, groups=False), here.change()
        places = [{"unit": unit, "arm": arm, "rank": one.rank_, "site": "attn_proj"} for unit, _ in chosen]
        frames.append(_arm_rows(bench, layer, [formula.swap(layer, change, heads_) for _, heads_ in chosen], places, direction))
    return pl.concat(frames)


def _null_edits(bench: Bench, layer: int) -> pl.DataFrame:
    """Rows of random edits of the size of the real one: single heads, all but one, all."""
    run, key = bench.run, bench.cell.key
    everywhere = {side: run.states(side, key["split"], "decision").kinds["z"][layer, :, 0] for side in ("base", "tuned")}
    whole = block(run, layer, everywhere, bench.model.side)
    names = [name for shard in run.captures("base", key["split"], "decision") for name in shard.key["ids"]]
    at = [names.index(name) for name in key["ids"]]
    n, found = whole.n_heads, []
    everyone = frozenset(range(n))
    coalitions = [*(frozenset({head}) for head in range(n)), *(everyone - {head} for head in range(n)), everyone]
    for draw in range(key["settings"]["null_edits"] if n > 1 and whole.change().any() else 0):
        ways: dict[heads_shapley.Coalition, np.ndarray] = {}
        values = bench.game(layer, formula.noise_like(whole, key["seed"] + draw)[at], ways).values(coalitions)
        what = {"control": labels.draw("random_vector", draw)}
        for unit, (one, v) in {labels.heads_unit(one, n): (one, v) for one, v in zip(coalitions, values, strict=True)}.items():
            found.append((what | {"metric": bench.metric, "unit": unit}, v))
            found += [(what | {"metric": bench.way, "unit": unit}, ways[one])] if len(one) in (1, n) else []
    return _as_rows(bench, layer, found)
