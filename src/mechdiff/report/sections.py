"""The sections of the page, each from the run's tables, in the order of its questions. Numbers in, plain text out.

A section whose rows are absent is one sentence that says so.
"""

from dataclasses import replace
from typing import Any

import polars as pl
from scipy.stats import spearmanr

from mechdiff.report import asymmetry, charts_patching, figures, findings, spoken, statistics, verdict, wording
from mechdiff.report.explorer import explorer
from mechdiff.report.findings import BREAKAGE, RECOVERY, STREAM
from mechdiff.report.intervals import FEWEST
from mechdiff.report.parts import Drawn, Run, Section, note, table
from mechdiff.report.phrasing import between, listed, nats, share, visible, with_interval
from mechdiff.report.record import trust
from mechdiff.report.section_attribution import attribution
from mechdiff.report.section_behaviour import answers
from mechdiff.report.section_factorial import factorial
from mechdiff.report.section_grafting import grafting
from mechdiff.report.section_heads import heads
from mechdiff.report.section_rank import rank
from mechdiff.report.section_similarity import similarity
from mechdiff.report.section_steering import steering
from mechdiff.report.section_texts import texts
from mechdiff.report.section_tokenizers import tokenizers
from mechdiff.report.section_transport import transport
from mechdiff.report.section_weights import weights
from mechdiff.report.simulated import ENOUGH
from mechdiff.report.wording_difference import counted, why_no_share
from mechdiff.rows import where

ARMS = {
    "identity": "the other model's state",
    "shift": "base's state + mean difference",
    "mean": "tuned mean state",
    "resample": "tuned state, other prompt",
    "oracle": "the state already there",
}
TOP_SITES = 10
LEANS = 1 / 3
"""Of D: a prompt with more moves every share of D so far, if its own share differs."""
TOP_PROMPTS = 5


def all_sections(run: Run) -> list[Section]:
    """What the run found, in the order of its questions, and how far to trust it; each with what its measure found in words at its head."""
    with spoken.in_measured_words(run.rows):
        return _all_sections(run)


def _all_sections(run: Run) -> list[Section]:
    found = [
        behaviour(run),
        texts(run),
        answers(run),
        weights(run),
        grafting(run),
        similarity(run),
        causal(run),
        factorial(run),
        transport(run),
        rank(run),
        steering(run),
        heads(run),
        attribution(run),
        agreement(run),
        tokenizers(run),
        trust(run),
    ]
    leads = wording.leads(run.rows, run.summary, run.manifest)
    found[-1] = replace(found[-1], parts=[*found[-1].parts, *_kept_below(run)])
    return [replace(section, lead=leads.get(section.id, [])) for section in found]


def _kept_below(run: Run) -> list[dict]:
    """What did not pass the gates of the verdict, and why."""
    kept = verdict.refused(run.rows, run.summary, run.manifest)
    if not kept:
        return []
    return [
        note("What does not stand at the top of the page, and why (the gates of headlines: docs/STATISTICS.md):"),
        {"kind": "list", "entries": [{"what": "", "why": one} for one in kept]},
    ]


def behaviour(run: Run) -> Section:
    """Q0: D per prompt."""
    title = "How differently do they behave?"
    found = findings.difference(run.rows, run.summary)
    if found is None:
        return Section(id="behaviour", title=title, parts=[note("Divergence was not measured in this run.")])
    d = findings.d_per_prompt(run.rows)
    mean = with_interval(found.mean, found.low, found.high, coverage=found.coverage)
    caption = f"D on {counted(found, run.manifest)[0]}: mean {mean} nats, median {nats(found.median)}"
    caption += f", from {nats(d['d'][0])} to {nats(d['d'][-1])}."
    infinite = int(d["d"].is_infinite().sum())
    if infinite:
        caption += f" {infinite} prompts with infinite D are not drawn."
    drawn = Drawn(name="d_by_prompt", chart=figures.d_by_prompt, caption=caption, reading="d_by_prompt")
    said = {True: "same", False: "different", None: "not measured"}
    order = [*findings.d_per_prompt(run.prompt_rows).sort("d", descending=True).head(TOP_PROMPTS).iter_rows(named=True)]
    prompts = [(row["prompt"], nats(row["d"]), said[row["same"]]) for row in order]
    return Section(
        id="behaviour",
        title=title,
        parts=[
            drawn,
            _divergences(run, found.split),
            *_coverage(run, found.split),
            *_clusters(run, found.split),
            *_weight_of_one(d),
            *_other_splits(run, found.split),
            table(("prompt", "D, nats", "first choice"), prompts, folded="The prompts that differ most"),
        ],
    )


def _divergences(run: Run, split: str) -> dict:
    names = {
        "kl_tuned_base_nats": "D = KL(tuned ‖ base), nats",
        "kl_base_tuned_nats": "KL(base ‖ tuned), nats",
        "js_nats": "Jensen-Shannon, nats (at most 0.693)",
        "top1_same": "same first choice, share of prompts",
        "kl_shared_nats": "D on the tokens that both have, nats",
        "kl_shared_base_tuned_nats": "KL(base ‖ tuned) on the tokens that both have, nats",
        "mass_outside": "tuned mass on tokens that the base lacks",
        "mass_outside_base": "base mass on tokens that the tuned model lacks",
        "kl_byte_nats": "KL(tuned ‖ base) of the next byte, nats",
    }
    measured = where(run.summary, measure="divergence", control=None, unit=None).filter(pl.col("split") == split)
    by_metric = {row["metric"]: row for row in measured.iter_rows(named=True)}
    rows = [
        (
            words,
            nats(row["mean"]),
            between(row["ci_low"], row["ci_high"]),
            nats(row["median"]),
            nats(row["log_mean"]) if row["log_mean"] else "–",
            between(row.get("log_low"), row.get("log_high")) or "–",
        )
        for metric, words in names.items()
        if (row := by_metric.get(metric))
    ]
    return table(("over prompts", "mean", "95 % interval", "median", "geometric mean", "95 % interval"), rows)


def _coverage(run: Run, split: str) -> list[dict]:
    """How far the interval of D can be trusted at its skew."""
    cells = where(run.summary, metric=statistics.d_metric(run.rows), control=None, unit=None).filter(pl.col("split") == split)
    for one in cells.head(1).iter_rows(named=True):
        if (found := one.get("coverage")) is not None and found < ENOUGH:
            said = f"At the skew of these {one['n']} prompts, intervals of a mean that are called 95 % held the truth in {found:.0%} of simulations; "
            return [note(said + "those of the geometric mean held it in 95 % (docs/STATISTICS.md).")]
    return []


def _weight_of_one(d: pl.DataFrame) -> list[dict]:
    """A share of D is a ratio of means, in which a prompt weighs what its D weighs: said where one prompt weighs more than LEANS."""
    of_each = d.filter(pl.col("d").is_finite()).sort("d", descending=True)
    weight = of_each["d"][0] / of_each["d"].sum() if len(of_each) > 1 and of_each["d"].sum() > 0 else 0.0
    if weight <= LEANS:
        return []
    name, middle = of_each["prompt"][0], float(of_each["d"].to_numpy()[1:].mean())
    said = f"One prompt, {visible(name)}, makes up {share(weight)} of D over all prompts: every share of D leans on it. "
    said += f"Without it D is {nats(middle)} nats."
    return [note(said)]


def _clusters(run: Run, split: str) -> list[dict]:
    """What n counts, where prompts share a cluster."""
    units = run.manifest.get("units", {}).get(split)
    if not units:
        return []
    n = sum(one["split"] == split for one in run.prompts)
    independent = n - len(units) + len(set(units.values()))
    said = (
        f"{n} {split} prompts are {independent} independent ones: those of one cluster (the same meta.cluster, or the same text) count as one, with "
        "the mean of their values, in every n, interval, p and share."
    )
    return [note(said + (f" Of fewer than {FEWEST} there is no bootstrap interval and no test." if independent < FEWEST else ""))]


def _other_splits(run: Run, reported: str) -> list[dict]:
    """D on the splits that nothing is published on: far from the reported one, the prompts are not alike."""
    cells = where(run.summary, metric=statistics.d_metric(run.rows), control=None, unit=None)
    cells = cells.filter(pl.col("split").is_not_null() & (pl.col("split") != reported)).sort("split")
    rows = [
        (r["split"], str(r["n"]), nats(r["mean"]), between(r["ci_low"], r["ci_high"]), nats(r["median"]))
        for r in cells.iter_rows(named=True)
    ]
    return [table(("split", "prompts", "D, nats", "95 % interval", "median"), rows, folded="D on the other splits")] if rows else []


def causal(run: Run) -> Section:
    """Q2, second half: the causal map, wider writes, the arms."""
    title = "Where does it matter?"
    shares = findings.site_shares(run.rows, run.summary)
    if shares.is_empty():
        return Section(id="causal", title=title, parts=[note("Patching was not measured in this run.")])
    if shares["share"].drop_nulls().is_empty():
        why = why_no_share(findings.difference(run.rows, run.summary)) or "D is not above 0, or not finite"
        said = note(f"No share of D can be given: {why}. The values in nats are in summary.parquet.")
        return Section(id="causal", title=title, parts=[said, *_kl_by_layer(run)])
    ranked, _ = findings.ranked_outputs(run.rows, run.summary)
    quiet = shares.filter(~pl.col("counts"))
    reading = "causal_map"
    caption = f"Share of D by layer and site, {shares['layer'].n_unique()} layers. {_strongest(shares)} {_peaks(run)}"
    caption += (
        f"{len(quiet)} of {len(shares)} cells lie under three noise floors." if len(quiet) else "No cell lies under three noise floors."
    )
    parts: list[Any] = [Drawn(name="causal_map", chart=figures.causal_map, caption=caption, reading=reading)]
    parts += [closer] if (closer := explorer(run)) else []
    parts.append(_top_sites(run, ranked))
    for unit in findings.units(run.rows):
        wider = findings.site_shares(run.rows, run.summary, unit=unit)
        name = "causal_map_" + "".join(letter if letter.isalnum() else "_" for letter in unit)
        text = f"The same with wider writes: {unit}. {_strongest(wider)}"
        parts.append(Drawn(name=name, chart=figures.causal_map, options={"unit": unit}, caption=text, reading=""))
    return Section(id="causal", title=title, parts=[*parts, *_kl_by_layer(run), *_arms(run, ranked), *asymmetry.parts(run)])


def _kl_by_layer(run: Run) -> list[Drawn]:
    """The same in nats, both directions, each held against its own running model."""
    found = charts_patching.cells(run.rows, run.summary)
    if found.is_empty():
        return []
    said = []
    for direction, words in ((BREAKAGE, "the tuned model is moved"), (RECOVERY, "the base is moved")):
        of_stream = found.filter(pl.col("panel") == direction).sort("value", descending=True, maintain_order=True)
        for top in of_stream.head(1).iter_rows(named=True):
            said.append(f"{words} furthest at L{top['layer']}.{top['line']}, {with_interval(top['value'], top['low'], top['high'])} nats")
    caption = f"How far each write moves the model that runs, in nats: {listed(said)}."
    return [Drawn(name="kl_by_layer", chart=charts_patching.kl_by_layer, caption=caption, reading="kl_by_layer")]


def _strongest(shares: pl.DataFrame) -> str:
    """The largest share outside the residual stream, by direction."""
    said = []
    for direction, word in ((BREAKAGE, "breakage"), (RECOVERY, "recovery")):
        single = shares.filter(pl.col("direction") == direction, pl.col("share").is_not_null())
        outputs = single.filter(~pl.col("site").is_in(STREAM))
        best = (single if outputs.is_empty() else outputs).sort("share", descending=True, maintain_order=True).head(1)
        for row in best.iter_rows(named=True):
            said.append(f"{word} {share(row['share'])} at L{row['layer']}.{row['site']}")
    return f"Largest outside the residual stream: {listed(said)}." if said else ""


def _peaks(run: Run) -> str:
    """The outputs among which the strongest lies, by direction."""
    found = {word: findings.peak(run.rows, direction) for direction, word in ((BREAKAGE, "breakage"), (RECOVERY, "recovery"))}
    said = [f"{word} {listed(one[1][:4])}{f' and {len(one[1]) - 4} more' * (len(one[1]) > 4)}" for word, one in found.items() if one]
    return f"The strongest output lies, with 95 %, among: {'; '.join(said)}. " if said else ""


def _top_sites(run: Run, ranked: pl.DataFrame) -> dict:
    cka = {row["name"]: row for row in findings.similarity_by_site(run.rows, run.summary).iter_rows(named=True)}
    rows = []
    felt = ranked.filter(pl.max_horizontal(pl.col("^(breakage|recovery)$").abs()) >= 0.005)
    for row in felt.head(TOP_SITES).iter_rows(named=True):
        similar = cka.get(row["name"], {"cka": None, "low": None, "high": None})
        ends = (between(row[f"{word}_low"], row[f"{word}_high"], digits=3) for word in ("breakage", "recovery"))
        shown = [text for word, end in zip(("breakage", "recovery"), ends, strict=True) for text in (share(row[word], 3), end)]
        rows.append((row["name"], *shown, share(similar["cka"], 3), between(similar["low"], similar["high"], digits=3)))
    columns = ("site", "breakage", "95 %", "recovery", "95 %", "CKA", "95 %")
    left = len(ranked) - len(rows)
    title = (
        "The strongest single sites (shares of D)" if not left else f"The strongest single sites (shares of D); {left} others are weaker"
    )
    return table(columns, rows, title=title)


def _arms(run: Run, ranked: pl.DataFrame) -> list[Any]:
    """The arms by layer, and in numbers at the strongest site."""
    if ranked.is_empty():
        return []
    top = ranked.row(0, named=True)
    here = findings.site_cells(run.rows, run.summary, layer=top["layer"], site=top["site"])
    metrics = {direction: statistics.effect_metric(run.rows, direction) for direction in (BREAKAGE, RECOVERY)}
    cells_of = (here.filter(pl.col("direction") == direction, pl.col("metric") == metric) for direction, metric in metrics.items())
    own, gained = ({row["arm"]: row for row in cells.iter_rows(named=True)} for cells in cells_of)
    if not own:
        return []
    rows = []
    for arm, words in ARMS.items():
        if arm not in own:
            continue
        row, other = own[arm], gained.get(arm, {"share": None})
        cells = (nats(row["mean"]), between(row["ci_low"], row["ci_high"]), share(row["drop"], 3), share(other["share"], 3))
        rows.append((f"{arm}: {words}", *cells))
    columns = ("written state", "KL in tuned, nats", "95 %", "drop", "recovery in base")
    stream = next((site for site in reversed(STREAM) if site in run.summary["site"].drop_nulls().unique().to_list()), None)
    sites = [site for site in (stream, top["site"]) if site]
    drawn = Drawn(
        name="arms_by_layer",
        chart=figures.arms_by_layer,
        options={"sites": sites},
        caption=_arms_caption(own, top["name"]),
        reading="arms_by_layer",
    )
    return [drawn, table(columns, rows, title=f"What is written at {top['name']}")] if len(own) > 1 else []


def _arms_caption(own: dict[str, dict], name: str) -> str:
    """Identity against the trivial guesses, at the strongest site."""
    said = [f"{arm} {nats(own[arm]['mean'])}" for arm in ARMS if arm in own and arm != "oracle"]
    caption = (
        f"KL of the edited tuned model from the unedited one, by layer and way of guessing its state. At {name}, in nats: {listed(said)}."
    )
    floor = own["identity"]["floor"] if "identity" in own else None
    return caption + (f" The noise floor is {nats(floor)} nats." if floor else "")


def agreement(run: Run) -> Section:
    """CKA against effect."""
    title = "Does similarity say where it matters?"
    points = findings.similarity_against_effect(run.rows, run.summary)
    if points.is_empty():
        return Section(
            id="agreement", title=title, parts=[note("This needs similarity and patching at the same sites, and an effect to share.")]
        )
    word = "breakage" if points["direction"][0] == BREAKAGE else "recovery"
    caption = f"{len(points)} sites: CKA against {word}."
    for name, part in (
        ("outputs of attention and MLPs", ~pl.col("site").is_in(STREAM)),
        ("the residual stream", pl.col("site").is_in(STREAM)),
    ):
        chosen = points.filter(part).with_columns(pl.col("cka", "share").round(4))  # rounding noise must not be ranked
        if chosen["cka"].n_unique() > 2 and chosen["share"].n_unique() > 2:
            rho = float(spearmanr(chosen["cka"].to_numpy(), chosen["share"].to_numpy()).statistic)
            caption += f" Rank correlation over {len(chosen)} {'sites of ' if name.startswith('the') else ''}{name}: {share(rho)}."
    piled = points.filter(pl.col("cka") > 0.9995, pl.col("share").abs() < 0.005)
    if len(piled) > 1:
        caption += f" {len(piled)} sites lie on top of one another at CKA 1, share 0."
    drawn = Drawn(name="cka_against_effect", chart=figures.cka_against_effect, caption=caption, reading="cka_against_effect")
    return Section(id="agreement", title=title, parts=[drawn])
