"""Off-manifold asks whether the running model has activations like those that are written into it."""

from pathlib import Path

from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.measure import Later, Measure
from mechdiff.measures.off_manifold import plan
from mechdiff.measures.patching.selection import CLOSER
from mechdiff.report.parts import Chapter
from mechdiff.statistics.metric import Numbers, metrics
from mechdiff.study.experiment import Budget, Experiment, Stage

OFF_MANIFOLD = Measure(
    name="off_manifold",
    question="Does the running model have activations like those patched in?",
    # what the study reads
    experiment=Experiment(
        options=plan.OffManifoldOptions,
        cells=plan.cells,
        record=Later("mechdiff.measures.off_manifold.compute:clusters_record"),
        stages=(
            Stage(
                name="off_manifold_answers",
                compute=Later("mechdiff.measures.off_manifold.compute:held_against_own_along_answers"),
                needs=("answer_states",),
            ),
            Stage(name="off_manifold", compute=Later("mechdiff.measures.off_manifold.compute:held_against_own"), needs=(*CLOSER, "fits")),
        ),
        demo=Budget(seconds=10),
    ),
    # what statistics read
    numbers=Numbers(metrics=metrics("mahalanobis_sd", "norm_ratio", "mahalanobis_answer_sd", "norm_ratio_answer", unit="ratio")),
    # what the page says
    chapter=Chapter(
        sections=(Later("mechdiff.measures.off_manifold.page:off_manifold"),),
        lead=Later("mechdiff.measures.off_manifold.words:lead"),
        needs="effect",
        clause_of=3,
        reading=Path(__file__).with_name("reading.html"),
        place=10.2,
    ),
    # what several runs are compared in
    between_runs=BetweenRuns(),
    # a second way
    again=Later("mechdiff.measures.off_manifold.verify:again"),
)
