"""The panel's numbers are computed once more from whole forward passes, one text at a time, without engine, cache or batch."""

from typing import cast

import numpy as np
import torch
from torch import Tensor

from mechdiff.audit import whole
from mechdiff.audit.distributions import NotRecomputed, Row
from mechdiff.audit.rerun import Rerun
from mechdiff.measures.behaviour.phrases import spaced
from mechdiff.measures.panel.plan import SPLIT
from mechdiff.models.pair import Side
from mechdiff.prompts.rendering import Rendered


def again(run: Rerun, row: Row) -> float:
    """One number of one text. Refusals and leads are scores of texts that are put to the models: they have no second way here but right answers."""
    one, metric = run.prepared.rendered[SPLIT][row["prompt"]], row["metric"]
    if metric.startswith(("refusal", "margin")):
        raise NotRecomputed("scores of openings and of leads")
    if metric.startswith("right"):
        right = {side: _right(run, one, side) for side in ("base", "tuned")}
        return right["tuned"] - right["base"] if metric == "right_change" else right[metric.removeprefix("right_")]
    if metric.startswith("loss"):
        loss = {side: _loss(run, one, side) for side in ("base", "tuned")}
        return loss["tuned"] - loss["base"] if metric == "loss_change_nats" else loss[metric.split("_")[1]]
    return _apart(run, one, metric)


def _apart(run: Rerun, one: Rendered, metric: str) -> float:
    n_shared = run.prepared.tokens.n_shared
    values = []
    for base_at, tuned_at in one.positions:
        base, tuned = (_logits(run, one, side)[at] for side, at in (("base", base_at), ("tuned", tuned_at)))
        if metric == "top1_same":
            values.append(float(tuned[base.argmax()] == tuned.max()))
        elif metric == "mass_outside":
            values.append(float(tuned.softmax(-1)[n_shared:].sum()))
        else:
            p, q = (tuned, base) if metric in ("kl_tuned_base_nats", "kl_shared_nats") else (base, tuned)
            values.append(whole.kl(p[:n_shared], q[:n_shared]))
    return float(np.mean(values))


def _logits(run: Rerun, one: Rendered, side: str) -> Tensor:
    """`[pos, vocab]` in the tokens that both vocabularies are listed in."""
    key = ("panel", side, one.prompt.id)
    if key not in run.cached:
        with run.model(side) as model:
            run.cached[key] = run.prepared.tokens.place(whole.logits(model, run.ids(side, SPLIT, one.prompt.id), everywhere=True), side)
    found: Tensor = run.cached[key]
    return found


def _loss(run: Rerun, one: Rendered, side: str) -> float:
    """-log p of the tokens behind the first scored position, per token of the base."""
    start = {of: one.positions[0][place] for place, of in enumerate(("base", "tuned"))}
    ids = run.ids(side, SPLIT, one.prompt.id)
    with run.model(side) as model:
        laws = whole.logits(model, ids, everywhere=True).log_softmax(-1)
    summed = -sum(float(laws[at - 1, ids[at]]) for at in range(start[side] + 1, len(ids)))
    return summed / (len(one.ids_base) - 1 - start["base"])


def _right(run: Rerun, one: Rendered, side: str) -> float:
    """Whether the right option has the highest log p per byte, each read behind the prompt in a pass of its own."""
    ids, tokenizer = list(run.ids(side, SPLIT, one.prompt.id)), run.prepared.pair.tokenizer(cast(Side, side))
    before = one.text_base if side == "base" else one.text_tuned
    scores = {}
    for option in one.prompt.options:
        told = tokenizer(before + spaced(tokenizer, before, ids, option), add_special_tokens=run.prepared.study.prompts.policy == "raw")[
            "input_ids"
        ]
        if told[: len(ids)] != ids:
            raise NotRecomputed("the option's first word merges with the end of the prompt")
        with run.model(side) as model, torch.no_grad():
            laws = whole.logits(model, told, everywhere=True).log_softmax(-1)
        scores[option] = sum(float(laws[at - 1, told[at]]) for at in range(len(ids), len(told))) / len(option.encode())
    best = max(scores.values())
    return float(scores[str(one.prompt.label)] >= best)
