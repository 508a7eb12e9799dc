"""What changed between two models, tensor by tensor? Both are streamed from their files in the order of computation.

    for change in open_changes(base, tuned):
        change.name, change.layer, change.site, change.delta()

A full model's change is the difference of two stored tensors; an adapter's are its exact low-rank factors; what nothing touched costs no read
of the tuned side. Where the two models do not fit, `statements` says what was left out and why: nothing is compared silently.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mechdiff.architectures.families import Family
from mechdiff.errors import ModelError
from mechdiff.models.adapters import AdaptedTensors, Factors, open_adapter
from mechdiff.models.sources import Source
from mechdiff.models.tensors import TensorFiles, open_tensors, place, reading_order
from mechdiff.prompts.vocabularies import Tokens

_CHUNK = 1 << 24
"""Entries that are squared at a time, in float64."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One tensor of both models; a matrix is [d_out, d_in]."""

    name: str
    layer: int | None
    site: str | None
    """A place of tensors.SITES; None where the family's row does not tell."""
    base: Shaped[Tensor, "..."]
    """In the dtype of the file."""
    tuned: Shaped[Tensor, "..."] | None
    """In the dtype of the file; None: base plus `factors`, or the same as base where there are none."""
    factors: Factors | None = None
    partly: bool = False
    """Only the rows that both models have are here, by what their tokens stand for."""

    @property
    def untouched(self) -> bool:
        """Known to be unchanged without a look at the weights (an adapter leaves this tensor alone)."""
        return self.tuned is None and self.factors is None

    def delta(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "..."]:
        """tuned - base: the subtraction is done in `dtype` (exact in float64), or in float64 where a side is that, or there are factors."""
        if self.tuned is None:
            return self.factors.product() if self.factors else torch.zeros(self.base.shape)
        return self.tuned.to(torch.promote_types(dtype, self.tuned.dtype)) - self.base.to(torch.promote_types(dtype, self.base.dtype))

    def after(self) -> Float[Tensor, "..."]:
        """The tuned tensor, in float32 or wider."""
        return _wide(self.base if self.untouched else self.base + self.delta() if self.tuned is None else self.tuned)

    def squared_size(self) -> float:
        """||W_base||_F^2, summed in float64."""
        return self._finite(squared(self.base))

    def squared_change(self) -> float:
        """||W_tuned - W_base||_F^2, summed in float64."""
        if self.untouched:
            return 0.0
        return self._finite(self.factors.squared_norm() if self.factors else squared(self.delta()))

    def changed_share(self) -> float:
        """Share of the entries that are not equal; of factors, that their product moves."""
        if self.untouched:
            return 0.0
        if self.factors:
            rows, columns = self.factors.left.any(1), self.factors.right.any(0)
            return float(rows.double().mean() * columns.double().mean())
        return float(self.delta().count_nonzero()) / max(1, self.base.numel())

    def _finite(self, value: float) -> float:
        if not math.isfinite(value):
            raise ModelError(
                f"the tensor {self.name} holds NaN or infinite weights in base or tuned, so every number of it would be. Mend the file."
            )
        return value


def squared(tensor: Shaped[Tensor, "..."]) -> float:
    """The sum of squares, in float64, a chunk at a time."""
    return sum(float(chunk.double().square().sum()) for chunk in tensor.reshape(-1).split(_CHUNK))


def _wide(tensor: Shaped[Tensor, "..."]) -> Float[Tensor, "..."]:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


# ---- the pair ----------------------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Changes:
    """All changes of a pair, read when iterated over. What the pair does not share is listed by name."""

    base: TensorFiles
    tuned: TensorFiles | AdaptedTensors
    names: list[str]
    """Tensors that are compared, in the order of computation."""
    places: dict[str, tuple[int | None, str]]
    only_base: list[str]
    only_tuned: list[str]
    reshaped: list[str]
    """Tensors that both have in other shapes; those with more or fewer rows (a larger vocabulary) are compared in the shared ones."""
    uncompared: list[str] = field(default_factory=list)
    """Tensors of which nothing is compared: held in a form that is not read, or of other shapes, or changed by an adapter that is not read."""
    rows: dict[str, Tensor] | None = None
    """Side -> the rows of embedding and unembedding that stand for the same tokens; None: the first ones, as many as both have."""
    statements: list[str] = field(default_factory=list)
    """What is not compared, or not as one would think, and why: sentences for the record."""

    @property
    def family(self) -> Family | None:
        return self.base.family

    def __iter__(self) -> Iterator[Change]:
        return map(self.change, self.names)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    @property
    def tied(self) -> bool:
        """Whether the unembedding is the embedding in both models, one unit `embed`."""
        return self.base.tied and self.tuned.tied

    def touched(self) -> list[tuple[int | None, str]]:
        """(block, site) of all that may have changed, in the order of computation: what an adapter holds something for, else everything."""
        tuned = self.tuned
        adapted = isinstance(tuned, AdaptedTensors) and tuned.base is self.base
        names = [name for name in self.names if not adapted or tuned.changes(name)]  # type: ignore[union-attr]
        return list(dict.fromkeys(self.places[name] for name in names if name in self.places))

    def change(self, name: str) -> Change:
        """The change of one of `names`. ModelError where a file is broken."""
        layer, site = self.places.get(name, (None, None))
        base = self.base.read(name)
        if isinstance(self.tuned, AdaptedTensors) and self.tuned.base is self.base:
            touched = self.tuned.changes(name)
            factors = self.tuned.factors(name)
            tuned = self.tuned.read(name) if touched and factors is None else None
        else:
            factors, tuned = None, self.tuned.read(name)
        partly = tuned is not None and (tuned.shape != base.shape or self._by_token(name))
        if tuned is not None and partly:
            rows = self.rows or dict.fromkeys(("base", "tuned"), torch.arange(min(len(base), len(tuned))))
            base, tuned = base[rows["base"]], tuned[rows["tuned"]]
        return Change(name=name, layer=layer, site=site, base=base, tuned=tuned, factors=factors, partly=partly)

    def _by_token(self, name: str) -> bool:
        """Whether a tensor has a row for each token, and these are matched by what the tokens stand for."""
        return self.rows is not None and name in (self.base.embed, self.base.head)


def open_changes(base: Source, tuned: Source, tokens: Tokens | None = None) -> Changes:
    """The changes from base to tuned; only the files' tables of contents are read yet. ModelError: a file is broken or missing.

    `tokens`: where the vocabularies differ, embedding and unembedding are compared in the rows of the same tokens.
    """
    ours = open_tensors(Path(base.load))
    if tuned.adapter is None:
        return changes_between(ours, open_tensors(Path(tuned.load)).named_as(ours.family), tokens)
    adapted = open_adapter(tuned.adapter, ours if tuned.load == base.load else open_tensors(Path(tuned.load)))
    return changes_between(ours, adapted, tokens)


def changes_between(ours: TensorFiles, theirs: TensorFiles | AdaptedTensors, tokens: Tokens | None = None) -> Changes:
    """Which tensors of two models can be compared, and what is to be said of the others."""
    refused = theirs.refused if isinstance(theirs, AdaptedTensors) else None
    our_names, their_names, statements = _with_heads(ours, theirs)
    common = our_names & their_names if refused is None else set()
    reshaped = {name for name in common if ours.shape(name) != theirs.shape(name)}
    sharing = {name for name in reshaped if _shares_rows(name, ours, theirs)}
    coded = {name for name in common if not (ours.is_float(name) and theirs.is_float(name))}
    compared = common - (reshaped - sharing) - coded
    family = ours.family
    found = {name: place(name, family, len(ours.shape(name))) for name in compared} if family else {}
    places = {name: where for name, where in found.items() if where}
    changes = Changes(
        base=ours,
        tuned=theirs,
        names=reading_order(compared, places),
        places=places,
        only_base=sorted(our_names - their_names),
        only_tuned=sorted(their_names - our_names),
        reshaped=sorted(reshaped),
        uncompared=sorted((our_names & their_names) - compared),
        rows=None
        if tokens is None or tokens.equal
        else {side: torch.from_numpy(ids[: tokens.n_shared]) for side, ids in tokens.ids.items()},
    )
    if isinstance(theirs, AdaptedTensors) and refused:
        way = "Where peft can, merge it and give the full model as tuned"
        both = "Merged it would be another model, for peft adds a change of the tied embedding to the unembedding too"
        statements.append(f"this adapter {refused}: its change is not compared. {both if theirs.merges_into_both else way}")
    if coded:
        statements.append(
            f"{len(coded)} tensors are quantised (no plain floating-point weights), the first {min(coded)}; not compared. Dequantise the model"
        )
    changes.statements = statements + _said_of(changes, sharing)
    return changes


def _with_heads(ours: TensorFiles, theirs: TensorFiles | AdaptedTensors) -> tuple[set[str], set[str], list[str]]:
    """The names of both sides; where one side alone ties its unembedding, that side has it as the embedding."""
    if ours.tied and theirs.tied:
        return ours.names, theirs.names, ["the unembedding is the embedding (tied): compared once, as the embedding"]
    if ours.tied == theirs.tied or ours.head != theirs.head:
        return ours.names, theirs.names, []
    tied, other = ("base", "tuned") if ours.tied else ("tuned", "base")
    said = f"the unembedding is the embedding (tied) in the {tied} model alone: the {other} model's own is compared with that embedding"
    return ours.names | {ours.head}, theirs.names | {theirs.head}, [said]


def _shares_rows(name: str, ours: TensorFiles, theirs: TensorFiles | AdaptedTensors) -> bool:
    before, after = ours.shape(name), theirs.shape(name)
    return name in (ours.embed, ours.head) and len(before) == len(after) == 2 and before[1] == after[1]


def _said_of(changes: Changes, sharing: set[str]) -> list[str]:
    ours, theirs = changes.base, changes.tuned
    if changes.rows:
        matched = f"the {len(changes.rows['base'])} rows of the same tokens are compared, matched by the bytes they stand for"
        sharing = {name for name in (ours.embed, ours.head) if name in changes.names}
    else:
        matched = "the shared first rows are compared"
    said = [f"{name}: {ours.shape(name)[0]} rows in base, {theirs.shape(name)[0]} in tuned; {matched}" for name in sorted(sharing)]
    said += [f"{name}: shape {ours.shape(name)} in base, {theirs.shape(name)} in tuned; not compared"
             for name in changes.reshaped if name not in sharing]  # fmt: skip
    for names, side in ((changes.only_base, "base"), (changes.only_tuned, "tuned")):
        if names:
            said.append(f"{len(names)} tensors are only in {side}, the first {names[0]}")
    if not ours.names or not theirs.names:
        side = "base" if not ours.names else "tuned"
        said.append(f"the {side} model has no files of weights, so none are compared")
    for files, side in ((ours, "base"), (theirs, "tuned")):
        stored = files.stored if isinstance(files, TensorFiles) else {}
        if isinstance(files, TensorFiles) and files.says_tied and files.head in stored and files.embed in stored:
            said.append(
                f"the config of {side} says that the unembedding is the embedding (tied), and its files hold another: transformers runs that one, "
                "and it is compared"
            )
        for codes in sorted({one.codes for one in stored.values() if one.codes}):
            n = sum(one.codes == codes for one in stored.values())
            said.append(f"{n} tensors of {side} are held as {codes} and compared as the numbers that they stand for")
    unread = changes.family.unread if changes.family else ()
    unplaced = [name for name in changes.names if name not in changes.places] if changes.family else []
    beyond = [name for name in unplaced if name.startswith(tuple(f"{path}." for path in unread))]
    if beyond:
        said.append(
            f"{len(beyond)} tensors are of what text does not reach ({', '.join(unread)}): they are compared, and in no part of the network"
        )
    if unplaced := [name for name in unplaced if name not in beyond]:
        said.append(f"{len(unplaced)} tensors stand in no part of the network that mechdiff knows, the first {unplaced[0]}")
    return said
