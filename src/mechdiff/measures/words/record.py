"""The record of a run keeps every line of evidence with the rule's judgement, what null pairs show, and all continuations."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from mechdiff import labels
from mechdiff.measures.words import texts
from mechdiff.measures.words.amplify import amplified_of, loops
from mechdiff.measures.words.findings import strength_of
from mechdiff.measures.words.judge import UNHELD, Null, judged, least_size, why_not
from mechdiff.measures.words.line_up import PANELS, panel
from mechdiff.measures.words.listen import heard, said_by, seeds_of, texts_of
from mechdiff.measures.words.plan import AMPLIFIED, BASE, EDIT, TUNED
from mechdiff.models.pair import SIDES
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution

SHORTEST = 4
"""Tokens of a text whose likelihood is compared."""
AMPLIFYING = (
    "the two models and every random edit must be read side by side, in float32 and with attention that replay suits; where one of them has no "
    "such texts, or a random edit cannot be made, the others' are not judged"
)
SHOWN = 12
"""Pairs of continuations that are ranked."""


def words_record(run: Execution) -> dict[str, Any]:
    """For the record: `words` (lines with the rule's judgement, null pairs with their numbers, continuations in their order)."""
    cells = [cell for cell in run.cells if cell.stage == "words"]
    if not cells:
        return {}
    told, extra, skipped = {}, {}, []
    for cell in cells:
        name = cell.key["voice"] if cell.key["voice"] == TUNED else labels.draw(cell.key["voice"], max(1, cell.key["draw"]))
        tensors = run.folder.load(cell.key).tensors
        if cell.key.get("amplify") and name == TUNED and not amplified_of(run, TUNED):
            skipped.append({"what": AMPLIFIED, "why": AMPLIFYING})
        if "lines" not in tensors:
            skipped.append({"what": f"words: {name}", "why": "the two models do not diverge, or the change is no addition to a weight"})
            continue
        told[name] = json.loads(bytes(tensors["lines"]).decode())
        extra[name] = tensors
    own = extra[TUNED]
    lines, nulls = judged_apart(told.pop(TUNED), told)
    for line, group in zip(lines, own["groups"].tolist(), strict=True):
        line["group"] = group
        line["values"] = list(line["values"].values())
    exchanged = json.loads(bytes(own["exchanged"]).decode())
    return {
        "words": {
            "settings": cells[0].key["settings"] | {name: cells[0].key[name] for name in ("phrases", "amplify") if name in cells[0].key},
            "loops": loops(run),
            "layers": cells[0].key["layers"],
            "ranked": len(own["ranked"]),
            "ranked_tokens": own["ranked"].tolist(),
            "lines": lines,
            "nulls": [asdict(one) for one in _together(nulls)],
            "exchanged": _of_exchanged(exchanged, nulls),
            "panels": [panel(one) for one in exchanged[: PANELS - 1]],
            "scales": _scales(run, cells[0]),
            "scopes": json.loads(bytes(own["scopes"]).decode()),
            "depth": _by_depth(run, cells[0]),
            "heads": json.loads(bytes(own["heads"]).decode()) if "heads" in own else [],
            "texts": _texts(run, cells[0]),
        },
        **({"skipped": skipped} if skipped else {}),
    }


def judged_apart(
    lines: Sequence[dict[str, Any]], nulls: Mapping[str, Sequence[dict[str, Any]]]
) -> tuple[list[dict[str, Any]], dict[str, list[Null]]]:
    """As `judged`, in the lines' order; the null pairs by strength: a random edit's difference is loud where it is amplified.

    Without a random edit no line of amplified texts is named, for the base's second turn differs from it in nothing that could be amplified.
    """
    found: dict[int, dict[str, Any]] = {}
    of_nulls: dict[str, list[Null]] = {}
    for strength in sorted({"", *map(strength_of, lines)}):
        here = [at for at, line in enumerate(lines) if strength_of(line) == strength]
        alike = {name: [line for line in of if strength_of(line) == strength] for name, of in nulls.items()}
        told, of_nulls[strength] = judged([lines[at] for at in here], alike)
        if strength and not _held(alike):
            told = [{**line, "why_not": line["why_not"] or UNHELD} for line in told]
        found |= dict(zip(here, told, strict=True))
    return [found[at] for at in range(len(lines))], of_nulls


def _held(nulls: Iterable[str]) -> bool:
    """Whether a random edit is among the null pairs of these names."""
    return any(labels.control_kind(name) == EDIT for name in nulls)


def _together(nulls: Mapping[str, list[Null]]) -> list[Null]:
    """Each null pair over all strengths; the largest sizes are of texts that nothing amplifies."""
    return [
        replace(of[0], **{name: sum(getattr(one, name) for one in of) for name in ("tested", "replicating", "named")})
        for of in zip(*nulls.values(), strict=True)
    ]


def _of_exchanged(exchanged: list[list[dict[str, Any]]], nulls: Mapping[str, list[Null]]) -> dict[str, int]:
    """What the rule names where the two models are exchanged unit by unit; held against the same null pairs."""
    unheld = {strength for strength, of in nulls.items() if strength and not _held(one.name for one in of)}
    sizes = {strength: [one.largest for one in of] for strength, of in nulls.items()}
    judged_lines = [[one for one in found if strength_of(one) not in unheld] for found in exchanged]
    named = [sum(why_not(one, least_size(one, sizes.get(strength_of(one), []))) is None for one in found) for found in judged_lines]
    return {"draws": len(exchanged), "lines": sum(map(len, exchanged)), "named": sum(named), "draws_with_any": sum(map(bool, named))}


def _scales(run: Execution, like: Cell) -> list[dict[str, float]]:
    """Of each random edit: its scale, the divergence that it reaches, and the pair's."""
    scales = [run.folder.load(cell.key).tensors.get("scale") for cell in run.cells if cell.stage == "words_null"]
    return [dict(zip(("scale", "reached_nats", "wanted_nats"), one.tolist(), strict=True)) for one in scales if one is not None]


def _by_depth(run: Execution, like: Cell) -> list[dict[str, Any]]:
    """By place: of every block of both models how far it is from what comes out, and the tokens that are read from it on some prompts."""
    found, seeds = [], seeds_of(run, like, "base")
    for where, name in (("chat", "neutral"), ("testing", "prompts")):
        told = {side: heard(run, like, side) for side in SIDES}
        if not all(f"{where}.depth" in one for one in told.values()):
            continue
        tops = {side: one[f"{where}.tops"] for side, one in told.items()}
        names = [one for one in seeds if one.where == where][: tops["base"].shape[1]]
        place: dict[str, Any] = {"where": name, "prompts": [one.text for one in names]}
        for side in SIDES:
            words = [[run.prepared.tokens.text(token) for token in layer] for layer in tops[side]]
            place[side] = {
                "kl_nats": told[side][f"{where}.depth"].tolist(),
                "top1_share": (tops[side] == tops[side][-1]).mean(1).tolist(),
                "tops": words,
            }
        found.append(place)
    return found


def _texts(run: Execution, like: Cell) -> list[dict[str, Any]]:
    """Every seed with both continuations; `rank` of those whose gap exceeds that of the base's own text most, near copies left out."""
    found = gaps(run, like)
    ranked = [one for one in found if one["gap"].keys() == {"tuned", "base"} and one["said"]["tuned"] != one["said"]["base"]]
    ranked.sort(key=lambda one: -(one["gap"]["tuned"] - one["gap"]["base"]))
    ranked = [ranked[i] for i in texts.distinct([one["said"]["tuned"] for one in ranked])][:SHOWN]
    rank = {one["seed"].name: place for place, one in enumerate(ranked, 1)}
    louder = {name: texts_of(run, said, "tuned") for name, said in amplified_of(run, TUNED).items()}
    beside = next((texts_of(run, said, "base") for said in amplified_of(run, BASE).values()), {})
    return [
        {
            "seed": one["seed"].name,
            "where": one["seed"].where,
            "text": one["seed"].text,
            **one["said"],
            **_amplified(one["seed"].name, louder, beside),
            "gap": one["gap"],
            "rank": rank.get(one["seed"].name),
        }
        for one in found
    ]


def _amplified(seed: str, louder: Mapping[str, Mapping[str, str]], beside: Mapping[str, str]) -> dict[str, Any]:
    """By strength what the tuned model says behind this seed where its difference is amplified, if that was asked there; the base's under the cut."""
    told = {name: said[seed] for name, said in louder.items() if seed in said}
    return {"amplified": told, "base_under_cut": beside[seed]} if told else {}


def gaps(run: Execution, like: Cell) -> list[dict[str, Any]]:
    """By seed: `gap` of each model's text (log p of the writer less log p of the other, per token), of texts that are long enough and no loops."""
    scored = {cell.key["reader"]: run.folder.load(cell.key).tensors for cell in run.cells if cell.stage == "words_scored"}
    said = {side: said_by(run, like, side) for side in SIDES}
    told = {side: texts_of(run, said[side], side) for side in ("base", "tuned")}
    found = []
    for i, seed in enumerate(one for one in seeds_of(run, like, "base") if one.where != "naming"):
        gap = {}
        for side, other in zip(SIDES, SIDES[::-1], strict=True):
            n = len(said[side][seed.name]["ids"])
            if n >= SHORTEST and not texts.loops(told[side][seed.name]):
                gap[side] = float(scored[side][side][i] - scored[other][side][i]) / n
        found.append({"seed": seed, "gap": gap, "said": {side: told[side][seed.name] for side in told}})
    return found
