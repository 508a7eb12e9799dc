"""Presets fill in what a study leaves open, say what they cannot answer, and are no part of what a study is."""

from pathlib import Path

import pytest
import yaml

from mechdiff.errors import StudyError
from mechdiff.measures.catalogue import MEASURES, OPTIONS, make_study
from mechdiff.study.config import config_hash, study_yaml
from mechdiff.study.presets import PRESETS

PAIR = {"pair": {"base": "a", "tuned": "b"}, "prompts": {"file": "p.jsonl"}}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_study_and_can_be_written_out(name: str) -> None:
    study = make_study({**PAIR, "preset": name})
    assert study.preset == name
    assert list(study.measures) == list(PRESETS[name].measures(OPTIONS))
    for measure, told in PRESETS[name].measures(OPTIONS).items():
        written = study.measures[measure].model_dump(mode="json")
        assert told == {key: written[key] for key in told}
    again = make_study(yaml.safe_load(study_yaml(study)))
    assert again == study
    bare = make_study({key: value for key, value in yaml.safe_load(study_yaml(study)).items() if key != "preset"})
    assert bare.preset is None
    assert config_hash(bare, {}) == config_hash(study, {}), "what a study is called is not what it is"


def test_every_measure_is_in_paper_and_no_preset_names_another() -> None:
    assert list(PRESETS["paper"].measures(OPTIONS)) == [one.name for one in MEASURES]
    assert {preset for kind in OPTIONS.values() for preset in kind.presets} == set(PRESETS)


def test_each_preset_but_paper_asks_for_more_than_the_one_before_or_for_something_else() -> None:
    quick, standard, audit = (set(PRESETS[name].measures(OPTIONS)) for name in ("quick", "standard", "audit"))
    assert quick < standard
    assert quick < audit
    assert not audit <= standard


def test_what_is_given_wins_key_by_key() -> None:
    study = make_study(
        {
            **PAIR, "preset": "quick", "prompts": {"file": "p.jsonl", "at_most": 3}, "answers": {"prompts": 2},
            "measures": ["weights", {"behaviour": {"n_probes": 7}}, "factorial"],
        }
    )  # fmt: skip
    assert study.prompts.at_most == {"fit": 3, "select": 3, "report": 3}
    assert (study.answers.prompts, study.answers.tokens) == (2, 0)
    assert list(study.measures) == ["weights", "factorial", "behaviour"]
    behaviour = study.measures["behaviour"].model_dump()
    told = PRESETS["quick"].measures(OPTIONS)
    assert (behaviour["n_probes"], behaviour["max_tokens"]) == (7, told["behaviour"]["max_tokens"])
    assert study.measures["weights"].model_dump()["input_prompts"] == told["weights"]["input_prompts"]


def test_all_prompts_are_test_prompts_where_a_preset_fits_and_chooses_nothing() -> None:
    """Of twelve prompts `quick` held ten for what it does not do, and two answers said nothing of a fine-tune whose every answer is changed."""
    assert make_study({**PAIR, "preset": "quick"}).prompts.sources() == {"report": str(Path("p.jsonl").resolve())}
    assert make_study({**PAIR, "preset": "quick", "measures": ["weights", "patching"]}).prompts.sources() == {
        "file": str(Path("p.jsonl").resolve())
    }
    assert make_study({**PAIR, "preset": "standard"}).prompts.sources() == {"file": str(Path("p.jsonl").resolve())}
    with pytest.raises(StudyError, match="either file"):
        make_study({**PAIR, "preset": "quick", "prompts": {"file": "p.jsonl", "report": "q.jsonl"}})


@pytest.mark.parametrize("given", ["fast", 3, ["quick"]])
def test_an_unknown_preset_is_refused_in_words(given: object) -> None:
    with pytest.raises(StudyError, match="preset: given"):
        make_study({**PAIR, "preset": given})
    if given == "fast":
        with pytest.raises(StudyError, match="expected one of quick, standard, paper, audit"):
            make_study({**PAIR, "preset": given})


def test_what_cannot_be_read_beside_a_preset_is_said_as_without_one() -> None:
    with pytest.raises(StudyError, match="measures"):
        make_study({**PAIR, "preset": "quick", "measures": "weights"})
    with pytest.raises(StudyError, match="prompts"):
        make_study({**PAIR, "preset": "quick", "prompts": "p.jsonl"})
    with pytest.raises(StudyError, match="no_such"):
        make_study({**PAIR, "preset": "quick", "measures": [{"weights": {"no_such": 1}}]})


def test_paths_of_measures_count_from_the_study(tmp_path: Path) -> None:
    study = make_study({**PAIR, "preset": "audit", "measures": [{"panel": {"also": "mine.jsonl"}}]}, folder=tmp_path)
    assert study.measures["panel"].files() == {"also": str(tmp_path / "mine.jsonl")}
    assert study.measures["panel"].model_dump()["per_group"] == PRESETS["audit"].measures(OPTIONS)["panel"]["per_group"]


def test_the_page_on_use_has_each_preset_as_it_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "USAGE.md").read_text(encoding="utf-8")
    for name, one in PRESETS.items():
        asked = list(one.measures(OPTIONS))
        measures = "all" if len(asked) == len(OPTIONS) else ", ".join(f"`{measure}`" for measure in asked)
        assert f"| `{name}` | {one.purpose} | {measures} | {one.time} | {'; '.join(one.cannot)} |" in page
