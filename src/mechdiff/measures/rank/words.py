"""The page's sentences say the rank of the change, as far as so many prompts can tell it."""

import polars as pl

from mechdiff import terms
from mechdiff.measures.rank import findings
from mechdiff.measures.rank.findings import Seen
from mechdiff.report.headlines import Candidate
from mechdiff.report.parts import Run
from mechdiff.report.phrasing import decimal, with_interval


def clause(run: Run) -> list[Candidate]:
    """The rank of the change, for the verdict."""
    one = findings.strongest(run.rows, run.summary)
    if one is None:
        return []
    return [Candidate(text=rank_of(one), n=one.prompts, needed=findings.ENOUGH * max(one.rank, 1), tested=one.says == "rank")]


def lead(run: Run) -> list[str]:
    """How many dimensions the change has."""
    return how_many_dimensions(run.rows, run.summary)


def how_many_dimensions(rows: pl.DataFrame, summary: pl.DataFrame) -> list[str]:
    """The rank of the change at the site that sentences speak of, or why it cannot be told; and how much of it varies from prompt to prompt."""
    one = findings.strongest(rows, summary)
    return [] if one is None else [f"{text[0].upper()}{text[1:]}." for text in (rank_of(one), how_it_varies(one)) if text]


def rank_of(one: Seen) -> str:
    """What is said of the rank at one site."""
    r2 = f"R² {decimal(one.r2)} on the {terms.of_split(one.split)} prompts"
    if one.says == "rank":
        extra = "" if one.uncentred is None else f"; {one.uncentred} with the constant counted"
        dimensions = "1 dimension" if one.rank == 1 else f"{one.rank} dimensions"
        return f"regression sees {dimensions} of the change at {one.name} ({r2}; {one.prompts} training prompts{extra}; smaller ones may be missed)"
    if one.says == "at least":
        return f"the change at {one.name} has at least rank {one.rank} ({one.prompts} training prompts can show {one.limit}; {r2})"
    if one.says == "unseen":
        return f"with {one.prompts} training prompts regression sees no dimension of the change at {one.name} that the base's activation predicts"
    return f"too few prompts to tell the rank of the change at {one.name} ({one.prompts}; at most {one.limit} could be seen; {r2})"


def how_it_varies(one: Seen) -> str:
    """Whether the change is the same on every prompt, from the share of it that varies; empty where that was not measured."""
    if one.varies is None:
        return ""
    part = f"{with_interval(*one.varies, digits=2)} of its squared length varies from prompt to prompt"
    return f"it is the same vector on every prompt: {part}" if one.constant else part
