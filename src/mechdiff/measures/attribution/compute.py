"""Gradients of heads, MLPs and sites are taken and held against true patches."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from mechdiff import labels
from mechdiff.architectures.sites import Site
from mechdiff.engine.counterfactuals import Along, chunks
from mechdiff.engine.gradients import gradients
from mechdiff.engine.replay import Variant
from mechdiff.labels import CROSSED, Player
from mechdiff.measures.attribution import formula
from mechdiff.measures.attribution.plan import AttributionOptions
from mechdiff.measures.heads import formula as heads_formula
from mechdiff.measures.heads.bench import Bench, output_of
from mechdiff.measures.heads.choices import order
from mechdiff.measures.transport.compute import per_prompt
from mechdiff.models.pair import Model
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution
from mechdiff.study.experiment import Result

Values = list[tuple[dict[str, Any], Tensor]]
"""(columns, `[prompt]`)"""


class _Attributed:
    """Gradients on the prompts of one cell, in the running model of its direction."""

    def __init__(self, run: Execution, cell: Cell, model: Model) -> None:
        self.bench, self.cell, self.model, self.run = Bench(run, cell, model), cell, model, run
        self.engine, self.layers, self.settings = run.engine(model, "decision"), list(cell.key["layers"]), cell.key["settings"]
        self.weights = _weights(run, cell, self.bench)
        self.changes = {layer: self.bench.block(layer).change() for layer in self.layers}
        self.found: Values = []

    def add(self, values: Tensor, **columns: Any) -> None:
        self.found.append((columns, values))

    def gradients(self, pushes: Sequence[dict[Site, Tensor]]) -> list[dict[Site, Tensor]]:
        """dm/da of each push: NaN where m is undefined."""
        tokens = self.run.prepared.tokens
        weights = self.weights[:, : tokens.n_shared].nan_to_num().to(self.model.device)

        def metric(logits: Float[Tensor, "prompt push vocab"]) -> Float[Tensor, "prompt push"]:
            return torch.einsum("prv,pv->pr", tokens.shared(logits, self.model.side).float(), weights)

        found: list[dict[Site, Tensor]] = []
        cleans = self.run.cleans(self.cell, self.model)
        for part in chunks(len(pushes), max(1, self.run.max_rows // (2 * len(cleans)))):
            found += gradients(self.model, self.engine, cleans, pushes[part], metric)
        undefined = self.weights.isnan().any(-1)[:, None]
        return [{site: gradient.masked_fill(undefined, torch.nan) for site, gradient in one.items()} for one in found]

    def difference(self, site: Site) -> Float[Tensor, "prompt d"]:
        """The other model's state less the running one's."""
        return self.bench.state(self.bench.theirs, site.kind, site.layer) - self.bench.state(self.model.side, site.kind, site.layer)

    def rows(self) -> pl.DataFrame:
        key = self.cell.key
        found = [({"direction": key["direction"], **what}, values) for what, values in self.found]
        return per_prompt(found, key["ids"], measure="attribution", split=key["split"])


def attribute(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of every head, MLP and site; on report also of the path, of the model's own heads, and of true patches."""
    assert model
    found = _Attributed(run, cell, model)
    kinds = dict.fromkeys(("attn_proj", "mlp_out", *found.settings["sites"]))
    sites = [Site(layer, kind) for layer in found.layers for kind in kinds]
    (clean,) = found.gradients([{site: torch.zeros_like(found.difference(site)) for site in sites}])
    for layer in found.layers:
        _heads(found, layer, formula.by_head(clean[Site(layer, "attn_proj")], found.changes[layer]), "grad_x_diff")
    for site in sites:
        if site.kind in (*found.settings["sites"], "mlp_out"):
            along = (clean[site].double() * found.difference(site).double()).sum(-1)
            found.add(along, layer=site.layer, site=site.kind, arm="grad_x_diff", metric="attributed_logits")
    if cell.key["split"] == "report":
        _path(found)
        _own_heads(found, clean)
        _true_effects(found)
    return found.rows(), {}


def _heads(found: _Attributed, layer: int, values: Float[Tensor, "prompt head"], arm: str, **columns: Any) -> None:
    for head, each in enumerate(values.unbind(1)):
        found.add(each, layer=layer, site="attn_proj", unit=labels.head_unit(head), arm=arm, metric="attributed_logits", **columns)


def _path(found: _Attributed) -> None:
    """Integrated gradients: one path for the heads of each block, one for each MLP."""
    steps = formula.midpoints(found.settings["steps"])
    ends = {Site(layer, "attn_proj"): found.changes[layer].sum(1) for layer in found.layers}
    ends |= {Site(layer, "mlp_out"): found.difference(Site(layer, "mlp_out")) for layer in found.layers}
    moving = {site: end for site, end in ends.items() if end.any()}
    on_path = iter(found.gradients([{site: step * end} for site, end in moving.items() for step in steps]))
    for site, end in ends.items():
        mean = torch.stack([next(on_path)[site] for _ in steps]).double().mean(0) if site in moving else torch.zeros_like(end)
        if site.kind == "attn_proj":
            _heads(found, site.layer, formula.by_head(mean, found.changes[site.layer]), "integrated_gradients")
        else:
            columns = {"layer": site.layer, "site": site.kind, "arm": "integrated_gradients", "metric": "attributed_logits"}
            found.add((mean * end.double()).sum(-1), **columns)


def _own_heads(found: _Attributed, clean: dict[Site, Tensor]) -> None:
    """How important each head is in the running model: its contribution against its own mean over the fit prompts, and against 0."""
    run, side = found.run, found.model.side
    within = labels.direction_of(side, side)
    on_fit = run.states(side, "fit", "decision").kinds["z"] if run.captures(side, "fit", "decision") else None
    for layer in found.layers:
        weights = output_of(run, side, layer)[0]
        own = heads_formula.written(found.bench.state(side, "z", layer).unflatten(1, weights.shape[:2]), weights)
        gradient = clean[Site(layer, "attn_proj")]
        _heads(found, layer, formula.by_head(gradient, own), "grad_x_act", direction=within)
        if on_fit is not None:
            mean = heads_formula.written(on_fit[layer, :, 0].unflatten(1, weights.shape[:2]).mean(0, keepdim=True), weights)
            _heads(found, layer, formula.by_head(gradient, mean - own), "grad_x_diff", direction=within)


def _true_effects(found: _Attributed) -> None:
    """What real swaps do to m: of the validated heads, and of all heads of each block."""
    chosen = validated(found.run, found.bench.direction)
    players = [*chosen["top"], *chosen["random"]]
    variants: list[Variant] = [heads_formula.swap(layer, found.changes[layer], [head or 0]) for layer, head in players]
    variants += [heads_formula.swap(layer, found.changes[layer], range(found.changes[layer].shape[1])) for layer in found.layers]
    along = Along(name="effect_logits", weights=found.weights.nan_to_num()[None], which=[0] * len(variants))
    effects = found.bench.scores(variants, (), along)["effect_logits"][:, 1:]
    effects = effects.masked_fill(found.weights.isnan().any(-1)[:, None], torch.nan)
    names = [(layer, labels.head_unit(head)) for layer, head in players if head is not None] + [
        (layer, labels.ALL) for layer in found.layers
    ]
    for (layer, unit), values in zip(names, effects.unbind(1), strict=True):
        found.add(values, layer=layer, site="attn_proj", unit=unit, arm="contribution", metric="effect_logits")


def validated(run: Execution, direction: str) -> dict[str, list[Player]]:
    """The heads whose attribution is held against true patches: the top ones by the select prompts, and random others (without select: alone)."""
    options = run.prepared.study.asked(AttributionOptions)
    assert options
    layers, n_heads = options.layer_numbers(run.n_layers), len(output_of(run, "base", 0)[0])
    ranked = [player for player in order(run, direction, "attribution") if player[1] is not None]
    rest = [(layer, head) for layer in layers for head in range(n_heads) if (layer, head) not in ranked[: options.validated]]
    drawn = np.random.default_rng(run.prepared.study.seed).permutation(len(rest))[: options.validated * (1 if ranked else 2)]
    return {"top": ranked[: options.validated], "random": [rest[i] for i in sorted(drawn)]}


def _weights(run: Execution, cell: Cell, bench: Bench) -> Float[Tensor, "prompt vocab"]:
    metric, tokens, listed = cell.key["settings"]["metric"], run.prepared.tokens, None
    if metric == "label":
        tokenizer = run.prepared.pair.tokenizer("tuned")
        ids = [formula.label_token(name, run.prompt(cell.key["split"], name).prompt.label, tokenizer) for name in cell.key["ids"]]
        listed = tokens.listed("tuned", torch.tensor(ids)).tolist()
    logits = {side: bench.states[side].logits for side in ("base", "tuned")}
    return formula.weights_of(metric, logits["base"], logits["tuned"], listed, n_shared=tokens.n_shared)


def attribution_record(run: Execution) -> dict[str, Any]:
    """For the record: `attribution` (what was attributed, and which heads were held against true patches)."""
    cells = [cell for cell in run.cells if cell.stage == "attribution" and cell.key["split"] == "report"]
    options = run.prepared.study.asked(AttributionOptions)
    if not cells or not options:
        return {}
    chosen = {direction: validated(run, direction) for direction in CROSSED}
    by = {direction: "select" if one["top"] else "chance" for direction, one in chosen.items()}
    said = {
        direction: {what: [labels.player_name(player) for player in players] for what, players in one.items()} | {"by": by[direction]}
        for direction, one in chosen.items()
    }
    shared = run.prepared.tokens.n_shared
    base, tuned = (run.states(side, "report", "decision").logits[:, :shared].argmax(-1) for side in ("base", "tuned"))
    undefined = int((base == tuned).sum()) if options.metric == "divergent" else 0
    top = {"top": options.validated, "threshold": options.threshold, "undefined_prompts": undefined}
    return {"attribution": {"metric": options.metric, "steps": options.steps, **top, "validated": said}}
