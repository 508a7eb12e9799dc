"""The section on attribution says how far its estimates can be believed, which heads each model leans on, and which units weigh most."""

from typing import Any

import polars as pl

from mechdiff import labels, terms
from mechdiff.measures.attribution import answers_page, charts, churn, findings
from mechdiff.measures.attribution.churn import OUTLIER, SURE, TOP_K
from mechdiff.measures.attribution.findings import ESTIMATES, RANDOM, TOGETHER, TOP
from mechdiff.measures.attribution.words import WAYS, written
from mechdiff.measures.divergence.words import why_no_share
from mechdiff.report import difference
from mechdiff.report.parts import Drawn, Run, Section, note, table
from mechdiff.report.phrasing import decimal, listed, nats, prompts, share, shown, with_interval
from mechdiff.statistics import intervals

TITLE = "What do gradients say of the heads?"
TOP_HEADS, TOP_SITES, CHURNED = 10, 8, 24
STATES = {"stayed": "both", "entered": "tuned alone", "left": "base alone"}
M = {
    "law": "m weighs the logits by how the two models' next-token distributions differ: Σ (p_tuned − p_base) z",
    "divergent": "m is the logit of the tuned model's top-1 token less that of the base's",
    "label": "m is the logit of the label's first token less the mean logit",
}


def attribution(run: Run) -> Section:
    """Attribution by gradients, held against true patches; and the heads that matter in each model."""
    if findings.real(run.rows).is_empty():
        return Section(id="attribution", title=TITLE, parts=[note("Attribution by gradients was not taken in this run.")])
    parts: list[Any] = [*_what_is_attributed(run)]
    known = difference.difference(run.rows, run.summary)
    if known is not None and (why := why_no_share(known)):
        parts.append(note(f"There is no effect of exchanged activations to estimate: {why}."))
    else:
        parts += [*_validation(run), *_top_heads(run), *_top_sites(run)]
    return Section(id="attribution", title=TITLE, parts=[*parts, *answers_page.parts(run), *_churn(run)])


def _what_is_attributed(run: Run) -> list[dict]:
    """What m is, and on how many prompts it is none."""
    record = run.manifest.get("attribution") or {}
    counted = findings.prompts(run.rows)
    said = f"What is attributed is a change of m, in logits; {M[record['metric']]}." if record.get("metric") in M else ""
    if counted.undefined:
        why = ", where both models choose the same token" if record.get("metric") == "divergent" else ""
        said += f" m is not defined on {counted.undefined} of {counted.defined + counted.undefined} prompts{why}: they are left out."
    if counted.defined < intervals.FEW:
        said += f" With {prompts(counted.defined)} the intervals are too short."
    return [note(said.strip())] if said else []


def _validation(run: Run) -> list[Any]:
    """The scatter, and its numbers."""
    agreed = findings.agreement(run.rows, run.manifest)
    together = agreed.filter(pl.col("group") == TOGETHER)
    if together.is_empty():
        return [note("No head was patched to hold the estimates against, so read them as guesses."), *_errors(run, agreed)]
    first = together.row(0, named=True)
    caption = "True and attributed change of m where the other model's contribution of a head is patched in, "
    caption += f"for {_patched(run, agreed)}, means over {prompts(first['n'])}."
    said = [
        f"{WAYS[r['arm']]}, {written(r['direction'])}: {with_interval(r['rho'], r['rho_low'], r['rho_high'], decimals=2)}"
        for r in together.iter_rows(named=True)
    ]
    still = sorted(set(together["nothing"].to_list()))
    caption += f" Of these heads {' or '.join(str(n) for n in still)} have no effect and tie." if still[-1] else ""
    caption += f" Rank correlation: {'; '.join(said)}."
    drawn = Drawn(
        name="attribution_validation",
        chart=charts.attributed_against_true,
        caption=caption,
        reading="attribution_validation",
    )
    return [drawn, _correlations(agreed), *_errors(run, agreed)]


def _patched(run: Run, agreed: pl.DataFrame) -> str:
    """ "40 heads in each direction (20 of the largest estimates on the select prompts, 20 at random)"."""
    count = {word: sorted(set(agreed.filter(pl.col("group") == word)["heads"].to_list())) for word in (TOGETHER, TOP, RANDOM)}
    chosen = (run.manifest.get("attribution") or {}).get("validated") or {}
    by = sorted({lists["by"] for lists in chosen.values() if lists.get("by")})
    on = f" on the {terms.of_split(by[0])} prompts" if len(by) == 1 else ""
    flattered = ", those reported here, so optimistically biased" if by == [difference.reported(run.rows, "attribution")] else ""
    heads = " or ".join(str(n) for n in count[TOGETHER])
    parts = [f"{' or '.join(str(n) for n in count[TOP])} of the largest estimates{on}{flattered}"] if count[TOP] else []
    parts += [f"{' or '.join(str(n) for n in count[RANDOM])} of the others at random"] if count[RANDOM] else []
    return f"{heads} heads in each direction ({'; '.join(parts)})"


def _correlations(agreed: pl.DataFrame) -> dict:
    """Rank correlations over the top, the random and all patched heads: a line for each direction and way to estimate."""
    by = {(r["direction"], r["arm"], r["group"]): r for r in agreed.iter_rows(named=True)}
    lines = []
    for arm, direction in ((arm, direction) for arm in ESTIMATES for direction in labels.CROSSED):
        groups = [by.get((direction, arm, group)) for group in (TOGETHER, TOP, RANDOM)]
        if any(groups):
            cells = [shown(g["rho"], g["rho_low"], g["rho_high"], decimals=2) if g else "–" for g in groups]
            lines.append((f"{WAYS[arm]}, {written(direction)}", *cells))
    columns = ("estimate", "all patched heads", "largest estimates", "random others")
    return table(columns, lines, title="Rank correlation of estimates with true effects")


def _errors(run: Run, agreed: pl.DataFrame) -> list[dict]:
    """The error of single heads, and of the sum over a layer's heads against the effect of all of them (completeness)."""
    whole = findings.complete(findings.completeness(run.rows))
    sums = {(r["direction"], r["arm"]): r for r in whole.iter_rows(named=True)}
    heads = {(r["direction"], r["arm"]): r for r in agreed.filter(pl.col("group") == TOGETHER).iter_rows(named=True)}
    lines = []
    for arm, direction in ((arm, direction) for arm in ESTIMATES for direction in labels.CROSSED):
        one, summed = heads.get((direction, arm)), sums.get((direction, arm))
        if one or summed:
            error = shown(one["error"], one["error_low"], one["error_high"], decimals=2) if one else "–"
            missed = (
                [nats(summed["median"]), f"{nats(summed['worst'])} (L{summed['worst_layer']})", str(summed["layers"])]
                if summed
                else ["–"] * 3
            )
            lines.append((f"{WAYS[arm]}, {written(direction)}", error, *missed))
    columns = ("estimate", "patched heads", "sum over a layer's heads: median", "worst", "layers")
    steps = (run.manifest.get("attribution") or {}).get("steps")
    promise = f"; integrated gradients in {steps} step{'s' * (steps != 1)} promise that the sum has none" if steps else ""
    return [table(columns, lines, title=f"Relative error of the estimates{promise}")] if lines else []


def _top_heads(run: Run) -> list[dict]:
    """The heads with the largest estimates, by direction."""
    parts = []
    for direction in labels.CROSSED:
        found, split = findings.top_heads(run.rows, run.summary, direction)
        lines = [
            (_unbroken(r["name"]), _value(r["estimate"], r["low"], r["high"]), _value(r["integrated"]),
             _value(r["effect"], r["effect_low"], r["effect_high"]))
            for r in found.head(TOP_HEADS).iter_rows(named=True)
        ]  # fmt: skip
        if lines:
            columns = ("head", "attribution patching", "integrated gradients", "true effect")
            parts.append(
                table(columns, lines, title=f"Heads with the largest estimates, {written(direction)}, logits{_ranked_on(run, split)}")
            )
    return parts


def _top_sites(run: Run) -> list[dict]:
    """MLPs and other whole sites, both directions side by side, ranked by the larger estimate."""
    ranked = {direction: findings.top_sites(run.rows, run.summary, direction) for direction in labels.CROSSED}
    sides = {direction: found.filter(pl.col("estimate") != 0) for direction, (found, _) in ranked.items()}
    known = {direction: {r["name"]: r for r in found.iter_rows(named=True)} for direction, found in sides.items()}
    names = sorted(
        {name for found in known.values() for name in found},
        key=lambda name: (-max(found[name]["rank"] for found in known.values() if name in found), name),
    )
    lines = []
    for name in names[:TOP_SITES]:
        cells = [found.get(name) for found in known.values()]
        lines.append((name, *(_value(cell["estimate"], cell["low"], cell["high"]) if cell else "–" for cell in cells)))
    columns = ("site", *(f"{written(direction)} " for direction in labels.CROSSED))
    split = next((split for _, split in ranked.values() if split), None)
    title = f"MLPs and other sites with the largest estimates by attribution patching, logits, of {len(names)}{_ranked_on(run, split)}"
    return [table(columns, lines, title=title)] if lines else []


def _churn(run: Run) -> list[Any]:
    """The figure, what holds over resamples, and the heads by name."""
    found = churn.churn(run.rows, run.summary, run.manifest)
    if found.is_empty():
        return [note("How important each head is within each model was not estimated.")]
    caption = f"How much each of the {len(found)} heads matters in each model: "
    caption += "the estimated change of m where its contribution is replaced by its mean."
    caption += f" {_counted(run, found)} {_alike(run, found)}"
    drawn = Drawn(name="attribution_churn", chart=charts.churn_of_heads, caption=caption, reading="attribution_churn")
    return [drawn, *_churn_table(found), *_overlap(found), *_times_activation(run)]


def _times_activation(run: Run) -> list[dict]:
    """What other studies call churn: the gradient times the whole contribution, by name."""
    found = churn.times_activation(run.rows, run.summary)
    lines = [
        (_unbroken(r["name"]), *(_value(*(r[f"{model}{end}"] for end in ("", "_low", "_high"))) for model in ("base", "tuned")))
        for r in found.head(CHURNED).iter_rows(named=True)
    ]
    title = "Gradient × activation of heads (what m would lose without the contribution), logits"
    title += f"; the {len(lines)} largest of {len(found)}" if len(lines) < len(found) else ""
    return [table(("head", "base", "tuned"), lines, folded=title)] if lines else []


def _counted(run: Run, found: pl.DataFrame) -> str:
    """How many heads stand out, entered, left and stayed, and how many of these are sure."""
    limit = churn.threshold(run.manifest)
    rule = f"|z| ≥ {OUTLIER:g} over all heads" if limit is None else f"|attribution| > {limit:g}, the study's threshold"
    said = found.filter(pl.col("state").is_not_null())
    if said.is_empty():
        return f"No head stands out in either model ({rule})."
    count, shown_to = {state: len(said.filter(pl.col("state") == state)) for state in STATES}, churn.moved(found)
    words = f"Standing out ({rule}): {count['stayed']} in both models, {count['entered']} in the tuned model alone, {count['left']} in the base alone"
    one_sided = count["entered"] + count["left"]
    tested = f"; of these last {one_sided}, {shown_to['entered'] + shown_to['left']} differ between the models by a paired test of all heads together"
    sure = len(said.filter(pl.col("holds") >= SURE))
    return f"{words}{tested if one_sided else ''}. What is said of {sure} of these {len(said)} holds in " + (
        f"at least {share(SURE)} of resamples of the prompts."
    )


def _alike(run: Run, found: pl.DataFrame) -> str:
    """The rank correlation over all heads, and how many of the largest are shared."""
    between = churn.between_models(run.rows)
    said = []
    if between.rho is not None:
        said.append(f"Rank correlation over all heads {with_interval(between.rho, between.low, between.high, decimals=2)}.")
    shared = [f"{r['shared']} of {r['k']} (chance {decimal(r['k'] * r['chance'])})" for r in churn.overlap(found).iter_rows(named=True)]
    if shared:
        said.append(f"Of the heads with the largest attribution the models share {listed(shared)}.")
    return " ".join(said)


def _churn_table(found: pl.DataFrame) -> list[dict]:
    """Entered, left, stayed: by how far they stand out."""
    order = pl.col("state").replace_strict({"entered": 0, "left": 1, "stayed": 2}, return_dtype=pl.Int64)
    said = found.filter(pl.col("state").is_not_null()).sort(
        order, -pl.max_horizontal(pl.col("z_base", "z_tuned").abs()), maintain_order=True
    )
    lines = [
        (_unbroken(r["name"]), f"{STATES[r['state']]} ({share(r['holds'])})", nats(r["p"]),
         _value(r["base"], r["base_low"], r["base_high"]), decimal(r["z_base"], 1),
         _value(r["tuned"], r["tuned_low"], r["tuned_high"]), decimal(r["z_tuned"], 1))
        for r in said.head(CHURNED).iter_rows(named=True)
    ]  # fmt: skip
    columns = ("head", "stands out in (holds)", "p, tuned − base", "base", "z", "tuned", "z")
    title = "Heads that stand out (logits), and in what share of resamples that holds"
    title += f"; {len(said) - CHURNED} others in summary.parquet" if len(said) > CHURNED else ""
    return [table(columns, lines, title=title)] if lines else []


def _overlap(found: pl.DataFrame) -> list[dict]:
    lines = [
        (f"top {r['k']}", str(r["shared"]), share(r["share"]), share(r["chance"], 3)) for r in churn.overlap(found).iter_rows(named=True)
    ]
    columns = ("by |attribution|", "in both models", "share", "chance")
    return [table(columns, lines, folded=f"How many of the top {listed(TOP_K)} heads are the same in both models")] if lines else []


def _unbroken(name: str) -> str:
    """A head's name that no line of a table breaks."""
    return name.replace(" ", "\u00a0")


def _value(value: float | None, low: float | None = None, high: float | None = None, n: int | None = None) -> str:
    """ "−1.20 [−1.31, −1.11]", or a dash."""
    return shown(value, low, high, n)


def _ranked_on(run: Run, split: str | None) -> str:
    chosen = split if split != difference.reported(run.rows, "attribution") else None
    return f" (ranked on the {terms.of_split(chosen)} prompts)" if chosen else " (ranked on the prompts reported, so optimistically biased)"
