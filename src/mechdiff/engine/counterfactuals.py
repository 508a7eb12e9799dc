"""Many counterfactual runs are scored: each prompt under each variant, by every metric of `engine.distributions`.

What all causal measures share: a measure says what is written where (variants) and what each of them is called (labels); here the model runs,
and the distributions that come out are held against the clean ones of both models: at the decision position, or at every token of an answer that
both models read (`shares.OVER`).
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import polars as pl
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mechdiff import shares
from mechdiff.engine.activations import Clean
from mechdiff.engine.continued import RUNS
from mechdiff.engine.distributions import EVERY
from mechdiff.engine.outcome import CleanLogits, outcomes
from mechdiff.engine.overlap import overlap_nats
from mechdiff.engine.replay import Engine, Variant
from mechdiff.models.pair import Model
from mechdiff.prompts.vocabularies import Tokens
from mechdiff.rows import KEY, OVERLAP, rows

LOCATING = (*EVERY, OVERLAP)
"""Of runs that say where a change is: patching and heads."""

OVER_ANSWERS = ("kl_own_nats", "kl_own_shared_nats", shares.OTHER, "logit_diff_divergent", OVERLAP)
"""Metrics that have relatives over an answer; of a pair with two vocabularies the one on the tokens that both have."""

Scores = dict[str, Float64[Tensor, "prompt run"]]
"""By metric; run 0 is the unedited one, the others are the variants."""


@dataclass(frozen=True, kw_only=True)
class Along:
    """A metric that is linear in the logits: sum over tokens of a weight times how far a run moved that token's logit."""

    name: str
    weights: Float[Tensor, "functional prompt vocab"]
    """Summing to 0 over the vocabulary, so that a shift of all logits counts for nothing."""
    which: Sequence[int]
    """Whose weights count, by variant."""

    def at(self, prompts: slice) -> "Along":
        """The same metric on some prompts."""
        return replace(self, weights=self.weights[:, prompts])

    def values(self, logits: Float[Tensor, "prompt run vocab"], which: Sequence[int]) -> Float64[Tensor, "prompt run"]:
        """Of runs by these weights, behind the unedited run."""
        found = torch.zeros(logits.shape[:2], dtype=torch.float64)
        for runs, weights, values in zip(logits, self.weights.unbind(1), found, strict=True):
            moved = change(runs[1:], runs[0])
            for one in sorted(set(which)):
                here = [i for i, other in enumerate(which) if other == one]
                values[1:][here] = (moved @ weights[one].to(moved)).double().cpu()[here]
        return found


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The model that is experimented on, with the prompts that it has read."""

    model: Model
    engine: Engine
    cleans: Sequence[Clean]
    """Its unedited run of each prompt."""
    tokens: Tokens
    answers: Sequence[Sequence[int]] | None = None
    """What follows each prompt: then a run is looked at before each of these tokens, at its positions (the axis `place`)."""

    def logits(self, variants: Sequence[Variant]) -> Float[Tensor, "place run vocab"]:
        """What the unedited run and each variant say next, over the tokens of both models."""
        if self.answers is None:
            found = self.engine(self.model, self.cleans, variants)
        else:
            found = RUNS[self.engine](self.model, self.cleans, self.answers, variants)
        return self.tokens.place(found, self.model.side)

    @property
    def rows(self) -> int:
        """Rows that one run of all prompts takes in a pass."""
        return len(self.cleans) * max(map(len, self.answers or [[0]]))


def scores(
    subject: Subject,
    variants: Sequence[Variant],
    clean: CleanLogits,
    *,
    max_rows: int,
    metrics: Collection[str] = EVERY,
    along: Along | None = None,
) -> Scores:
    """What every variant does to each prompt's distribution. No pass has more than about `max_rows` rows.

    With answers, over the positions of each prompt's answer (`clean` has a row for each of them, in turn): the relatives in `shares.OVER`.
    A variant that adds nothing anywhere is not run: it is the unedited run.
    """
    side = subject.model.side
    busy = [i for i, variant in enumerate(variants) if not adds_nothing(variant)]
    parts: list[Scores] = []
    lengths = [len(ids) for ids in subject.answers or ()]
    parting = first_parting(clean, lengths) if subject.answers is not None else []
    for part in chunks(max(1, len(busy)), max(1, max_rows // subject.rows - 1)):
        logits = subject.logits([variants[i] for i in busy[part]])
        found = outcomes(logits, clean, side, metrics=metrics)
        if OVERLAP in metrics and OVERLAP not in found:
            found[OVERLAP] = overlap_nats(logits, clean.of(side), clean.beside(side), clean.n_shared)
        if along:
            found[along.name] = along.values(logits, [along.which[i] for i in busy[part]])
        if subject.answers is not None:
            found = over_answers({name: found[name] for name in OVER_ANSWERS if name in found}, lengths, parting)
        parts.append(found if not parts else {name: values[:, 1:] for name, values in found.items()})
    run_of = [0, *(1 + busy.index(i) if i in busy else 0 for i in range(len(variants)))]
    return {name: torch.cat([part[name] for part in parts], 1)[:, run_of] for name in parts[0]}


def over_answers(found: Scores, lengths: Sequence[int], parting: Sequence[int | None]) -> Scores:
    """From a value a position to two a prompt: the mean over its positions, and that at its `parting` one (NaN where there is none).

    `lengths` are the positions of each prompt.
    """
    together: Scores = {}
    for name, values in found.items():
        split = values.split(list(lengths))
        if name == "logit_diff_divergent":  # the difference of two tokens' log-probabilities is that of their logits; one token: 0
            together[shares.over(name, shares.ANSWER)] = torch.stack([one.nan_to_num(nan=0.0).mean(0) for one in split])
        else:
            together[shares.over(name, shares.ANSWER)] = torch.stack([one.mean(0) for one in split])
        nowhere = torch.full_like(values[0], torch.nan)
        at = [nowhere if place is None else one[place] for one, place in zip(split, parting, strict=True)]
        together[shares.over(name, shares.DIVERGENT)] = torch.stack(at)
    return together


def first_parting(clean: CleanLogits, lengths: Sequence[int]) -> list[int | None]:
    """The first position of each prompt's answer (of so many) where the two models' top-1 tokens differ, of those that both have; None: nowhere."""
    tops = [laws[:, : clean.n_shared].argmax(-1) for laws in (clean.base, clean.tuned)]
    differ = (tops[0] != tops[1]).cpu().split(list(lengths))
    return [int(one.int().argmax()) if one.any() else None for one in differ]


def adds_nothing(variant: Variant) -> bool:
    """Whether every write of a variant adds zeros."""
    return all(write.add and not write.value.any() for write in variant.values())


def moved_logits(subject: Subject, variants: Sequence[Variant], *, max_rows: int) -> Float[Tensor, "prompt variant vocab"]:
    """How far every variant moves each prompt's logits from the unedited run of the same pass, on the CPU."""
    found = torch.zeros(len(subject.cleans), len(variants), len(subject.tokens))
    busy = [i for i, variant in enumerate(variants) if not adds_nothing(variant)]
    for part in chunks(len(busy), max(1, max_rows // len(subject.cleans) - 1)) if busy else ():
        logits = subject.logits([variants[i] for i in busy[part]])
        found[:, busy[part]] = change(logits[:, 1:], logits[:, :1]).cpu()
    return found


def change(logits: Float[Tensor, "... vocab"], clean: Float[Tensor, "... vocab"]) -> Float[Tensor, "... vocab"]:
    """logits - clean; 0 where the model has no such token (-inf)."""
    moved, absent = logits - clean, clean == -torch.inf
    return moved.masked_fill_(absent, 0) if absent.any() else moved


def score_rows(found: Scores, labels: pl.DataFrame, prompt_ids: Sequence[str], *, floor: bool = False) -> pl.DataFrame:
    """Rows of scores; `labels` has one row a variant, with some of the key columns. `floor` adds the unedited run, control `no_op`."""
    n_variants = len(labels)
    named = {name: labels[name].to_list() * len(prompt_ids) for name in labels.columns}
    prompts = [prompt for prompt in prompt_ids for _ in range(n_variants)]
    frames = []
    for metric, values in found.items():
        frames.append(rows(values[:, 1:].flatten().numpy(), metric=metric, prompt=prompts, **named))
        if floor and metric in (*LOCATING, *shares.OF_ANSWERS):
            constant = {name: labels[name][0] for name in ("measure", "direction", "split")}
            frames.append(rows(values[:, 0].numpy(), metric=metric, prompt=list(prompt_ids), control="no_op", **constant))
    return pl.concat(frames)


def chunks(n: int, most: int) -> Iterator[slice]:
    """Slices of `n` things, as equal as can be, none longer than `most`."""
    count = -(-n // most)
    return (slice(i * n // count, (i + 1) * n // count) for i in range(count))


def labelled(n: int, **columns: object) -> pl.DataFrame:
    """Labels of `n` variants from key columns, each a list or one value for all; absent ones are null."""
    frame = rows([0.0] * n, **columns)
    return frame.select([name for name in KEY if name not in ("prompt", "metric")])


def donors(clusters: Sequence[object], seed: int) -> list[int]:
    """For each prompt (named by its cluster) another one whose state stands in for it, of another cluster: one of its own would know the prompt.

    A random order in which clusters stay together, turned by the size of the largest: every state is used once. A cluster with more than half of
    the prompts has donors that others use too. Of a single cluster each has another prompt. Needs two prompts.
    """
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(clusters), generator=random).tolist()
    first: dict[object, int] = {}
    for place, prompt in enumerate(order):
        first.setdefault(clusters[prompt], place)
    order.sort(key=lambda prompt: first[clusters[prompt]])  # stable: where every prompt is alone, the order as drawn
    turn = max(Counter(clusters).values()) if len(first) > 1 else 1
    donor = [0] * len(order)
    for place, prompt in enumerate(order):
        donor[prompt] = order[(place + turn) % len(order)]
        if len(first) > 1 and clusters[donor[prompt]] == clusters[prompt]:
            others = [one for one in order if clusters[one] != clusters[prompt]]
            donor[prompt] = others[int(torch.randint(len(others), (1,), generator=random))]
    return donor
