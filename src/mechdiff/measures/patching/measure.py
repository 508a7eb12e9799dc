"""Patching asks where the difference between two models' activations matters for what they predict."""

from pathlib import Path

from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.measure import Later, Measure
from mechdiff.measures.patching import plan
from mechdiff.report.parts import Chapter, Feed
from mechdiff.statistics.metric import Numbers, of_edited_runs
from mechdiff.study.experiment import Budget, Experiment, Stage

PATCHING = Measure(
    name="patching",
    question="Where does the difference matter?",
    # what the study reads
    experiment=Experiment(
        options=plan.PatchingOptions,
        cells=plan.patching_cells,
        needs=plan.needs,
        record=Later("mechdiff.measures.patching.hot:selection_record"),
        stages=(
            Stage(name="patching", compute=Later("mechdiff.measures.patching.compute:patch"), needs=("capture", "answer_states")),
            Stage(
                name="divergent_patching",
                compute=Later("mechdiff.measures.patching.compute:patch_at_divergence"),
                needs=("capture", "answer_states"),
            ),
            Stage(
                name="pairs",
                compute=Later("mechdiff.measures.patching.compute:write_pairs"),
                needs=("capture", "patching/select"),
            ),
            Stage(name="position_map", compute=Later("mechdiff.measures.patching.positions:position_map")),
        ),
        total_effect=True,
        demo=Budget(seconds=90, options={"sites": ["attn_out", "mlp_out", "resid_post"], "map_prompts": 5, "map_layers": 4}),
    ),
    # what statistics read
    numbers=Numbers(
        metrics=of_edited_runs(drops=True, answers=True),
        edited=True,
    ),
    # what the page says
    chapter=Chapter(
        sections=(
            Later("mechdiff.measures.patching.page:patching"),
            Later("mechdiff.measures.patching.page:agreement"),
        ),
        lead=Later("mechdiff.measures.patching.words:lead"),
        needs="shares",
        clause=Later("mechdiff.measures.patching.words:clause"),
        over_answers=Later("mechdiff.measures.patching.answers:alone"),
        clause_over_answers=Later("mechdiff.measures.patching.answers:clause"),
        clause_of=3,
        reading=Path(__file__).with_name("reading.html"),
        place=6,
        feeds={"where": Feed(says=Later("mechdiff.measures.patching.words:place_in_brief"), place=1)},
        strips=Later("mechdiff.measures.patching.words:strips"),
    ),
    # what several runs are compared in
    between_runs=BetweenRuns(
        place=2,
        quantities=Later("mechdiff.measures.patching.compare:quantities"),
        profiles=Later("mechdiff.measures.patching.compare:profiles"),
        axis=Later("mechdiff.measures.patching.compare:axis"),
        locates=True,
        arms=True,
        across_bases=True,
    ),
    # a second way
    again=Later("mechdiff.measures.patching.verify:again"),
)
