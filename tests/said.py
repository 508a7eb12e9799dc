"""What the page says of loose tables: the verdict, what did not pass its gates, and the sentences at the head of each measure's first section."""

import polars as pl

from mechdiff.measures.catalogue import CHAPTERS
from mechdiff.report import sections
from mechdiff.report import verdict as report_verdict
from mechdiff.report.parts import Run


def verdict(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict) -> list[str]:
    return report_verdict.verdict(Run(rows=rows, summary=summary, manifest=manifest), CHAPTERS)


def refused(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict) -> list[str]:
    return report_verdict.refused(Run(rows=rows, summary=summary, manifest=manifest), CHAPTERS)


def leads(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict) -> dict[str, list[str]]:
    """By measure; of those that have something to say."""
    run = Run(rows=rows, summary=summary, manifest=manifest)
    said = {name: sections.lead(run, chapter) for name, chapter in CHAPTERS.items()}
    return {name: sentences for name, sentences in said.items() if sentences}
