"""What each measure can be told."""

import pytest
from pydantic import ValidationError

from mechdiff.architectures.sites import KINDS
from mechdiff.errors import StudyError
from mechdiff.labels import CROSSED
from mechdiff.measures.factorial.plan import FactorialOptions
from mechdiff.measures.patching.plan import PatchingOptions
from mechdiff.measures.similarity.plan import SimilarityOptions
from mechdiff.study.options import ARMS


def test_defaults() -> None:
    assert SimilarityOptions().sites == ("attn_out", "mlp_out", "resid_post")
    assert PatchingOptions().arms == ("identity", "shift", "mean", "resample")
    assert PatchingOptions().directions == CROSSED
    assert PatchingOptions().positions == ("decision",)
    assert PatchingOptions().windows == ()


def test_a_factorial_at_all_positions_is_split_at_few_evenly_spaced_layers() -> None:
    given = FactorialOptions()
    assert given.layers_at("decision", 30) == tuple(range(30))
    assert given.layers_at("all", 30) == (2, 7, 12, 17, 22, 27)
    assert given.layers_at("all", 4) == (0, 1, 2, 3)
    assert FactorialOptions(layers=[3, 5]).layers_at("all", 30) == (3, 5)


def test_defaults_are_in_the_order_that_a_check_gives() -> None:
    given = PatchingOptions()
    assert PatchingOptions.model_validate(given.model_dump()) == given
    assert SimilarityOptions.model_validate(SimilarityOptions().model_dump(mode="json")) == SimilarityOptions()


def test_the_order_of_a_list_changes_nothing() -> None:
    one = PatchingOptions.model_validate(
        {
            "sites": ["mlp_out", "resid_pre"],
            "arms": ["oracle", "identity"],
            "layers": [5, 1],
            "positions": ["all", "last_12", "last_4", "decision"],
        }
    )
    assert one.sites == ("resid_pre", "mlp_out")
    assert one.arms == ("identity", "oracle")
    assert one.layers == (1, 5)
    assert one.positions == ("decision", "last_4", "last_12", "all")


@pytest.mark.parametrize(
    ("given", "directions"),
    [
        ("both", CROSSED),
        ("base<-tuned", ("base<-tuned",)),
        (["base<-tuned", "tuned<-base"], CROSSED),
        (["tuned<-base"], CROSSED[:1]),
    ],
)
def test_directions(given: object, directions: tuple[str, ...]) -> None:
    assert PatchingOptions.model_validate({"directions": given}).directions == directions


def test_every_kind_of_site_and_every_arm_can_be_asked_for() -> None:
    assert PatchingOptions.model_validate({"sites": list(KINDS), "arms": list(ARMS)}).sites == KINDS


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sites": ["resid_pst"]}, "some of resid_pre"),
        ({"sites": []}, "at least one of"),
        ({"sites": "resid_post"}, "a list"),
        ({"sites": ["resid_post", "resid_post"]}, "each item once"),
        ({"arms": ["identty"]}, "some of identity"),
        ({"arms": [["identity"]]}, "some of identity"),
        ({"layers": "some"}, "all, or a list"),
        ({"layers": []}, "all, or a list"),
        ({"layers": [-1]}, "whole numbers from 0"),
        ({"layers": [True]}, "whole numbers from 0"),
        ({"layers": [1, 1]}, "each item once"),
        ({"layers": [0, 0]}, "each item once"),
        ({"layers": [1], "stride": 2}, "stride only with layers: all"),
        ({"stride": 0}, "greater than or equal to 1"),
        ({"directions": "back"}, "both, tuned<-base or base<-tuned"),
        ({"directions": []}, "at least one of"),
        ({"positions": ["last_1"]}, "decision, last_2"),
        ({"positions": []}, "decision, last_2"),
        ({"positions": [4]}, "decision, last_2"),
        ({"windows": [1]}, "whole numbers from 2"),
        ({"windows": [2.0]}, "whole numbers from 2"),
        ({"colour": 1}, "Extra inputs"),
    ],
)
def test_what_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        PatchingOptions.model_validate(options)


def test_layer_numbers() -> None:
    assert PatchingOptions().layer_numbers(4) == (0, 1, 2, 3)
    assert PatchingOptions(stride=3).layer_numbers(8) == (0, 3, 6)
    assert PatchingOptions(layers=(1, 3)).layer_numbers(4) == (1, 3)
    with pytest.raises(StudyError, match=r"layers \[4\] are asked for; the model has 4, numbered 0 to 3"):
        PatchingOptions(layers=(1, 4)).layer_numbers(4)


def test_options_never_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        PatchingOptions().stride = 2  # type: ignore[misc]
