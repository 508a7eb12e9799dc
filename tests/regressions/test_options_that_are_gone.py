"""What a user saw: a study, or a run, of an earlier version named `factorial: {swaps: 10}` and was told of an unknown key, not what to do; such a run
could not be verified at all."""

from typing import Any

import pytest

from mechdiff.errors import StudyError
from mechdiff.measures.catalogue import OPTIONS, make_study
from mechdiff.measures.factorial.plan import FactorialOptions
from mechdiff.study.config import of_this_version

STUDY: dict[str, Any] = {
    "pair": {"base": "a", "tuned": "b"},
    "prompts": {"file": "p.jsonl"},
    "measures": [{"factorial": {"swaps": 10, "stride": 2}}],
}


def test_an_option_that_is_gone_is_said_to_be_gone_and_what_to_do() -> None:
    with pytest.raises(StudyError, match=r"measures\.factorial\.swaps: this option is gone.*leave it out"):
        make_study(STUDY)


def test_a_run_that_recorded_it_is_read_without_it() -> None:
    study = make_study(of_this_version(STUDY, OPTIONS))
    assert study.asked(FactorialOptions)
    assert study.asked(FactorialOptions).stride == 2
    assert STUDY["measures"][0]["factorial"]["swaps"] == 10  # the record itself is left as it is


@pytest.mark.parametrize("measures", [[], ["factorial"], [{"factorial": {"stride": 2}}, "weights"], [{"divergence": {"continuation": 4}}]])
def test_a_run_that_never_named_it_is_left_as_it_is(measures: list) -> None:
    assert of_this_version({"measures": measures}, OPTIONS) == {"measures": measures}
