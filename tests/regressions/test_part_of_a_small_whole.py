""" "Heads 5 and 4 have 65 %" was a headline, of a block whose heads all together have 5 % of D."""

import re

import pytest

from mechdiff.measures.catalogue import NUMBERS
from mechdiff.measures.heads import words as heads_words
from mechdiff.statistics import summary as statistics_summary
from regressions.test_enough_without_an_interval import heads
from said import refused, verdict

SHARES = [0.3, 0.65, 0.7, 0.8, 0.9]


def test_the_whole_stands_beside_the_part() -> None:
    table, manifest = heads(SHARES, SHARES, whole=0.8)
    sentence = verdict(table, statistics_summary.summarise(table, NUMBERS), manifest)[-1]
    assert re.search(
        r"Of what all 6 heads of L2 do together \(the base's, patched into the tuned model, raise KL by (79|80|81)\.\d % \[", sentence
    )
    assert "L2H5 and L2H4 have 6" in sentence


@pytest.mark.parametrize("whole", [0.05, 0.19])
def test_a_part_of_a_whole_under_a_fifth_of_d_is_no_headline_but_stands_in_its_section(whole: float) -> None:
    table, manifest = heads(SHARES, SHARES, whole=whole)
    summary = statistics_summary.summarise(table, NUMBERS)
    assert not any("H5" in sentence for sentence in verdict(table, summary, manifest))
    (why,) = refused(table, summary, manifest)
    assert why.endswith(f"the whole that it is a part of has {100 * whole:.0f} % of D")
    (said,) = heads_words.which_heads(table, summary, manifest)
    assert re.search(rf"raise KL by {100 * whole:.0f}\.\d % \[95 % CI: ", said)
    assert "L2H5 and L2H4 have 6" in said
