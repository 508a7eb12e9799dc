"""Both models read a pass of the panel's texts, one after the other, and what they say next is held against one another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from mechdiff.engine.continued import Continuation, Continued, likelihoods
from mechdiff.engine.grafts import batches, logits_at
from mechdiff.engine.reading import side_by_side
from mechdiff.measures.behaviour.answers import choice
from mechdiff.measures.behaviour.compute import continued
from mechdiff.measures.behaviour.formula import soft_refusal
from mechdiff.measures.panel import formula
from mechdiff.measures.panel.plan import OPENINGS, SPLIT, openings
from mechdiff.models.pair import Model
from mechdiff.prompts.rendering import Rendered
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution
from mechdiff.study.experiment import Result


@dataclass(frozen=True, kw_only=True)
class _Said:
    """What one model says of one text."""

    logits: Float[Tensor, "pos vocab"]
    """At the aligned positions that are scored, in the tokens that both vocabularies are listed in."""
    loss: float | None
    """-log p of what follows the first of them, in nats; None where nothing does."""
    scores: dict[str, float]
    """right, margin, refusal, soft: of prompts with options and of requests."""


def compare(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of every text and prompt of a pass."""
    ones = [run.prompt(SPLIT, name) for name in cell.key["ids"]]
    said: dict[str, list[_Said]] = {}
    for side in run.prepared.pair.in_turn:
        with run.prepared.pair.use(side) as reader:
            said[side] = _said(run, reader, ones)
    return pl.concat(_rows(run, *each) for each in zip(ones, said["base"], said["tuned"], strict=True)), {}


def _rows(run: Execution, one: Rendered, base: _Said, tuned: _Said) -> pl.DataFrame:
    values = formula.apart(base.logits, tuned.logits, run.prepared.tokens.n_shared)
    if base.loss is not None and tuned.loss is not None:
        n = len(one.ids_base) - 1 - one.positions[0][0]
        values |= {"loss_base_nats": base.loss / n, "loss_tuned_nats": tuned.loss / n}
    for what in ("right", "refusal"):
        if what in base.scores:
            values |= {f"{what}_base": base.scores[what], f"{what}_tuned": tuned.scores[what]}
    for what, name in (("margin", "margin_change_nats"), ("soft", "refusal_soft_change_nats")):
        if what in base.scores:
            values[name] = tuned.scores[what] - base.scores[what]
    return formula.told(one.prompt.id, one.prompt.meta["kind"], values)


def _said(run: Execution, model: Model, ones: Sequence[Rendered]) -> list[_Said]:
    which = 0 if model.side == "base" else 1
    ids = [one.ids_base if model.side == "base" else one.ids_tuned for one in ones]
    starts = [one.positions[0][which] for one in ones]
    scores = _scores(run, model, ones, ids)
    found: dict[int, _Said] = {}
    together = side_by_side(model, run.engine(model, "decision"))
    n_places = [len(each) - start for each, start in zip(ids, starts, strict=True)]
    for batch in batches(model, ids, None if together else 1, n_places):
        for row, logits in zip(batch.rows, logits_at(model, batch).split([n_places[row] for row in batch.rows]), strict=True):
            one, start = ones[row], starts[row]
            behind = torch.tensor(ids[row][start + 1 :], device=logits.device)
            places = torch.tensor([pair[which] - start for pair in one.positions], device=logits.device)
            found[row] = _Said(
                logits=run.prepared.tokens.place(logits[places], model.side).cpu(),
                loss=formula.losses(logits[:-1], behind) if len(behind) else None,
                scores=scores.get(row, {}),
            )
    return [found[row] for row in range(len(ones))]


def _scores(run: Execution, model: Model, ones: Sequence[Rendered], ids: Sequence[Sequence[int]]) -> dict[int, dict[str, float]]:
    """Of each prompt with options and of each request, by its number."""
    texts = {
        row: list(one.prompt.options) if one.prompt.meta["form"] == "choice" else list(openings())
        for row, one in enumerate(ones)
        if one.prompt.meta["form"] in ("choice", "request")
    }
    if not texts:
        return {}
    tokenizer, raw = run.prepared.pair.tokenizer(model.side), run.prepared.study.prompts.policy == "raw"
    asked: list[Continuation] = []
    for place, (row, behind) in enumerate(texts.items()):
        before = getattr(ones[row], f"text_{model.side}")
        asked += [Continuation(prompt=place, ids=continued(tokenizer, before, ids[row], text, raw=raw)) for text in behind]
    told = Continued(prompts=[ids[row] for row in texts], continuations=asked)
    logps = likelihoods(model, run.engine(model, "decision"), told, max_rows=run.max_rows).logps[:, 0].tolist()
    found, at = {}, 0
    for row, behind in texts.items():
        here = slice(at, at + len(behind))
        at += len(behind)
        sizes = [len(one.ids) for one in asked[here]], [len(text.encode()) for text in behind]
        found[row] = _score(ones[row], logps[here], *sizes, per_byte=not run.prepared.tokens.all_shared)
    return found


def _score(one: Rendered, logps: list[float], n_tokens: list[int], n_bytes: list[int], *, per_byte: bool) -> dict[str, float]:
    if one.prompt.meta["form"] == "choice":
        assert one.prompt.label is not None
        values = choice(logps, n_tokens, n_bytes, one.prompt.options.index(one.prompt.label))
        return {"right": values["mc_correct"], "margin": values["mc_margin_per_byte_nats"]}
    soft = soft_refusal(logps, n_tokens, n_bytes, OPENINGS)["refusal_soft_per_byte_nats" if per_byte else "refusal_soft_nats"]
    return {"refusal": float(soft > 0) if math.isfinite(soft) else math.nan, "soft": soft}


def record(run: Execution) -> dict[str, Any]:
    """For the record: how many texts of each group were read."""
    counts: dict[str, int] = {}
    for cell in (cell for cell in run.cells if cell.stage == "panel"):
        for name in cell.key["ids"]:
            group = run.prompt(SPLIT, name).prompt.meta["kind"]
            counts[group] = counts.get(group, 0) + 1
    return {"panel": counts} if counts else {}
