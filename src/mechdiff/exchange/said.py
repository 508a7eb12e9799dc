"""What a paired comparison of two logs found is said: sentences, a table of tasks, and the items that flipped; as Markdown, or for a terminal."""

from collections.abc import Iterator

from mechdiff.exchange.paired import Compared, Flip, TaskCompared
from mechdiff.report.phrasing import between, nats, share, visible

WRONG = 0.05
FLIPS, LETTERS = 10, 100
"""Flips that are listed a task, and letters of a prompt that are shown."""
COLUMNS = ("task", "score", "n", "A", "B", "B − A [95 % CI]", "lost", "gained", "p", "p, Holm")


def sentences(found: Compared) -> list[str]:
    """What was found, a sentence a task that has something to say, then what was not compared."""
    said = [_of_task(one, len(found.tasks)) for one in found.tasks]
    said += [sentence for one in found.tasks for sentence in _of_divergence(one)]
    for names, where in ((found.only_a, "A"), (found.only_b, "B")):
        if names:
            said.append(f"Not compared, for only {where} has them: {', '.join(names)}.")
    return [*said, *found.notes]


def _of_task(one: TaskCompared, tasks: int) -> str:
    corrected = one.holm if tasks > 1 else one.p
    test = "McNemar" if one.binary else "bootstrap-t"
    p = "" if corrected is None else f", {test} p = {_p(corrected)}{f' after Holm over {tasks} tasks' if tasks > 1 else ''}"
    counts = f" ({len(one.lost)} lost, {len(one.gained)} gained{p})" if one.binary else f" ({p.removeprefix(', ')})" if p else ""
    found = corrected is not None and corrected <= WRONG
    verb = ("scores higher than A" if one.difference > 0 else "scores lower than A") if found else "does not differ significantly from A"
    by = f"{_value(one, one.difference)} {between(one.low, one.high, digits=2 if one.binary else None)}".strip()
    return f"On {one.task} B {verb}: {by} of {one.metric}, {one.n} item{'s' * (one.n != 1)}{counts}."


def _of_divergence(one: TaskCompared) -> Iterator[str]:
    if one.other_prompts:
        yield f"{one.other_prompts} of {one.n} items of {one.task} were read in other words by the two models: a difference may be the template's."
    if one.divergence:
        d, verb = one.divergence, "diverge more than" if one.divergence.p <= WRONG else "do not diverge significantly more than"
        yield (
            f"{one.task}: items that flipped {verb} the others (median {nats(d.median_flipped_nats)} nats of {d.flipped}, "
            f"{nats(d.median_same_nats)} of {d.same}; AUC {d.auc:.2f}, p = {_p(d.p)})."
        )
    elif one.measured:
        yield f"{one.task}: the divergence of {one.measured} items is known, but not of both flipped and other ones."


def table(found: Compared) -> list[list[str]]:
    """Cells of COLUMNS, a row a task."""
    return [
        [
            one.task, one.metric, str(one.n), _value(one, one.a), _value(one, one.b),
            f"{_value(one, one.difference)} {between(one.low, one.high, digits=2 if one.binary else None)}".strip(),
            str(len(one.lost)) if one.binary else "–", str(len(one.gained)) if one.binary else "–", _p(one.p), _p(one.holm),
        ]
        for one in found.tasks
    ]  # fmt: skip


def flips(one: TaskCompared) -> list[list[str]]:
    """Item, which way, divergence and prompt of a task's flips, those that diverge most first."""
    ranked = sorted(one.flips, key=lambda flip: -(flip.kl_nats if flip.kl_nats is not None else -1.0))
    return [[flip.item, "lost" if flip.a > flip.b else "gained", _kl(flip), visible(_short(flip.prompt))] for flip in ranked]


def markdown(found: Compared) -> str:
    """All of it: sentences, the table, every flip."""
    lines = [f"# {found.a} (A) and {found.b} (B), item by item", "", *(f"- {_plain(one)}" for one in sentences(found)), ""]
    lines += [_row(COLUMNS), "|" + "---|" * len(COLUMNS), *(_row(cells) for cells in table(found)), ""]
    for one in found.tasks:
        if one.flips:
            lines += [f"## Flips of {_plain(one.task)}", "", _row(("item", "", "KL, nats", "prompt (its end)")), "|---|---|---|---|"]
            lines += [*(_row(cells) for cells in flips(one)), ""]
    return "\n".join(lines)


def _row(cells: tuple[str, ...] | list[str]) -> str:
    return f"| {' | '.join(_plain(cell) for cell in cells)} |"


def _plain(text: str) -> str:
    from mechdiff.report.export import escaped

    return escaped(text).replace("\n", " ")


def _short(prompt: str) -> str:
    text = " ".join(prompt.split())
    return text if len(text) <= LETTERS else f"… {text[-LETTERS:]}"


def _kl(flip: Flip) -> str:
    return "–" if flip.kl_nats is None else nats(flip.kl_nats)


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}" if value >= 1e-4 else nats(value)


def _value(one: TaskCompared, value: float) -> str:
    return share(value, 3) if one.binary else nats(value)
