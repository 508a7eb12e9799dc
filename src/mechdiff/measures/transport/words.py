"""The page's sentences say what one fixed vector and linear maps carry over."""

import numpy as np
import polars as pl

from mechdiff.measures.transport import answers_page, findings
from mechdiff.measures.transport.findings import Beaten, Carried, Part
from mechdiff.report.headlines import Candidate
from mechdiff.report.parts import Run
from mechdiff.report.phrasing import share, with_interval
from mechdiff.report.spoken import in_words

CONSTANTS = {
    "shift": "adding one fixed vector (the training prompts' mean activation difference) to the base",
    "mean": "patching one fixed activation (the tuned model's mean over the training prompts) into the base",
}
SURE = 0.05


def lead(run: Run) -> list[str]:
    """Whether one vector, or a map, carries it; also over whole answers."""
    return [*carried(run.rows, run.summary), *answers_page.lead(run)]


def clause(run: Run) -> list[Candidate]:
    """What one fixed vector recovers, for the verdict."""
    best = findings.carried(run.rows, run.summary)
    if best is None:
        return []
    text = constant(best) if best.trivial else f"At {best.name} {_map(best)}"
    text = text.replace(best.name, f"{best.name} ({_selected(best)})", 1)
    tested, last = _above_0(best.trivial or best.best), best.name == findings.readout_site(run.rows)
    return [Candidate(text=f"{text[0].lower()}{text[1:]}", n=best.n, tested=tested, by_construction=last)]


def carried(rows: pl.DataFrame, summary: pl.DataFrame) -> list[str]:
    """What one fixed vector recovers at the chosen site, beside the patch itself and the best linear map; and whether maps do better anywhere."""
    best = findings.carried(rows, summary)
    if best is None:
        return []
    first = constant(best) if best.trivial else f"At {best.name} {_map(best)}"
    sentences = [f"{first} ({_chosen(best)})."]
    if best.trivial:
        sentences.append(f"{_map(best)[0].upper()}{_map(best)[1:]}{_gain(best)}.")
    return [*sentences, *_beaten(findings.beaten(rows))]


def constant(best: Carried) -> str:
    """What one fixed vector recovers, of what the patch itself does there; with its sign and interval."""
    assert best.trivial
    said = f"At {best.name} {CONSTANTS[best.trivial.arm]} recovers {_interval(best.trivial)} of D"
    return said if best.ceiling is None else f"{said}, and patching in the tuned activation itself {_interval(best.ceiling)}"


def _map(best: Carried) -> str:
    return f"the best linear map there, {best.arm}, recovers {_interval(best.best)}"


def _gain(best: Carried) -> str:
    if best.gain is None or best.gain_p is None:
        return ""
    if np.isnan(best.gain_p):
        return f", {_interval(best.gain)} more than the vector ({in_words(best.gain_p)})"
    if best.gain_p > SURE or not best.gain.low or best.gain.low * (best.gain.high or 0) <= 0:
        return f", not significantly different from the vector: {_interval(best.gain)} more, {in_words(best.gain_p)}"
    return f", significantly different from the vector: {_interval(best.gain)} more, {in_words(best.gain_p)}"


def _chosen(best: Carried) -> str:
    if best.chosen_on == "select":
        return "site and conditions selected on the validation prompts"
    return "site and conditions selected on these prompts, so optimistically biased"


def _selected(best: Carried) -> str:
    """The same in the verdict's words."""
    return "selected on other prompts" if best.chosen_on == "select" else _chosen(best)


def _interval(part: Part) -> str:
    return with_interval(part.share, part.low, part.high, digits=2)


def _above_0(part: Part) -> bool:
    return part.low is not None and part.low > 0


def _beaten(found: Beaten | None) -> list[str]:
    if found is None:
        return []
    where = f"of the {found.sites} sites where the tuned activation recovers at least {share(findings.WORTH)} of D"
    if not found.tested:
        return [
            f"Whether a linear map recovers more than the best fixed vector at any {where} is not tested: too few prompts for this skew."
        ]
    how = f"p ≤ 0.05, corrected for all {found.maps} maps there"
    if not found.better:
        return [f"No linear map recovers significantly more than the best fixed vector at any {where} ({how})."]
    best = found.best or {}
    gain = with_interval(best["gain"], best["low"], best["high"], digits=2)
    return [
        f"A linear map recovers more than the best fixed vector at {found.better} {where} ({how}); the largest gain is {gain} of D, "
        f"at {best['name']} with {best['arm']} (band over all maps)."
    ]


def comes_closer(found: Beaten | None) -> str:
    """At how many sites a fitted map comes closer to the tuned activation than what learns nothing; empty where that cannot be tested."""
    if found is None:
        return ""
    if not found.tested:
        return "Whether a fitted map comes closer than what learns nothing is not tested: too few prompts for this skew."
    said = f"At {found.better} of {found.sites} sites a fitted map comes closer than the best of identity, mean difference and mean activation "
    return f"{said}(p ≤ 0.05, corrected for all {found.maps} maps)."
