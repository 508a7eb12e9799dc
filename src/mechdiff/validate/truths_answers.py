"""Outcomes over whole answers are held against a change that no next token shows: one that acts from the third token of an answer on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from mechdiff import labels
from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import Clean
from mechdiff.engine.counterfactuals import Subject, first_parting, scores
from mechdiff.engine.distributions import kl_nats
from mechdiff.engine.generation import Speech, speak
from mechdiff.engine.gradients import gradients
from mechdiff.engine.outcome import CleanLogits
from mechdiff.engine.reading import captures, read, read_on
from mechdiff.engine.replay import Variant, Write, full, replay
from mechdiff.measures.attribution.formula import over_places
from mechdiff.measures.divergence.formula import over_answers
from mechdiff.measures.factorial import formula as factorial
from mechdiff.measures.heads.formula import Block, swap
from mechdiff.measures.patching.formula import variants
from mechdiff.measures.steering.formula import add
from mechdiff.measures.steering.subspaces import Subspace, change_subspace
from mechdiff.models.pair import Model, wrap
from mechdiff.prompts.vocabularies import Tokens
from mechdiff.study.answers import others as unseen
from mechdiff.validate import edits
from mechdiff.validate.checks import Check, above, at_most, near, same
from mechdiff.validate.planted import Bench, edited
from mechdiff.validate.truths_heads import by_head

N_TOKENS = 6
"""Of each answer."""
STEP = 0.02
"""Of the way to the other model's states: small enough for a straight line."""
LATE = 1
"""The answer's token whose embedding is changed: what follows it is the third token."""


@dataclass(frozen=True, kw_only=True)
class Late:
    """A pair that is read along its answers: P24 differs in what follows every answer's second token alone."""

    models: dict[str, Model]
    prompts: list[list[int]]
    answers: list[list[int]]
    seen: dict[str, list[Clean]]
    """By model: what was captured at every position of each answer."""
    clean: CleanLogits
    total: float
    """Mean D over the answers."""
    within: float
    """How far rounding moves a share."""

    @property
    def n_layers(self) -> int:
        return self.models["base"].shape.n_layers

    def states(self, side: str, kind: str) -> torch.Tensor:
        """`[layer, prompt, place, d]`"""
        return torch.stack([torch.stack([one.states[Site(layer, kind)] for one in self.seen[side]]) for layer in range(self.n_layers)])

    def mean_difference(self, layer: int, n_pos: int, *, kind: str = "resid_post", prompts: Sequence[int] | None = None) -> Subspace:
        """Of the first positions along the answers to these prompts (None: all)."""
        which = list(range(len(self.prompts))) if prompts is None else list(prompts)
        base, tuned = (self.states(side, kind)[layer, which, :n_pos].flatten(0, 1) for side in ("base", "tuned"))
        return change_subspace(base, tuned, 1)

    def subject(self, side: str, *, over_answers: bool = True) -> Subject:
        size = self.clean.base.shape[-1]
        tokens = Tokens(relation="equal", pieces=(None,) * size, ids={}, n_shared=size)
        cleans = read(self.models[side], self.prompts)
        return Subject(model=self.models[side], engine=replay, cleans=cleans, tokens=tokens, answers=self.answers if over_answers else None)

    def shares(self, side: str, variants: Sequence[Variant]) -> torch.Tensor:
        """Of D over the answers, of every run of one model: what the tuned one breaks, what the base recovers."""
        found = scores(self.subject(side), variants, self.clean, max_rows=512)
        moved = found["kl_own_answer_nats" if side == "tuned" else "kl_other_answer_nats"][:, 1:].mean(0) / self.total
        return moved if side == "tuned" else 1 - moved


def p24(bench: Bench) -> Iterator[Check]:
    """The embedding of every answer's second token changed; prompts and first tokens have none of these."""
    late = _planted(bench)
    lengths, names = [N_TOKENS] * len(late.prompts), [str(i) for i in range(len(late.prompts))]
    rows = over_answers(late.clean.base, late.clean.tuned, lengths, names, "report")
    by_metric = {metric: part["value"].to_numpy() for (metric,), part in rows.group_by("metric")}
    early = (late.clean.base - late.clean.tuned).unflatten(0, (-1, N_TOKENS))[:, : LATE + 1]
    yield at_most("difference of any logit of the first two tokens", early.abs().max(), 0)
    yield above("mean D over the answers in nats", late.total, 1e-3)
    yield above("first position at which the top-1 tokens differ, any prompt", np.nanmin(by_metric["divergent_place"]), LATE)
    for direction in labels.CROSSED:
        own, other = labels.sides(direction)

        def run(kind: str, n_pos: int, of: str = other, own: str = own) -> list[float]:
            return late.shares(own, variants(kind, range(late.n_layers), late.states(of, kind)[:, :, :n_pos])).tolist()

        yield near(
            f"{direction}: share over the answers of resid_post, patched in at every position, every block",
            run("resid_post", N_TOKENS),
            1,
            late.within,
        )
        yield near(f"{direction}: the same, patched in at the last prompt token alone", run("resid_post", 1), 0, late.within)
        yield near(
            f"{direction}: the running model's own activations, patched in at every position", run("mlp_out", N_TOKENS, own), 0, 1e-6
        )
        yield from _where_they_part(late, direction)
        yield from _heads(late, direction)
        yield from _gradients(late, direction)
    yield from _halves(late)
    ranks = {n_pos: [late.mean_difference(layer, n_pos).rank for layer in range(late.n_layers)] for n_pos in (1, N_TOKENS)}
    yield same("directions of the mean difference at the last prompt token, every block", ranks[1], [0] * late.n_layers)
    yield same("the same along the answers", ranks[N_TOKENS], [1] * late.n_layers)


def p24_constant(bench: Bench) -> Iterator[Check]:
    """A constant added to what the last MLP writes: one vector, made of the answers to other prompts, is all of it over an answer."""
    pair = bench.plant(edits.add_mlp_bias, prepare=edits.give_mlp_bias)
    prompts = [list(ids) for ids in bench.prompts[: bench.n_prompts]]
    answers = [said.tolist() for said in speak(pair.tuned, replay, prompts, Speech(max_tokens=N_TOKENS, stop=()))]
    late, layer = _read({"base": pair.base, "tuned": pair.tuned}, prompts, answers, bench), edits.BIASED
    others = {name: name for name in map(str, range(len(prompts)))}
    pushes = []
    for i in range(len(prompts)):
        one = late.mean_difference(layer, N_TOKENS, kind="mlp_out", prompts=[int(name) for name in unseen(others, str(i))])
        pushes.append(add(one.mean)(late.states("base", "mlp_out")[layer, i].double()).float())
    added: list[Variant] = [{Site(layer, "mlp_out"): Write(value=torch.stack(pushes), add=True)}]
    yield above("mean D over the answers in nats", late.total, 1e-3)
    yield near("share over the answers of the vector, added at every position", late.shares("base", added), 1, late.within)


def _heads(late: Late, direction: str) -> Iterator[Check]:
    """All heads of a block are its attention's output; at the decision position none of them is another head."""
    own, other = labels.sides(direction)
    if "z" not in late.models[own].kinds():
        return
    z = {side: late.states(side, "z") for side in late.models}
    swaps: dict[int, list[Variant]] = {}
    for n_pos in (1, N_TOKENS):
        swaps[n_pos] = []
        for layer in range(late.n_layers):
            weights = {side: by_head(model, layer) for side, model in late.models.items()}
            mine, theirs = (z[side][layer, :, :n_pos].unflatten(-1, weights[side].shape[:2]) for side in (own, other))
            block = Block(layer=layer, own=mine, other=theirs, w_own=weights[own], w_other=weights[other])
            swaps[n_pos].append(swap(layer, block.change(), range(block.n_heads)))
    first = CleanLogits(base=late.clean.base[::N_TOKENS], tuned=late.clean.tuned[::N_TOKENS])
    moved = scores(late.subject(own, over_answers=False), swaps[1], first, max_rows=512)["kl_own_nats"]
    yield at_most(f"{direction}: what all heads of any block do to the first token, in nats", moved.max(), 1e-9)
    yield above(f"{direction}: largest share over the answers of all heads of a block", late.shares(own, swaps[N_TOKENS]).max(), 0.1)


def _where_they_part(late: Late, direction: str) -> Iterator[Check]:
    """One position is written, where the models part: whole passes say the same, and the last block's output carries all of D there."""
    own, other = labels.sides(direction)
    places = [place or 0 for place in first_parting(late.clean, [N_TOKENS] * len(late.prompts))]
    rows = [i * N_TOKENS + place for i, place in enumerate(places)]
    law = CleanLogits(base=late.clean.base[rows], tuned=late.clean.tuned[rows])
    states = late.states(other, "resid_post")
    written = torch.stack([states[:, i, place] for i, place in enumerate(places)], 1)[:, :, None]
    subject, edits_there = late.subject(own), variants("resid_post", range(late.n_layers), written)
    behind = [said[:place] for said, place in zip(late.answers, places, strict=True)]
    on = replace(subject, answers=None, cleans=read_on(subject.model, replay, subject.cleans, behind))
    whole = replace(on, engine=full)
    found, again = (scores(one, edits_there, law, max_rows=512)["kl_own_nats"][:, 1:] for one in (on, whole))
    d = kl_nats(law.of(own), law.beside(own))
    yield near(
        f"{direction}: at the position where the models part alone, resid_post of the last block",
        float(found[:, -1].mean() / d.mean()),
        1,
        late.within,
    )
    yield at_most(
        f"{direction}: the same at every block, how far from whole passes, in nats", (found - again).abs().max(), 10 * late.within
    )


def _gradients(late: Late, direction: str) -> Iterator[Check]:
    """Gradients over the answers say what small steps along the same patches do, and that the first two tokens have nothing to be patched."""
    own, other = labels.sides(direction)
    sites = [Site(layer, "resid_post") for layer in range(late.n_layers)]
    change = {site: late.states(other, "resid_post")[site.layer] - late.states(own, "resid_post")[site.layer] for site in sites}
    weights = over_places(late.clean, [N_TOKENS] * len(late.prompts))
    subject, ends = late.subject(own), []
    push = {site: torch.zeros_like(moved) for site, moved in change.items()}
    objective = partial(torch.einsum, "rpv,rv->rp")
    (found,) = gradients(subject.model, replay, subject.cleans, [push], lambda logits: objective(logits, weights), answers=late.answers)
    estimates = [(found[site] * change[site]).sum((-2, -1)) for site in sites]
    for sign in (STEP, -STEP):
        moved = subject.logits([{site: Write(value=sign * change[site], add=True)} for site in sites])
        ends.append(objective(moved[:, 1:].double(), weights.double()).unflatten(0, (-1, N_TOKENS)).sum(1))
    slopes = ((ends[0] - ends[1]) / (2 * STEP)).T
    size = slopes.abs().mean()
    missed = [(estimate - slope).abs().mean() / size for estimate, slope in zip(estimates, slopes, strict=True)]
    yield above(f"{direction}: mean size of what gradients attribute to resid_post over the answers, logits", size, 1e-2)
    yield at_most(f"{direction}: how far from small steps of the same patches, as a part of that, every block", max(missed), 0.02)
    early = max((found[site] * change[site]).sum(-1)[:, :LATE].abs().max() for site in sites)
    yield at_most(f"{direction}: attributed to the positions before the change, logits", early, 1e-6)


def _halves(late: Late) -> Iterator[Check]:
    """What an embedding changes comes out of the lower half, at every split point."""
    runs: dict[str, torch.Tensor] = {}
    for arm, own, other in (("bt", "tuned", "base"), ("tb", "base", "tuned")):
        found = factorial.crossed(late.subject(own), range(late.n_layers), late.states(other, "resid_post"), late.clean)
        runs[arm] = found["kl_tuned_answer_nats"][1:].mean(1) / late.total
    nothing = torch.zeros_like(runs["bt"])
    effects = factorial.effects(*(-run[:, None] for run in (nothing + 1, runs["bt"], runs["tb"], nothing)))
    for effect, share in (("upstream_effect", 1), ("downstream_effect", 0), ("interaction", 0)):
        yield near(
            f"{effect.replace('_', ' ')} over the answers, a share of D, every block",
            effects[effect].flatten().tolist(),
            share,
            late.within,
        )


def _planted(bench: Bench) -> Late:
    base = wrap(bench.net, side="base", ref="planted base")
    prompts, answers, late = _apart(base, bench)

    def change(net: edits.Net) -> None:
        noise = torch.Generator().manual_seed(0)
        weight = net.get_input_embeddings().weight
        weight[late] += torch.randn(len(late), weight.shape[1], generator=noise) * weight.std()

    models = {"base": base, "tuned": wrap(edited(bench.net, change), side="tuned", ref="planted tuned")}
    return _read(models, prompts, answers, bench)


def _read(models: dict[str, Model], prompts: list[list[int]], answers: list[list[int]], bench: Bench) -> Late:
    base = models["base"]
    whole = [[*ids, *said[:-1]] for ids, said in zip(prompts, answers, strict=True)]
    places = [range(len(ids) - 1, len(both)) for ids, both in zip(prompts, whole, strict=True)]
    sites = [Site(layer, kind) for layer in range(base.shape.n_layers) for kind in ("resid_post", "mlp_out", "z") if kind in base.kinds()]
    seen = {side: captures(model, whole, sites, places, every=True) for side, model in models.items()}
    base_logits, tuned_logits = (torch.cat([one.logits for one in seen[side]]) for side in ("base", "tuned"))
    return Late(
        models=models, prompts=prompts, answers=answers, seen=seen, clean=CleanLogits(base=base_logits, tuned=tuned_logits),
        total=float(kl_nats(tuned_logits, base_logits).mean()), within=10 * bench.rounding + 1e-6,
    )  # fmt: skip


def _apart(base: Model, bench: Bench) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """Prompts, the base's greedy answers, and these answers' second tokens, none of which is read before it is said."""
    said = speak(base, replay, bench.prompts, Speech(max_tokens=N_TOKENS, stop=()))
    kept: list[int] = []
    for i, (ids, answer) in enumerate(zip(bench.prompts, said, strict=True)):
        late = {int(said[j][LATE]) for j in [*kept, i]}
        before = {token for j in [*kept, i] for token in [*bench.prompts[j], *said[j][:LATE].tolist()]}
        if len(answer) == N_TOKENS and len(ids) > 1 and not late & before and len(kept) < bench.n_prompts:
            kept.append(i)
    prompts, answers = [list(bench.prompts[i]) for i in kept], [said[i].tolist() for i in kept]
    return prompts, answers, sorted({answer[LATE] for answer in answers})
