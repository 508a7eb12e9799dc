"""Do both models get the same input?

Compared are vocabularies, how finely each tokenizer cuts, and activations over whole words.
"""

from typing import Any

import polars as pl

from mechdiff.report import difference
from mechdiff.report.parts import Run, Section, note, table
from mechdiff.report.phrasing import decimal, shown
from mechdiff.rows import where

TITLE = "Do both models get the same input?"
POLICIES = {
    "same_text": "both models read one rendered text",
    "native": "each model reads its own chat template: the templates are part of every difference",
    "raw": "no chat template: both models read the bare prompts",
}
CUT_APART = 10
"""Prompts whose cuts differ most."""


def tokenizers(run: Run) -> Section:
    """Fairness of the input."""
    parts: list[Any] = [note(text) for text in _policy(run.manifest)]
    parts += [*_fragmentation(run), *_words(run), *_cut_apart(run)]
    return Section(id="divergence.tokenizers", title=TITLE, parts=parts, place=14)


def _policy(manifest: dict) -> list[str]:
    prompts, told = manifest.get("prompts") or {}, manifest.get("tokenizers") or {}
    said = []
    if told:
        words = str(told["said"])
        n = (prompts.get("n") or {}).get("report")
        same = f" Both cut {told['same_cut']} of {n} test prompts into the same tokens." if n else ""
        said.append(f"Vocabularies: {words}.{same}")
    if prompts.get("policy"):
        facts = {"template": prompts.get("template"), "system prompt": prompts.get("system"), "answers start with": prompts.get("answer")}
        facts |= {"date given to templates": prompts.get("date")}
        given = "; ".join(
            f"{name}: {value}" for name, value in facts.items() if value and (prompts["policy"] == "same_text" or name != "template")
        )
        said.append(
            f"Prompts: {POLICIES.get(prompts['policy'], prompts['policy'])}{f' ({given})' if given else ''}. As rendered: prompts.jsonl."
        )
    return said


def _fragmentation(run: Run) -> list[dict]:
    """Tokens per word and per byte of each split, and the mass on tokens that one model lacks."""
    lines = []
    for split in [name for name in ("report", "select", "fit") if name in run.summary["split"].drop_nulls().unique().to_list()]:
        means = _means(run, split)
        for what in ("word", "byte"):
            sides = [means.get(f"tokens_per_{what}_{side}") for side in ("base", "tuned")]
            if all(sides):
                lines.append((split, f"tokens per {what}", *(_estimate(side) for side in sides)))
        outside = [means.get("mass_outside_base"), means.get("mass_outside")]
        if any(outside):
            lines.append((split, "next-token mass on tokens that the other lacks", *(_estimate(side) if side else "0" for side in outside)))
    if not lines:
        return []
    why = (
        "A model that cuts a text finer reads it in more steps, and one that is asked about tokens it lacks is not asked the same question."
    )
    return [table(("split", "", "base", "tuned"), lines, title="How each model reads the prompts", stacked=True), note(why)]


def _means(run: Run, split: str) -> dict[str, dict]:
    of_split = where(run.summary, measure="divergence").filter(pl.col("split") == split, pl.col("control").is_null())
    return {row["metric"]: row for row in of_split.filter(pl.col("unit").is_null()).iter_rows(named=True)}


def _estimate(row: dict | None) -> str:
    if row is None:
        return "–"
    return shown(row["mean"], row["ci_low"], row["ci_high"], row["n"], line="\n").replace(" ", "\u00a0")


def _words(run: Run) -> list[dict]:
    """CKA of states averaged over whole words, beside CKA at the decision position."""
    found = where(run.summary, measure="similarity", metric="cka", control=None)
    found = found.filter(pl.col("split").eq_missing(difference.reported(run.rows, "similarity")))
    words = found.filter(pl.col("unit") == "words")
    if words.is_empty():
        return []
    plain = {(r["layer"], r["site"]): r["mean"] for r in found.filter(pl.col("unit").is_null()).iter_rows(named=True)}
    lines = []
    for r in words.sort("layer", "site").iter_rows(named=True):
        over = shown(r["mean"], r["ci_low"], r["ci_high"], r["n"], decimals=3)
        lines.append((f"L{r['layer']}.{r['site']}", decimal(plain.get((r["layer"], r["site"])), 3), over))
    title = "CKA of activations averaged over the tokens of each word, for words that one tokenizer cuts finer"
    return [table(("site", "at the last prompt token", "over words"), lines, folded=title)]


def _cut_apart(run: Run) -> list[dict]:
    """The prompts that the two tokenizers cut most differently."""
    sides = {}
    for side in ("base", "tuned"):
        own = run.prompt_rows.filter(pl.col("metric") == f"tokens_per_word_{side}", pl.col("split") == "report")
        sides[side] = dict(own.select("prompt", "value").iter_rows())
    ratios = {name: sides["tuned"][name] / value for name, value in sides["base"].items() if name in sides["tuned"] and value}
    order = [name for name in sorted(ratios, key=lambda name: (-abs(ratios[name] - 1), name)) if ratios[name] != 1]
    if not order:
        return []
    lines = [(name, *(decimal(one[name]) for one in (sides["base"], sides["tuned"], ratios))) for name in order[:CUT_APART]]
    return [
        table(("prompt", "base", "tuned", "tuned / base"), lines, folded="The prompts that are cut most differently, in tokens per word")
    ]
