"""Rank asks how many dimensions the change of activations has."""

from pathlib import Path

from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.measure import Later, Measure
from mechdiff.measures.patching.selection import CLOSER
from mechdiff.measures.rank import plan
from mechdiff.report.parts import Chapter
from mechdiff.statistics.metric import Numbers, metrics, of_edited_runs
from mechdiff.study.experiment import Budget, Experiment, Stage

RANK = Measure(
    name="rank",
    question="How many dimensions does the change have?",
    # what the study reads
    experiment=Experiment(
        options=plan.RankOptions,
        cells=plan.rank_cells,
        needs=plan.needs,
        stages=(
            Stage(name="rank", compute=Later("mechdiff.measures.rank.compute:ranks")),
            Stage(name="fisher", compute=Later("mechdiff.measures.rank.compute:fisher"), needs=CLOSER),
            Stage(name="rank_curve", compute=Later("mechdiff.measures.rank.compute:rank_curve"), needs=(*CLOSER, "fisher")),
        ),
        total_effect=True,
        demo=Budget(seconds=15, options={"fisher_samples": 2, "strengths": [0.5]}, few_sites=True),
    ),
    # what statistics read
    numbers=Numbers(
        metrics=(
            *of_edited_runs(drops=True),
            *metrics("r2_change", "r2_change_cv", "r2_change_cv_se", "fisher_agreement", unit="ratio"),
            *metrics("change_squared", "change_varying_squared", unit="ratio"),
            *metrics("rank_chosen", "rank_best", "rank_uncentred", "rank_limit", "rank_prompts", unit="count"),
        ),
        edited=True,
    ),
    # what the page says
    chapter=Chapter(
        sections=(Later("mechdiff.measures.rank.page:rank"),),
        lead=Later("mechdiff.measures.rank.words:lead"),
        needs="effect",
        clause=Later("mechdiff.measures.rank.words:clause"),
        clause_of=4,
        reading=Path(__file__).with_name("reading.html"),
        place=9,
    ),
    # what several runs are compared in
    between_runs=BetweenRuns(
        place=6,
        quantities=Later("mechdiff.measures.rank.compare:quantities"),
        axis=Later("mechdiff.measures.rank.compare:axis"),
    ),
    # a second way
    again=Later("mechdiff.measures.rank.verify:again"),
)
