"""Can directions of the change switch it on or off?

Directions of the base-to-tuned difference are added, amplified, removed and exchanged; what does that do elsewhere?

With the directions of subspaces.py at one site (U_k orthonormal, P_k = U_k U_k', m the mean difference, mu_b the base's mean activation) and h the
state of the model that runs:

    add          h + s m                        the base runs: does the mean difference make it behave like the tuned model?
    amplify      h + s P_k (h - mu_b)           the tuned model runs: further from the base's mean along these directions
    ablate       h - P_k (h - mu_b)             the tuned model runs: without the change along these directions (amplify at s = -1)
    interchange  h + P_k (h_other - h)          either model runs, with the other one's coordinates in the subspace and its own elsewhere

s = 0 changes nothing. `amplify` at s = 1 doubles how far h lies from mu_b along P_k: the change, and with it how the base itself varies there.
`ablate` is its inverse in direction; ablation to 0 (Arditi 2024, arXiv 2406.11717) would take the base's own mean off too, and is other damage. For
small s every KL from the unedited run grows as s squared. `interchange` with as many directions as the site is wide is the full patch of
patching.py; the mean difference added at the last prompt token is its condition `shift` where the running model's states differ by just that.

**Effect**: the metrics of outcome.py, edited at the last prompt token; at `all_pos`, every token of the prompt is read under the edit, as it would
be if the model spoke that way. As a share of the way to the other model, 1 - kl_other / (kl_other of the unedited run): where the base runs 1 -
KL(p_tuned || run)/D (1: it behaves like the tuned model), where the tuned model runs 1 - KL(p_base || run)/KL(p_base || p_tuned) (1: like the
base). Any damage has a large kl_own; only an edit along the change has a large share of the way.

**Side effects**, on unrelated prompts and always at all positions, from each prompt's own tokens (what all prompts open with, the template, is read
under the edit too, and not counted); means over these positions:

    side_kl_nats                   KL(clean || steered) of the next-token distribution; 0: nothing changed
    side_top1_same                 share of positions whose top token is the same; 1: nothing changed
    side_log_perplexity_ratio_nats log p_clean - log p_steered of the token that comes next; its exp is the ratio of perplexities: over 0, worse

The **frontier** holds effect against side effect: a direction is of use where it gains much of D and moves unrelated prompts little.

**Controls**: `random_vector` (as long as m), `random_subspace` (as many dimensions; what it writes is stretched, state by state, to the length of
what U_k writes): of the same size, at the same strength and positions. `label_swap` (m of exchanged names) comes as long as chance makes it: it
says how long a mean would be by chance, and is no control of a direction.

**The test.** Two questions, fixed before anything is seen: does `add` make the base behave like the tuned model, and does `ablate` make the tuned
model behave like the base? The dose of each (the strength of one, the dimensions of the other) is the largest that unrelated prompts allow
(doses.py): no effect is looked at to choose it. Then `TEST_DRAWS` random directions of exactly that dose are run on the test prompts. p = (1 +
draws that go as far) / (1 + draws), corrected for two questions. A random direction passes in 5 % of studies, however small D.

When it misleads: ablation can wake what was silent (Makelov 2023, arXiv 2311.17030), so hold an interchange beside it; a vector that works at one
strength fails at a larger one because every state there is foreign, which the side effects show; and a change that fires on every prompt has side
effects that are the change itself.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import polars as pl
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from mechdiff import labels
from mechdiff.architectures.sites import Site
from mechdiff.engine.counterfactuals import chunks
from mechdiff.engine.distributions import kl_nats, top1_same
from mechdiff.engine.outcome import CleanLogits, outcomes
from mechdiff.engine.replay import Variant, Write
from mechdiff.engine.steered import opening, steered
from mechdiff.measures.steering.subspaces import Subspace, random_basis, random_vector
from mechdiff.models.pair import Model
from mechdiff.prompts.vocabularies import Tokens
from mechdiff.rows import empty, rows

RANKS = (1, 2, 4, 8)
ARMS = {"base<-base": ("add",), "tuned<-tuned": ("amplify", "ablate"), "base<-tuned": ("interchange",), "tuned<-base": ("interchange",)}
"""By direction: the model that runs, and whose states are written."""
TEST_DRAWS = 39
"""Random directions that a dose is held against: the fewest that can reach p = 0.025, the level of the better of two questions."""
SIDE_METRICS = ("side_kl_nats", "side_top1_same", "side_log_perplexity_ratio_nats")


@dataclass(frozen=True, kw_only=True)
class Push:
    """What an edit adds to a state h: offset + gain U U' h, or as much in another direction."""

    offset: Float64[Tensor, "*prompt d"]
    basis: Float64[Tensor, "d rank"]
    gain: float = 0.0
    length_of: "Push | None" = None
    """Stretched, state by state, to the length of what this one adds."""

    def __call__(self, states: Float64[Tensor, "*row d"]) -> Float64[Tensor, "*row d"]:
        offset, basis = self.offset.to(states.device), self.basis.to(states.device)
        added = offset + self.gain * (states @ basis) @ basis.T
        if self.length_of is None:
            return added.expand_as(states)
        tiny = torch.finfo(added.dtype).tiny
        return added * (self.length_of(states).norm(dim=-1, keepdim=True) / added.norm(dim=-1, keepdim=True).clamp(min=tiny))


def add(vector: Float64[Tensor, " d"], strength: float = 1.0) -> Push:
    return Push(offset=strength * vector, basis=vector.new_zeros(len(vector), 0))


def amplify(basis: Float64[Tensor, "d rank"], origin: Float64[Tensor, " d"], strength: float = 1.0) -> Push:
    return Push(offset=-strength * (origin @ basis) @ basis.T, basis=basis, gain=strength)


def ablate(basis: Float64[Tensor, "d rank"], origin: Float64[Tensor, " d"] | None = None) -> Push:
    """To the coordinates that `origin` has in the subspace; without one to 0, as directional ablation has it (Arditi 2024, arXiv 2406.11717)."""
    return amplify(basis, basis.new_zeros(len(basis)) if origin is None else origin, -1.0)


def interchange(basis: Float64[Tensor, "d rank"], other: Float[Tensor, "prompt d"]) -> Push:
    return Push(offset=(other.double() @ basis) @ basis.T, basis=basis, gain=-1.0)


# ---- the edits of one place --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One edit at one site, or at neighbouring layers, and what its rows are called."""

    pushes: Mapping[Site, Push]
    arm: str
    rank: int
    strength: float | None = None
    control: str | None = None

    def label(self, *, all_positions: bool = False) -> dict[str, str | int | float | None]:
        """Its key columns; a window of layers is named by its lowest."""
        first, width = min(self.pushes), len(self.pushes)
        return {
            "layer": first.layer, "site": first.kind, "arm": self.arm, "rank": self.rank, "strength": self.strength, "control": self.control,
            "unit": labels.window_unit(width, "all" if all_positions else "decision"),
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Place:
    """One site kind at one layer, or a window of layers, with what the edits there are made of."""

    kind: str
    subspaces: Mapping[int, Subspace]
    """By layer."""
    swapped: Mapping[int, Sequence[Tensor]] = field(default_factory=dict)
    """By layer: means of exchanged names, one a draw."""
    others: Mapping[int, Tensor] = field(default_factory=dict)
    """By layer: the other model's states `[prompt, d]`, for interchange."""

    @property
    def rank(self) -> int:
        return min(one.rank for one in self.subspaces.values())

    @property
    def width(self) -> int:
        return next(iter(self.subspaces.values())).basis.shape[0]


def edits(place: Place, direction: str, *, strengths: Sequence[float], draws: int, seed: int, ranks: Sequence[int] = RANKS) -> list[Edit]:
    """Every edit of a direction at one place. Without directions there (two models with the same states), one that adds nothing."""
    if direction == "base<-base":
        return list(_additions(place, strengths, draws, seed))
    return [edit for arm in ARMS[direction] for edit in _projections(place, arm, strengths, draws, seed, ranks)]


def _additions(place: Place, strengths: Sequence[float], draws: int, seed: int) -> Iterator[Edit]:
    """The mean difference at every strength; random and label-swapped vectors at 1."""

    def edit(vectors: Mapping[int, Tensor], strength: float = 1.0, control: str | None = None) -> Edit:
        pushes = {Site(layer, place.kind): add(vector, strength) for layer, vector in vectors.items()}
        rank = int(any(vector.any() for vector in vectors.values()))
        return Edit(pushes=pushes, arm="add", rank=rank, strength=None if strength == 1 else strength, control=control)

    means = {layer: one.mean for layer, one in place.subspaces.items()}
    if not any(mean.any() for mean in means.values()):
        yield edit(means)
        return
    yield from (edit(means, strength) for strength in sorted({1.0, *strengths}))
    for draw in range(draws):
        random = {layer: random_vector(mean, seed=_seed(seed, layer, draw)) for layer, mean in means.items()}
        yield edit(random, control=labels.draw("random_vector", draw))
        if place.swapped:
            yield edit({layer: place.swapped[layer][draw] for layer in means}, control=labels.draw("label_swap", draw))


def _projections(place: Place, arm: str, strengths: Sequence[float], draws: int, seed: int, ranks: Sequence[int]) -> Iterator[Edit]:
    """An arm in every U_k, and in random subspaces of as many dimensions."""
    kept = [k for k in ranks if k <= place.rank]
    for k in kept:
        real = {layer: one.leading(k) for layer, one in place.subspaces.items()}
        for strength in sorted({1.0, *strengths}) if arm == "amplify" else (1.0,):
            pushes = {Site(layer, place.kind): _push(place, arm, layer, basis, strength) for layer, basis in real.items()}
            yield Edit(pushes=pushes, arm=arm, rank=k, strength=None if strength == 1 else strength)
        yield from (_at_random(place, arm, k, 1.0, draw, seed) for draw in range(draws))


def _at_random(place: Place, arm: str, k: int, strength: float, draw: int, seed: int) -> Edit:
    """A projection arm in a random subspace; it writes, state by state, as much as the real one does."""
    pushes = {}
    for layer, one in place.subspaces.items():
        random = _push(place, arm, layer, random_basis(place.width, k, seed=_seed(seed, layer, draw)), strength)
        pushes[Site(layer, place.kind)] = replace(random, length_of=_push(place, arm, layer, one.leading(k), strength))
    return Edit(pushes=pushes, arm=arm, rank=k, strength=None if strength == 1 else strength, control=labels.draw("random_subspace", draw))


def random_edits(place: Place, arm: str, rank: int, strength: float | None, *, draws: int, seed: int) -> list[Edit]:
    """`draws` random directions of exactly this dose: for `add` vectors as long as the mean difference, for the others subspaces of this rank."""
    dose = 1.0 if strength is None else strength
    if arm != "add":
        return [_at_random(place, arm, rank, dose, draw, seed) for draw in range(draws)]
    found = []
    for draw in range(draws):
        vectors = {layer: random_vector(one.mean, seed=_seed(seed, layer, draw)) for layer, one in place.subspaces.items()}
        pushes = {Site(layer, place.kind): add(vector, dose) for layer, vector in vectors.items()}
        found.append(Edit(pushes=pushes, arm=arm, rank=rank, strength=strength, control=labels.draw("random_vector", draw)))
    return found


def _push(place: Place, arm: str, layer: int, basis: Float64[Tensor, "d rank"], strength: float) -> Push:
    origin = place.subspaces[layer].origin
    if arm == "amplify":
        return amplify(basis, origin, strength)
    return ablate(basis, origin) if arm == "ablate" else interchange(basis, place.others[layer])


def _seed(seed: int, layer: int, draw: int) -> int:
    return (seed * 1009 + layer) * 1009 + draw


def at_the_decision(edit: Edit, own: Mapping[int, Float[Tensor, "prompt d"]]) -> Variant:
    """The edit as replay writes it, on prompts whose states in the running model are `own`, by layer. For one layer: in a window the second
    layer's state is not the clean one."""
    assert len(edit.pushes) == 1 or edit.arm == "add"
    return {site: Write(value=push(own[site.layer].double()).to(own[site.layer])[:, None], add=True) for site, push in edit.pushes.items()}


def few(every: Sequence[Edit]) -> list[Edit]:
    """The edits that are worth a run over whole sequences: no controls, and one strength of what has several ranks."""

    def worth(edit: Edit) -> bool:
        return edit.rank > 0 and edit.control is None and (edit.arm == "add" or edit.strength is None or edit.rank == 1)

    return [edit for edit in every if worth(edit)]


# ---- whole sequences ---------------------------------------------------------------------------------------------------------------


def side_effects(
    clean: Float[Tensor, "pos vocab"], edited: Float[Tensor, "variant pos vocab"], ids: Int[Tensor, " pos"]
) -> dict[str, Float64[Tensor, " variant"]]:
    """The three side effects of each variant on one prompt, whose tokens at these positions are `ids`; of one token, no perplexity."""
    found = {
        "side_kl_nats": kl_nats(clean[:, None], edited.transpose(0, 1)).mean(0),
        "side_top1_same": top1_same(clean[None], edited).double().mean(-1).cpu(),
    }
    if len(ids) > 1:
        said = ids[1:].to(clean.device)

        def surprise(logits: Tensor) -> Tensor:
            """-log p of what is said next, `[*variant, pos - 1]`."""
            before = logits[..., :-1, :]
            return (before.logsumexp(-1) - before.gather(-1, said.expand(before.shape[:-1])[..., None])[..., 0]).double()

        found["side_log_perplexity_ratio_nats"] = (surprise(edited) - surprise(clean)).mean(-1).cpu()
    return found


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A model, and the prompts that it reads from end to end under edits."""

    model: Model
    prompts: Mapping[str, Int[Tensor, " pos"]]
    """By id."""
    tokens: Tokens
    max_rows: int
    """Tokens of a pass, about."""

    @property
    def ids(self) -> list[Int[Tensor, " pos"]]:
        return list(self.prompts.values())

    def parts(self, every: Sequence[Edit]) -> Iterator[Sequence[Edit]]:
        """So many edits at a time as a pass has room for."""
        return (every[part] for part in chunks(len(every), max(1, self.max_rows // max(map(len, self.ids)) - 1)))


def measure_side_effects(reader: Reader, every: Sequence[Edit], columns: Mapping[str, str | None]) -> pl.DataFrame:
    """Rows of the side effects of each edit, at all positions of each neutral prompt."""
    model, ids, frames = reader.model, reader.ids, [empty()]
    n_shared = opening(model.config, ids)
    for part in reader.parts(every):
        named = [edit.label(all_positions=True) for edit in part]
        for name, one, logits in zip(reader.prompts, ids, steered(model, ids, [edit.pushes for edit in part]), strict=True):
            laws = reader.tokens.place(logits, model.side)
            said = reader.tokens.listed(model.side, one[n_shared:])
            for metric, values in side_effects(laws[0], laws[1:], said).items():
                frames.append(_frame(values, named, metric=metric, prompt=name, measure="steering", **columns))
    return pl.concat(frames)


def measure_effects(
    reader: Reader, every: Sequence[Edit], clean: CleanLogits, columns: Mapping[str, str | None], *, all_positions: bool = True
) -> pl.DataFrame:
    """Rows of every metric of outcome.py on prompts that are read under each edit, at all positions or at the last one alone."""
    side, frames = reader.model.side, [empty()]
    for part in reader.parts(every):
        named = [edit.label(all_positions=all_positions) for edit in part]
        runs = steered(reader.model, reader.ids, [edit.pushes for edit in part], whole=False, last_only=not all_positions)
        logits = reader.tokens.place(torch.stack([found[1:, -1] for found in runs]), side)
        for metric, values in outcomes(logits, clean, side).items():
            for name, row in zip(reader.prompts, values, strict=True):
                frames.append(_frame(row, named, metric=metric, prompt=name, measure="steering", **columns))
    return pl.concat(frames)


def _frame(values: Tensor, named: Sequence[Mapping[str, object]], **columns: str | None) -> pl.DataFrame:
    return rows(values.numpy(), **{name: [label[name] for label in named] for name in named[0]}, **columns)
