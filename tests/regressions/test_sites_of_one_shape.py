""" "At 0 of 90 sites they have the same shape (CKA 1)" stood above "5 sites have 1.000 to three digits"; and the lowest of 90 CKAs was reported on
the prompts that chose it, up to "1.160"."""

import re

import numpy as np
import polars as pl

from mechdiff.measures.catalogue import NUMBERS
from mechdiff.measures.similarity import findings as similarity_findings
from mechdiff.measures.similarity import page as similarity_page
from mechdiff.measures.similarity import words as similarity_words
from mechdiff.report.parts import Drawn, Run
from mechdiff.rows import rows
from mechdiff.statistics import summary as statistics_summary
from report.small_runs import names

SITES = 20


def similarities(cka: np.ndarray, split: str, *, spread: float = 0.002) -> pl.DataFrame:
    """CKA of each block's `resid_post`, with delete-one values that vary by so much."""
    parts, prompts = [], names(split, 12)
    for layer, value in enumerate(cka):
        place = {"measure": "similarity", "split": split, "layer": layer, "site": "resid_post"}
        without = value + spread * np.linspace(-1, 1, len(prompts))
        parts += [rows([value], metric="cka", **place), rows(without, metric="cka_without_prompt", prompt=prompts, **place)]
    return pl.concat(parts, rechunk=True)


def said(table: pl.DataFrame) -> tuple[str, str]:
    """The lead and the caption of the section."""
    summary = statistics_summary.summarise(table, NUMBERS)
    drawn = next(
        part for part in similarity_page.similarity(Run(rows=table, summary=summary, manifest={})).parts if isinstance(part, Drawn)
    )
    (lead,) = similarity_words.how_similar(table, summary)
    return lead, drawn.caption


def test_lead_and_caption_count_sites_of_one_shape_alike_to_three_digits() -> None:
    cka = np.linspace(0.9, 0.99, SITES)
    cka[:5] = [0.9996, 0.9999, 1.0, 0.99951, 0.9997]
    lead, caption = said(similarities(cka, "report"))
    for text in (lead, caption):
        assert f"at 5 of {SITES} sites it is 1.000 to three digits" in text
        assert "same shape" not in text
        assert len(re.findall(r"at \d+ of \d+ sites", text)) == 1


def test_the_lowest_site_is_chosen_on_other_prompts() -> None:
    report, select = np.full(SITES, 0.95), np.full(SITES, 0.95)
    report[3], select[3], select[7], report[7] = 0.80, 0.95, 0.85, 0.93
    lead, caption = said(pl.concat([similarities(report, "report"), similarities(select, "select")]))
    for text in (lead, caption):
        assert "at L7.resid_post (lowest CKA on the validation prompts; on these others may be lower): CKA 0.930" in text
        assert "L3" not in text


def test_without_other_prompts_the_lowest_of_many_is_said_to_be_biased() -> None:
    lead, caption = said(similarities(np.linspace(0.8, 0.99, SITES), "report"))
    for text in (lead, caption):
        assert f"at L0.resid_post (of {SITES} sites, chosen on these prompts, so optimistically biased): CKA 0.800" in text


def test_no_interval_of_a_cka_passes_1() -> None:
    lead, caption = said(similarities(np.linspace(0.9, 0.99, SITES), "report", spread=0.05))
    for text in (lead, caption):
        (high,) = re.findall(r"CKA [\d.]+ \[(?:95 % CI: )?[\d.−]+, ([\d.]+)\]", text)
        assert float(high) <= 1


def test_lowest_of_many_alike_is_not_lower_on_other_prompts() -> None:
    random, picked, fresh = np.random.default_rng(0), [], []
    for _ in range(40):
        table = pl.concat([similarities(0.9 + random.normal(0, 0.02, SITES), split) for split in ("report", "select")])
        summary = statistics_summary.summarise(table, NUMBERS)
        found = similarity_findings.least_similar(table, summary)
        assert found is not None
        fresh.append(found.cka)
        picked.append(similarity_findings.similarity_by_site(table, summary)["cka"].to_numpy().min())
    assert abs(np.mean(fresh) - 0.9) < 0.01
    assert np.mean(picked) < 0.87, "the lowest of the reported ones is low by chance"
