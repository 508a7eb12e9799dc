"""Transport asks whether a linear map from one model's activations to the other's carries the change."""

from mechdiff.measures.measure import Later, Measure

TRANSPORT = Measure(
    name="transport",
    question="Can a linear map carry the change?",
    # what the study reads
    experiment=None,
    # what statistics read
    numbers=None,
    # what the page says
    chapter=None,
    # what several runs are compared in
    between_runs=None,
    # a second way
    again=Later("mechdiff.measures.transport.verify:again"),
)
