"""Attribution asks what gradients say of each head, and holds it against true patches."""

from mechdiff.measures.measure import Later, Measure

ATTRIBUTION = Measure(
    name="attribution",
    question="What do gradients say of the heads?",
    # what the study reads
    experiment=None,
    # what statistics read
    numbers=None,
    # what the page says
    chapter=None,
    # what several runs are compared in
    between_runs=None,
    # a second way
    again=Later("mechdiff.measures.attribution.verify:again"),
)
