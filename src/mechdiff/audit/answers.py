"""Numbers over whole answers are computed once more here: the answer is said again token by token, and read in whole forward passes."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mechdiff import labels, shares
from mechdiff.architectures.sites import Site
from mechdiff.audit import whole
from mechdiff.audit.distributions import LOGITS_APART, NotRecomputed, Row
from mechdiff.audit.rerun import Rerun
from mechdiff.audit.whole import Put
from mechdiff.engine.generation import stop_ids
from mechdiff.prompts.sets import clusters_of
from mechdiff.study.answers import others


def what_of(metric: str) -> str | None:
    """The one of `shares.OVER` that a metric is of; None: of the decision position."""
    if metric in ("top1_same_answer", "divergent_place"):
        return shares.ANSWER
    return next((what for what in shares.OVER if metric.endswith(f"_{what}_nats")), None)


def read(run: Rerun, side: str, split: str, prompt: str) -> tuple[list[int], int]:
    """What a model reads of a prompt and its answer, and how many positions its answer has: the last ones of it."""
    told = run.prepared.study.answers
    tokens = run.prepared.tokens
    if not tokens.all_shared:
        raise NotRecomputed("an answer that two tokenizers write in other tokens is cut by the run's own code")
    key = ("answer", split, prompt)
    if key not in run.cached:
        ids, said = list(run.ids(run.answered_by, split, prompt)), list[int]()
        with run.model(run.answered_by) as model:
            ends = stop_ids(model, run.prepared.pair.tokenizer(model.side), run.prepared.tokenizers())
            while len(said) < told.tokens - 1:
                token = int(whole.logits(model, [*ids, *said]).argmax())
                if token in ends:
                    break
                said.append(token)
        run.cached[key] = tokens.places(run.answered_by, said)
    listed = run.cached[key]
    return [*run.ids(side, split, prompt), *(int(tokens.ids[side][one]) for one in listed)], 1 + len(listed)


def laws(run: Rerun, side: str, split: str, prompt: str, puts: dict[Site, Put] | None = None) -> Tensor:
    """Logits `[place, vocab]`, on the tokens that both models have."""
    ids, n_places = read(run, side, split, prompt)
    with run.model(side) as model:
        found = whole.logits(model, ids, puts, everywhere=True)[-n_places:]
    return run.prepared.tokens.place(found, side)[:, : run.prepared.tokens.n_shared]


def clean(run: Rerun, side: str, split: str, prompt: str) -> Tensor:
    """`laws` of an unedited run."""
    key = ("answer laws", side, split, prompt)
    if key not in run.cached:
        run.cached[key] = laws(run, side, split, prompt)
    return run.cached[key]


def states(run: Rerun, side: str, split: str, prompt: str, sites: Sequence[Site]) -> dict[Site, Tensor]:
    """`[place, d]` of some sites."""
    ids, n_places = read(run, side, split, prompt)
    with run.model(side) as model:
        return whole.states(model, ids, sites, n_places)


def mean_of_others(run: Rerun, side: str, split: str, prompt: str, site: Site) -> Tensor:
    """`[d]`: the mean over all positions of the answers to the prompts that something used on this one is made of, in float64."""
    names = next(cell.key["ids"] for cell in run.prepared.plan.cells if cell.stage == "answer")
    known = [run.prepared.rendered[split][name].prompt for name in names]
    found = []
    for name in others(dict(zip(names, clusters_of(known), strict=True)), prompt):
        key = ("answer states", side, split, name, site)
        if key not in run.cached:
            run.cached[key] = states(run, side, split, name, [site])[site].double()
        found.append(run.cached[key])
    return torch.cat(found).mean(0)


def of_run(run: Rerun, row: Row, puts: Callable[[], dict[Site, Put]]) -> float:
    """A metric over an answer of a run with these writes; rows that differ in the metric alone share it."""
    split, prompt, own = row["split"], row["prompt"], labels.runner(row["direction"])
    key = (
        "answer run",
        *(row[name] for name in ("measure", "direction", "layer", "site", "unit", "arm", "rank", "strength", "control", "prompt")),
    )
    if key not in run.cached:
        run.cached[key] = laws(run, own, split, prompt, puts())
    return of_laws(run, row, own, run.cached[key])


def of_laws(run: Rerun, row: Row, own: str, edited: Tensor) -> float:
    """A metric over an answer of a run of the model `own` whose logits at every position are `edited`."""
    base, tuned = (clean(run, side, row["split"], row["prompt"]) for side in ("base", "tuned"))
    mine, other = (tuned, base) if own == "tuned" else (base, tuned)
    ways: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], float]] = {
        shares.OWN[0]: lambda b, t, mine, other, one: whole.kl(mine, one),
        shares.OTHER: lambda b, t, mine, other, one: whole.kl(other, one),
        "fisher_overlap_nats": lambda b, t, mine, other, one: whole.overlap(mine, other, one),
        shares.LOG_RATIO: lambda b, t, mine, other, one: float(one[t.argmax()] - one[b.argmax()]),
    }
    what = what_of(row["metric"])
    assert what
    way = next(way for name, way in ways.items() if shares.over(name, what) == row["metric"])
    return together(what, base, tuned, [way(*laws) for laws in zip(base, tuned, mine, other, edited, strict=True)])


def tied(run: Rerun, law: Float[Tensor, " vocab"]) -> bool:
    """Whether the first two tokens are nearer than the logits of a run done twice."""
    first, second = law.double().topk(2).values
    return bool(first - second <= LOGITS_APART * math.sqrt(2 * run.floor) + 2 * torch.finfo(torch.float32).eps * first.abs())


def of_pair(run: Rerun, row: Row) -> float:
    """What `divergence` says of the two models over an answer."""
    base, tuned = (clean(run, side, row["split"], row["prompt"]) for side in ("base", "tuned"))
    apart = [int(b.argmax()) != int(t.argmax()) for b, t in zip(base, tuned, strict=True)]
    if row["metric"] == "divergent_place":
        return float(apart.index(True)) if any(apart) else math.nan
    if row["metric"] == "top1_same_answer":
        if any(tied(run, law) for law in (*base, *tuned)):
            raise NotRecomputed("at a position of the answer two tokens are so near that rounding says which is the first")
        return 1 - sum(apart) / len(apart)
    ways: dict[str, Callable[[Tensor, Tensor], float]] = {
        "kl_tuned_base_nats": lambda b, t: whole.kl(t, b),
        "kl_base_tuned_nats": lambda b, t: whole.kl(b, t),
        "fisher_total_nats": lambda b, t: (whole.kl(t, b) + whole.kl(b, t)) / 2,
        "log_ratio_base_nats": lambda b, t: float(b[t.argmax()] - b[b.argmax()]),
        "log_ratio_tuned_nats": lambda b, t: float(t[t.argmax()] - t[b.argmax()]),
    }
    what = what_of(row["metric"])
    assert what
    way = next(way for name, way in ways.items() if shares.over(name, what) == row["metric"])
    return together(what, base, tuned, [way(b, t) for b, t in zip(base, tuned, strict=True)])


def together(what: str, base: Tensor, tuned: Tensor, values: list[float]) -> float:
    """The mean over positions, or the value at the first one where the two models part."""
    if what == shares.ANSWER:
        return sum(values) / len(values)
    apart = torch.nonzero(base.argmax(-1) != tuned.argmax(-1))[:, 0].tolist()
    return values[apart[0]] if apart else math.nan
