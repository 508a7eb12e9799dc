"""A chunk's texts are read by both models: of each text its numbers, of all tokens counts, of each direction where a text holds it most."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechdiff.engine.grafts import Batch, batches, logits_at
from mechdiff.errors import StudyError
from mechdiff.models.pair import SIDES, Model
from mechdiff.rows import empty
from mechdiff.scanning import directions, quantiles
from mechdiff.scanning.corpus import Read, Scan
from mechdiff.scanning.directions import Place, Spread
from mechdiff.scanning.tokens import Numbers, apart, head_of, last_states, of_whole_logits, placed
from mechdiff.store.run_folder import RunFolder, cell_hash
from mechdiff.study.cells import Cell

COUNTED = ("kl_tuned_base", "kl_base_tuned")
PASS, PADDING = {"cpu": 384}, 24
"""Tokens of a pass, where the engine's own number is not the best, and of them padding: what a block makes of so few stays in the cache."""
NOT_FINITE = "a model's logits there are NaN or infinite"
OF_A_TEXT = (
    "kl_tuned_base", "kl_base_tuned", "kl_max", "kl_max_at", "loss_base", "loss_tuned", "loss_change_max", "loss_change_max_at", "top1_same",
    "mass_own_base", "mass_own_tuned",
)  # fmt: skip


def compute(scan: Scan, folder: RunFolder, cell: Cell) -> None:
    """Puts the directions, or a chunk's numbers, into the store."""
    if cell.stage == "directions":
        tensors, notes, name = *_directions(scan), "directions"
    else:
        number = cell.key["number"]
        tensors, notes = chunk(scan, number, load_places(scan, folder))
        name = f"chunk {number}"
    folder.store(cell.key, empty(), tensors, notes=notes)
    folder.log("computed", cell=name, name=cell_hash(cell.key)[:12])


# ---- directions --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Aimed:
    """A place with the random directions that its own are held against."""

    place: Place
    random: Tensor

    @property
    def vectors(self) -> Tensor:
        return torch.cat([self.place.vectors, self.random])


def load_places(scan: Scan, folder: RunFolder) -> list[Aimed]:
    """Those of the finished cell."""
    cell = folder.load(scan.directions.key)
    return [
        Aimed(
            place=Place(
                what=one["what"], end=one["end"], names=tuple(one["names"]), vectors=torch.from_numpy(cell.tensors[f"{i}/vectors"])
            ),
            random=torch.from_numpy(cell.tensors[f"{i}/random"]),
        )
        for i, one in enumerate(cell.record["notes"]["places"])
    ]


def _directions(scan: Scan) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The places, and random directions of the base's states there on the first texts."""
    at, said = directions.places(scan.pair, matrices=scan.asked.matrices, vectors=scan.asked.vectors)
    states: dict[int, list[Tensor]] = {}
    with scan.pair.use("base") as model:
        for group in _groups(scan, model, [one for one in scan.read(scan.texts.of(0)) if one.scored]) if at else ():
            batch = _asked(model, group, "base", _states_of(group, "base"))
            with directions.reading(model, at, batch) as found:
                last_states(model, placed(batch, [(0, 0)]))
            for number, here in found.items():
                states.setdefault(number, []).append(here[here.isfinite().all(-1)].cpu())
            if sum(map(len, next(iter(states.values()), []))) >= directions.STATES:
                break
    enough = {number for number, parts in states.items() if sum(map(len, parts)) > directions.OF_STATES}
    kept = [number for number in sorted(enough) if at[number].vectors.shape[1] == states[number][0].shape[1]]
    nowhere = (
        "is read nowhere: the first chunk has too few tokens, the network has no such layer, it does not see every token, or it gives more than one "
        "tensor"
    )
    n = directions.how_many([at[number] for number in kept])
    said += [f"{one.what} {nowhere}" for i, one in enumerate(at) if i not in kept]
    tensors: dict[str, np.ndarray] = {}
    for i, number in enumerate(kept):
        random = directions.random_directions(torch.cat(states[number])[: directions.STATES], n, seed=i)
        tensors |= {f"{i}/vectors": at[number].vectors.numpy(), f"{i}/random": random.numpy()}
    return tensors, {"places": [at[number].told() for number in kept], "said": said}


# ---- a chunk -----------------------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Kept:
    """What a chunk leaves."""

    texts: dict[int, dict[str, float]] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """The id of a text, and why it has no numbers."""
    counts: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    cos: dict[int, dict[int, tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict)
    """By place and text: the largest cosine along each direction and its opposite, `[2, direction]`, and at which token."""


def chunk(scan: Scan, number: int, at: Sequence[Aimed]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Of one chunk the numbers of each text, counts and sums of all tokens, and cosines; and, for the record, ids and sums."""
    ones = scan.read(scan.texts.of(number))
    kept = _Kept(
        counts={name: quantiles.counted(np.zeros(0)) for name in COUNTED}, left_out=[(one.id, one.refused) for one in ones if one.refused]
    )
    for group, numbers in _numbers(scan, ones, at, kept):
        for one, here in zip(group, numbers, strict=True):
            if here.finite:
                kept.texts[one.number] = of_text(one, here)
            else:
                kept.left_out.append((one.id, NOT_FINITE))
                for held in kept.cos.values():
                    held.pop(one.number, None)
        if finite := [here for here in numbers if here.finite]:
            _add(kept, Numbers.of(finite))
    nothing = of_text(ones[0], None)
    table = {f"text/{name}": np.array([kept.texts.get(one.number, nothing)[name] for one in ones]) for name in nothing}
    counts = {f"{name}/{part}": values for name, found in kept.counts.items() for part, values in found.items()}
    notes = {"ids": [one.id for one in ones], "first": ones[0].number, "sums": kept.sums, "left_out": kept.left_out}
    return table | counts | _of_directions(kept, ones, at), notes


def of_text(one: Read, numbers: Numbers | None) -> dict[str, float]:
    """The row of one text: means over its scored tokens; the largest, and the token that the base had read there. NaN where none is scored."""
    n = len(one.scored)
    if numbers is None or not n:
        return {"n_tokens": 0.0, **dict.fromkeys(OF_A_TEXT, float("nan"))}
    change = numbers.loss_change
    largest, moved = int(numbers.kl_tuned_base.argmax()), int(change.abs().argmax())
    return {
        "n_tokens": float(n),
        "kl_tuned_base": float(numbers.kl_tuned_base.mean()), "kl_base_tuned": float(numbers.kl_base_tuned.mean()),
        "kl_max": float(numbers.kl_tuned_base[largest]), "kl_max_at": float(one.scored[largest][0]),
        "loss_base": float(numbers.loss_base.mean()), "loss_tuned": float(numbers.loss_tuned.mean()),
        "loss_change_max": float(change[moved]), "loss_change_max_at": float(one.scored[moved][0]),
        "top1_same": float(numbers.same.double().mean()),
        "mass_own_base": float(numbers.mass_own_base.mean()), "mass_own_tuned": float(numbers.mass_own_tuned.mean()),
    }  # fmt: skip


def _add(kept: _Kept, numbers: Numbers) -> None:
    """Counts and sums over tokens, of which none is kept."""
    for name in COUNTED:
        values = getattr(numbers, name).numpy()
        kept.counts[name] = quantiles.together(kept.counts[name], quantiles.counted(values))
        kept.sums[f"max_{name}"] = max(kept.sums.get(f"max_{name}", 0.0), float(values.max(initial=0.0)))
    dp = numbers.dp
    for name, values in (
        *((name, getattr(numbers, name)) for name in (*COUNTED, "loss_base", "loss_tuned", "mass_own_base", "mass_own_tuned")),
        ("dp", dp), ("dp_squared", dp.square()), ("same", numbers.same.double()), ("tokens", torch.ones_like(dp)),
    ):  # fmt: skip
        kept.sums[name] = kept.sums.get(name, 0.0) + float(values.sum())


def _of_directions(kept: _Kept, ones: Sequence[Read], at: Sequence[Aimed]) -> dict[str, np.ndarray]:
    """By place, of each text the cosines along its own directions; of random ones their spread over the texts."""
    found: dict[str, np.ndarray] = {}
    for i, one in enumerate(at):
        n, width = len(one.place.names), len(one.vectors)
        nowhere = np.full((2, width), np.nan, np.float32), np.full((2, width), -1, np.int32)
        cos, where = (np.stack(part) for part in zip(*(kept.cos.get(i, {}).get(text.number, nowhere) for text in ones), strict=True))
        spread = Spread.of(cos[~np.isnan(cos[:, 0, 0])][:, :, n:])
        found |= {f"{i}/cos": cos[:, :, :n], f"{i}/at": where[:, :, :n], f"{i}/random_n": np.array(spread.n)}
        found |= {f"{i}/random_{name}": getattr(spread, name) for name in ("total", "squares", "top")}
    return found


# ---- passes ------------------------------------------------------------------------------------------------------------------------


def _groups(scan: Scan, model: Model, ones: Sequence[Read]) -> Iterator[list[Read]]:
    """Texts of a pass, of about one length; each alone where the models want that, or where they cut it otherwise."""
    alike = [one for one in ones if one.alike]
    most = 1 if scan.alone or None in scan.heads.values() else PASS.get(model.device.type)
    for batch in batches(model, [one.ids["base"] for one in alike], most, padding=PADDING) if alike else ():
        yield [alike[row] for row in batch.rows]
    yield from ([one] for one in ones if not one.alike)


def _asked(model: Model, group: Sequence[Read], side: str, places: Sequence[Sequence[int]]) -> Batch:
    """One pass of these texts, asked at these positions of each, text by text in the order of the group."""
    (batch,) = batches(model, [one.ids[side] for one in group], 1 << 60)
    row_of = {row: place for place, row in enumerate(batch.rows)}
    return placed(batch, [(row_of[row], position) for row, positions in enumerate(places) for position in positions])


def _states_of(group: Sequence[Read], side: str) -> list[range]:
    """The positions of each text whose states are read: all but the first."""
    return [range(1, len(one.ids[side])) for one in group]


def _predicting(one: Read, side: str) -> range:
    """The positions of a text whose next token is known, from the first scored one on."""
    return range(one.pairs[0][int(side == "tuned")], len(one.ids[side]) - 1)


def _numbers(scan: Scan, ones: Sequence[Read], at: Sequence[Aimed], kept: _Kept) -> Iterator[tuple[list[Read], list[Numbers]]]:
    """Of each pass its texts and the numbers of each text; cosines of the tuned model's states go into `kept`.

    Where only one model fits into memory, one reads all before the other is there, and leaves its last states; the one that is there begins.
    """
    pair, ones = scan.pair, [one for one in ones if one.scored]
    one_at_a_time = pair.one_at_a_time and not pair.tuned.adapter  # an adapter's two models are one
    for side in SIDES if not scan.heads else ():
        with pair.use(side) as model:
            tiled = scan.tokens.equal and len(set(scan.rows.values())) == 1
            scan.heads[side] = head_of(model) if tiled else None
    order = pair.in_turn if one_at_a_time else SIDES
    with pair.use(order[0]) as model:
        groups = list(_groups(scan, model, ones))
    if one_at_a_time and any(_whole(scan, group) for group in groups):
        raise StudyError(
            "two vocabularies, two ways to cut a text, or logits that are more than a product are compared with both models in memory. "
            "Give --memory both, or a smaller --dtype."
        )
    for window in [groups] if one_at_a_time else [[group] for group in groups]:
        told: dict[str, list[Tensor]] = {}
        for side in order:
            with pair.use(side) as model:
                told[side] = [_seen(scan, model, group, at if side == "tuned" else (), kept) for group in window]
        for group, base, tuned in zip(window, told["base"], told["tuned"], strict=True):
            yield group, _held(scan, group, base, tuned)


def _whole(scan: Scan, group: Sequence[Read]) -> bool:
    """Whether whole logits are compared; else unembeddings are swept in tiles."""
    return None in scan.heads.values() or not all(one.alike for one in group)


def _seen(scan: Scan, model: Model, group: Sequence[Read], at: Sequence[Aimed], kept: _Kept) -> Tensor:
    """One pass: the last states, or the whole logits, wherever a token of the text follows."""
    side = model.side
    batch = _asked(model, group, side, [_predicting(one, side) for one in group])
    read = _states_of(group, side)
    with directions.reading(model, [one.place for one in at], _asked(model, group, side, read)) as found:
        told = logits_at(model, batch) if _whole(scan, group) else last_states(model, batch)
    for i, here in found.items():
        for one, cos in zip(group, directions.cosines(here, at[i].vectors).split([len(places) for places in read]), strict=True):
            (top, where), (low, below) = cos.max(0), cos.min(0)
            kept.cos.setdefault(i, {})[one.number] = (
                torch.stack([top, -low]).cpu().numpy(),
                of_base(one, torch.stack([where, below]).cpu().numpy() + 1).astype(np.int32),
            )
    return told


def of_base(one: Read, tuned: np.ndarray) -> np.ndarray:
    """For tokens of the tuned model the base's: the first one at whose end both have read the same, and that token with it."""
    base, ends = np.array(one.pairs).T
    return base[np.searchsorted(ends, tuned)]


def _held(scan: Scan, group: Sequence[Read], base: Tensor, tuned: Tensor) -> list[Numbers]:
    """The numbers of each text of a pass."""
    if _whole(scan, group):
        (one,) = group
        return [_of_logits(scan, one, base, tuned)]
    assert all(len(one.scored) == len(_predicting(one, "base")) for one in group), "texts that both cut alike have a number at every token"
    said = torch.tensor([one.ids["base"][place + 1] for one in group for place in _predicting(one, "base")], device=base.device)
    head_base, head_tuned = scan.heads["base"], scan.heads["tuned"]
    assert head_base is not None
    assert head_tuned is not None
    numbers = apart(base, tuned.to(base.device), (head_base, head_tuned), said)
    ends = np.cumsum([0, *(len(one.scored) for one in group)])
    return [numbers.at(slice(start, end)) for start, end in pairwise(ends)]


def _of_logits(scan: Scan, one: Read, base: Tensor, tuned: Tensor) -> Numbers:
    """Of whole logits wherever a token follows: divergences at scored tokens, and the loss of all that follows up to the next of them."""
    listed, losses = [], []
    for side, which, logits in (("base", 0, base), ("tuned", 1, tuned)):
        start = one.pairs[0][which]
        said = torch.tensor(one.ids[side][start + 1 :], device=logits.device)
        each = logits.logsumexp(-1).double() - logits.gather(-1, said[:, None])[:, 0].double()
        sums = torch.cat([each.new_zeros(1), each.cumsum(0)])[[pair[which] - start for pair in one.pairs]]
        losses.append(sums.diff())
        listed.append(scan.tokens.place(logits[[pair[which] - start for pair in one.scored]], side).cpu())
    return of_whole_logits(listed[0], listed[1], (losses[0], losses[1]), scan.tokens.n_shared)


def numbers_of(scan: Scan, ones: Sequence[Read]) -> list[tuple[Read, Numbers]]:
    """Of some texts the numbers at every scored token."""
    return [pair for group, numbers in _numbers(scan, ones, (), _Kept()) for pair in zip(group, numbers, strict=True)]
