"""A comparison is summed up in at most five sentences.

A claim needs an interval that leaves 0 out, q under 0.05, and half as much again. Which change is more distributed is said of shares that add alone:
by divergences the number of parts falls as D grows, so that one fine-tune at two strengths would be two.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from mechdiff.comparison import additive
from mechdiff.comparison.comparable import FEW_PROMPTS, Loaded, Mark
from mechdiff.comparison.compared import Compared, with_ends
from mechdiff.comparison.contrasts import Pair
from mechdiff.comparison.quantity import Main, Quantity
from mechdiff.report import difference
from mechdiff.report.difference import Difference
from mechdiff.report.phrasing import between, listed, nats
from mechdiff.statistics.intervals import FEW

D = ("size", "D")
DISTRIBUTED, DIRECTIONS = "how distributed they are", "the number of their directions"
MOST = 4
"""Sentences before the one on what is not alike."""
Found = Mapping[str, Sequence[Quantity]]


def verdict(of: Compared) -> list[str]:
    """Which is more distributed, which of higher rank, by which numbers, and how far the runs may be compared at all."""
    runs, found, held, marks = of.runs, of.found, of.held, of.marks
    quiet = [run for run in runs if not run.counts]
    names = [run.name for run in runs if run.counts]
    said = [_nothing(quiet)] if quiet else []
    if len(names) < 2:
        return [*said, "With one run left there is nothing to compare it with." if names else "So there is nothing to compare."]
    main = [one for one in of.main if one.noun and _measured(one, found, names)]
    spread, rank = (next((one for one in main if one.leads and one.of == what), None) for what in ("parts", "directions"))
    if len(names) == 2:
        said.append(_lead(names, _pair(held, spread), _pair(held, rank)))
    elif spread:
        said += _chain(names, spread, found, held, ("local", "distributed"))
    said += _only_divergences([run for run in runs if run.counts], of.locating)
    for one in (spread, rank, *(one for one in main if not one.leads)):
        if one is not None:
            said.append(numbers(one, names, found, held, sized=one is spread))
    return [*said[:MOST], *_not_alike(marks)]


def _nothing(quiet: Sequence[Loaded]) -> str:
    told = []
    for run in quiet:
        d = difference.difference(run.content.rows, run.content.summary)
        size = "" if d is None else f" (D = {nats(d.mean)} nats, numerical noise {nats(d.floor or 0.0)}{_elsewhere(d)})"
        told.append(f"{run.name}{size}")
    return f"There is no effect to compare in {listed(told)}: D is not above three times the numerical noise."


def _elsewhere(d: Difference) -> str:
    """That the models do differ, in tokens that one of them lacks."""
    if d.divides or not d.counts:
        return ""
    return f"; its models differ in tokens that one of them lacks, JS {nats(d.js)} nats, of which no share is given"


def _only_divergences(runs: Sequence[Loaded], locating: Sequence[str]) -> list[str]:
    """Of runs that were made before there were shares that add."""
    old = [run.name for run in runs if additive.lacking(run, locating)]
    if not old:
        return []
    return [
        f"How distributed the change is cannot be said of {listed(old)}: such a run has shares of KL alone, which fall on fewer parts the larger D "
        "is. Run it again with this version of mechdiff."
    ]


def _measured(main: Main, found: Found, names: Sequence[str]) -> bool:
    return all(any(one.main == main for one in found[name]) for name in names)


def _pair(held: Sequence[Pair], main: Main | None) -> Pair | None:
    return next((pair for pair in held if main and pair.key == main.key), None)


def _lead(names: Sequence[str], where: Pair | None, rank: Pair | None) -> str:
    """Local or distributed, low or high rank: what can be said of the two."""
    wide, high = (pair.higher if pair else None for pair in (where, rank))
    other = {names[0]: names[1], names[1]: names[0]}
    both = f"{names[0]} and {names[1]}"
    if wide and wide == high:
        return f"{wide} is more distributed and takes more directions than {other[wide]}."
    if wide and high:
        return f"{wide} is more distributed than {other[wide]}, and takes fewer directions."
    if wide:
        return f"{wide} is more distributed than {other[wide]}; {_unsaid(DIRECTIONS, rank)}."
    if high:
        return f"{high} takes more directions than {other[high]}; {_unsaid(DISTRIBUTED, where)}."
    if where and rank and not (where.apart or rank.apart or where.silent or rank.silent):
        return f"{both} do not differ significantly, neither in how distributed they are nor in the number of their directions."
    return f"{both}: {_unsaid(DISTRIBUTED, where)}; {_unsaid(DIRECTIONS, rank)}."


def _chain(names: Sequence[str], main: Main, found: Found, held: Sequence[Pair], words: tuple[str, str]) -> list[str]:
    """Three or more runs in the order of a number, where each can be told from the next and is enough beyond it; else who stands apart."""
    value = {name: one.estimate.value for name in names for one in found[name] if one.main == main}
    order = sorted(names, key=lambda name: value[name])
    higher = {frozenset((pair.one, pair.other)): pair.higher for pair in held if pair.key == main.key}
    steps = [higher.get(frozenset(two)) == two[1] for two in pairwise(order)]
    if all(steps):
        return [f"From {words[0]} to {words[1]}: {', '.join(order)}."]
    tops = [name for name in names if all(higher.get(frozenset((name, other))) == name for other in names if other != name)]
    least = [name for name in names if all(higher.get(frozenset((name, other))) == other for other in names if other != name)]
    said = [f"most {words[1]} is {name}" for name in tops] + [f"most {words[0]} is {name}" for name in least]
    return [f"Of these {len(names)}, {' and '.join(said)}; the others are not set apart."] if said else []


def _unsaid(what: str, pair: Pair | None) -> str:
    if pair is None:
        return f"{what} was not measured in both"
    if pair.silent:
        return f"{what} cannot be said ({pair.silent})"
    return f"{what} differs significantly, but by less than a half" if pair.apart else f"{what} does not differ significantly"


def numbers(main: Main, names: Sequence[str], found: Found, held: Sequence[Pair], *, sized: bool) -> str:
    """One number of all runs with intervals, and which of them can be told apart; `sized`: with the D that it is at."""
    ones = {name: next(one for one in found[name] if one.main == main) for name in names}
    ofs = {str(one.parts) for one in ones.values() if one.parts and one.unit == "parts"}
    out_of = f" (of {next(iter(ofs))})" if len(ofs) == 1 and main.of == "parts" else ""
    noun = main.noun + (", as a share of all there are" if next(iter(ones.values())).unit == "share of parts" else out_of)
    told = listed(f"{name} {with_ends(one)}" for name, one in ones.items())
    pairs = [pair for pair in held if pair.key == main.key]
    if any(one.silent for one in ones.values()):
        return f"{noun[0].upper()}{noun[1:]}: {told}."
    sizes = [size for name in names for size in found[name] if size.key == D] if sized else []
    at = f" by shares that add, at D of {listed(nats(one.estimate.value) for one in sizes)} nats" if len(sizes) == len(names) else ""
    return f"{noun[0].upper()}{noun[1:]}{at}: {told}; {_told_apart(pairs)}."


def _told_apart(pairs: Sequence[Pair]) -> str:
    """ "difference 5.1 [95 % CI: 2.6, 7.4]", or which of several pairs differ."""
    if not pairs:
        return "no difference can be given"
    if len(pairs) == 1:
        found = pairs[0].contrast
        size = f"difference {nats(abs(found.value))}" + (
            f" [95 % CI: {_ends(pairs[0])[1:]}" if found.low < found.high else " on every prompt"
        )
        return size if pairs[0].apart else f"they do not differ significantly: {size}{seen(pairs[0])}"
    apart = [f"{pair.one} and {pair.other}" for pair in pairs if pair.apart]
    alike = [f"{pair.one} and {pair.other}{seen(pair)}" for pair in pairs if not pair.apart]
    if not alike:
        return "each two of them differ significantly"
    return (f"significantly different: {'; '.join(apart)}; " if apart else "") + f"not significantly different: {'; '.join(alike)}"


def _ends(pair: Pair) -> str:
    """The interval of the difference, turned so that its value is not negative."""
    found = pair.contrast
    return between(found.low, found.high) if found.value >= 0 else between(-found.high, -found.low)


def seen(pair: Pair) -> str:
    """The smallest difference that would have been found."""
    smallest = pair.contrast.smallest
    return "" if smallest != smallest or not smallest else f" (minimum detectable difference {nats(smallest)})"


def _not_alike(marks: Sequence[Mark]) -> list[str]:
    """What the runs differ in, in one sentence."""
    fields = listed(mark.field for mark in marks if mark.field != FEW_PROMPTS)
    few = f"a run has fewer than {FEW} prompts, so that its intervals are rough" if any(mark.field == FEW_PROMPTS for mark in marks) else ""
    if marks and fields == "none":
        return [f"{few[0].upper()}{few[1:]}."]
    other = (
        ", so that a difference may be the prompts' and not the fine-tunes'" if any(m.field == "reported prompts" for m in marks) else ""
    )
    return [f"The runs also differ in: {fields}{other}{few and '; '}{few}."] if marks else []
