"""This measure asks which attention heads carry the change."""

from pathlib import Path

from mechdiff.comparison.between_runs import BetweenRuns
from mechdiff.measures.heads import plan
from mechdiff.measures.measure import Later, Measure
from mechdiff.report.parts import Chapter
from mechdiff.statistics.metric import Numbers, metrics, of_edited_runs
from mechdiff.study.experiment import Budget, Experiment, Stage

HEADS = Measure(
    name="heads",
    question="Which heads carry it?",
    # what the study reads
    experiment=Experiment(
        options=plan.HeadsOptions,
        cells=plan.heads_cells,
        needs=plan.needs,
        proof=Later("mechdiff.measures.heads.bench:proof"),
        record=Later("mechdiff.measures.heads.network:heads_record"),
        stages=(
            Stage(name="heads", compute=Later("mechdiff.measures.heads.compute:every_head")),
            Stage(
                name="heads_over_answers",
                compute=Later("mechdiff.measures.heads.compute:heads_over_answers"),
                needs=("capture", "answer_states"),
            ),
            Stage(
                name="head_orders",
                compute=Later("mechdiff.measures.heads.compute:head_orders"),
                needs=("capture", "heads"),
            ),
            Stage(
                name="head_sets",
                compute=Later("mechdiff.measures.heads.compute:head_sets"),
                needs=("capture", "heads", "head_orders@same", "attribution@same"),
            ),
            Stage(
                name="head_network",
                compute=Later("mechdiff.measures.heads.network:head_network"),
                needs=("capture", "heads", "attribution@same"),
            ),
            Stage(name="looks", compute=Later("mechdiff.measures.heads.network:looks"), needs=("capture", "heads")),
            Stage(
                name="attention",
                compute=Later("mechdiff.measures.heads.network:attention"),
                needs=("capture", "heads", "looks"),
            ),
        ),
        total_effect=True,
        few={"draws": 5, "network_draws": 1, "null_edits": 2},
        demo=Budget(
            seconds=100,
            options={
                "hot": 1,
                "answer_layers": 10,
                "select_prompts": 4,
                "draws": 20,
                "network_draws": 5,
                "attention_prompts": 4,
                "null_edits": 5,
                "exact_up_to": 8,
                "permutations": 16,
            },
        ),
    ),
    # what statistics read
    numbers=Numbers(
        metrics=(
            *of_edited_runs(answers=True),
            *metrics("shapley_nats", "fisher_nats", "attention_js_nats", unit="nats"),
        ),
        edited=True,
    ),
    # what the page says
    chapter=Chapter(
        sections=(Later("mechdiff.measures.heads.page:heads"),),
        lead=Later("mechdiff.measures.heads.words:lead"),
        over_answers=Later("mechdiff.measures.heads.over_answers:lead"),
        needs="shares",
        clause=Later("mechdiff.measures.heads.words:clause"),
        clause_of=5,
        reading=Path(__file__).with_name("reading.html"),
        place=11,
    ),
    # what several runs are compared in
    between_runs=BetweenRuns(
        place=7,
        quantities=Later("mechdiff.measures.heads.compare:quantities"),
        axis=Later("mechdiff.measures.heads.compare:axis"),
        locates=True,
    ),
    # a second way
    again=Later("mechdiff.measures.heads.verify:again"),
)
