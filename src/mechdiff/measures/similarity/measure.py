"""Similarity asks at which sites the two models' activations differ."""

from pathlib import Path

from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.measure import Later, Measure
from mechdiff.measures.similarity import plan
from mechdiff.report.parts import Chapter
from mechdiff.statistics.metric import Numbers, metrics
from mechdiff.study.experiment import Budget, Experiment, Stage

SIMILARITY = Measure(
    name="similarity",
    question="Where do their activations differ?",
    # what the study reads
    experiment=Experiment(
        options=plan.SimilarityOptions,
        cells=plan.similarity_cells,
        needs=plan.needs,
        stages=(Stage(name="similarity", compute=Later("mechdiff.measures.similarity.compute:compare_states")),),
        few={"permutations": 200},
        demo=Budget(seconds=5),
    ),
    # what statistics read
    numbers=Numbers(
        metrics=(
            *metrics("cka", "cka_biased", "mutual_knn", unit="ratio", nearer="higher"),
            *metrics("cka_without_top3", "cka_normed", unit="ratio"),
            *metrics("procrustes_distance", unit="ratio", nearer="lower"),
            *metrics("participation_ratio_base", "participation_ratio_tuned", "same_basis_change", unit="ratio"),
        ),
        refine=Later("mechdiff.measures.similarity.findings:with_jackknife"),
    ),
    # what the page says
    chapter=Chapter(
        sections=(Later("mechdiff.measures.similarity.page:similarity"),),
        lead=Later("mechdiff.measures.similarity.words:lead"),
        clause_of=3,
        reading=Path(__file__).with_name("reading.html"),
        place=5,
        strips=Later("mechdiff.measures.similarity.tiles:strips"),
    ),
    # what several runs are compared in
    between_runs=BetweenRuns(),
    # a second way
    again=Later("mechdiff.measures.similarity.verify:again"),
)
