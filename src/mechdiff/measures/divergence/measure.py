"""The divergence asks how far apart the two models' predictions lie, and at which token."""

from mechdiff.measures.measure import Later, Measure

DIVERGENCE = Measure(
    name="divergence",
    question="How differently do they predict, and at which token?",
    # what the study reads
    experiment=None,
    # what statistics read
    numbers=None,
    # what the page says
    chapter=None,
    # what several runs are compared in
    between_runs=None,
    # a second way
    again=Later("mechdiff.measures.divergence.verify:again"),
)
