"""Steering asks whether one vector, or a few directions, switch the change on or off."""

from mechdiff.measures.measure import Later, Measure

STEERING = Measure(
    name="steering",
    question="Can one vector switch it on or off?",
    # what the study reads
    experiment=None,
    # what statistics read
    numbers=None,
    # what the page says
    chapter=None,
    # what several runs are compared in
    between_runs=None,
    # a second way
    again=Later("mechdiff.measures.steering.verify:again"),
)
