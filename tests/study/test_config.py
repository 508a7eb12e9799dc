"""A study file becomes a StudyConfig that is known to be right, or one clear error; its identity is what it asks."""

import contextlib
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mechdiff.errors import StudyError
from mechdiff.measures.catalogue import EXPERIMENTS, load_study, make_study
from mechdiff.measures.patching.plan import PatchingOptions
from mechdiff.measures.similarity.plan import SimilarityOptions
from mechdiff.study import config
from mechdiff.study.config import RunOptions, StudyConfig, config_hash, content_hashes, study_yaml
from mechdiff.study.options import Options

LEAST: dict[str, Any] = {"pair": {"base": "org/base", "tuned": "org/tuned"}, "prompts": {"file": "prompts.jsonl"}}
STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))


def _study(**changed: Any) -> StudyConfig:
    return make_study({**LEAST, **changed})


def test_the_least_study_runs_every_measure_with_its_defaults(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("pair: {base: org/base, tuned: org/tuned}\nprompts: {file: prompts.jsonl}\n")
    study, text = load_study(path)
    assert text == path.read_text()
    assert list(study.measures) == list(EXPERIMENTS)
    assert (study.seed, study.dtype, study.prompts.policy, study.prompts.template, study.prompts.position) == (
        *(0, "float32", "auto"),
        *("tuned", "decision"),
    )


def test_the_study_file_of_the_design() -> None:
    study = _study(measures=["divergence", {"similarity": {"sites": ["resid_post"], "layers": "all"}}, {"patching": None}])
    assert study.asked(SimilarityOptions) is not None
    assert study.asked(SimilarityOptions).sites == ("resid_post",)
    assert study.asked(PatchingOptions) is not None
    assert list(_study(measures=["divergence"]).measures) == ["divergence"]


class _Colours(Options):
    paths = {"palette": "*.txt"}  # noqa: RUF012

    palette: str | None = None
    depth: int = 2


def test_a_study_knows_only_the_measures_that_are_handed_in(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("x")
    (tmp_path / "warm").mkdir()
    (tmp_path / "warm" / "red.txt").write_text("red")
    told = {**LEAST, "prompts": {"file": "p.jsonl"}, "measures": [{"colours": {"palette": "warm"}}]}
    study = config.make_study(told, {"colours": _Colours}, folder=tmp_path)
    assert study.asked(_Colours) == study.measures["colours"] == _Colours(palette=str(tmp_path / "warm"))
    assert study.asked(PatchingOptions) is None
    before = _hash(study)
    (tmp_path / "warm" / "blue.txt").write_text("blue")
    assert _hash(study) != before
    with pytest.raises(StudyError, match=r"measures: given 'patching', expected some of colours"):
        config.make_study({**LEAST, "measures": ["patching"]}, {"colours": _Colours})
    with pytest.raises(StudyError, match=r"measures\.colours\.dept: unknown key; known here: palette, depth\. Did you mean depth\?"):
        config.make_study({**LEAST, "measures": [{"colours": {"dept": 1}}]}, {"colours": _Colours})


def test_paths_count_from_the_study_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "my studies" / "tuned").mkdir(parents=True)
    path = tmp_path / "my studies" / "ұзақ.yaml"
    path.write_text(
        "pair: {base: org/base, tuned: tuned, alternatives: [./gone, ~/kept]}\n"
        "prompts: {report: ../data/r.jsonl, fit: ~/f.jsonl, select: /abs/s.jsonl, template: chat.jinja}\n"
    )
    study, _ = load_study(path)
    assert (study.pair.base, study.pair.tuned) == ("org/base", str(tmp_path / "my studies" / "tuned"))
    assert study.pair.alternatives == (str(tmp_path / "my studies" / "gone"), str(tmp_path / "home" / "kept"))
    assert study.prompts.sources() == {
        "fit": str(tmp_path / "home" / "f.jsonl"),
        "select": "/abs/s.jsonl",
        "report": str(tmp_path / "data" / "r.jsonl"),
    }
    assert study.prompts.template == str(tmp_path / "my studies" / "chat.jinja")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"mesures": []},
            r"study: mesures: unknown key; known here: pair, prompts, preset, seed, dtype, answers, measures\. Did you mean measures\?",
        ),
        ({"pair": {"base": "a", "tunned": "b", "tuned": "c"}}, r"pair\.tunned: unknown key.*Did you mean tuned\?"),
        ({"pair": {"base": "a"}}, r"pair\.tuned: missing; expected a Hub id"),
        ({"pair": {"base": "", "tuned": "b"}}, r"pair\.base: given '', expected a text that is not empty"),
        ({"pair": {"base": "a", "tuned": ["b", "c"]}}, r"pair\.tuned: given \['b', 'c'\], expected one model or adapter\. Several"),
        ({"pair": {"base": 7, "tuned": "b"}}, r"pair\.base: given 7, expected a text"),
        ({"pair": {"base": "\ud800", "tuned": "b"}}, r"pair\.base: given .*UTF-8"),
        ({"pair": {"base": "a", "tuned": "b", "alternatives": [1]}}, r"pair\.alternatives\[0\]: given 1, expected a text"),
        (
            {"pair": {"base": "a", "tuned": "b", "shape": {"n_layers": 0}}},
            r"pair\.shape\.n_layers: given 0, expected greater than or equal to 1",
        ),
        ({"pair": None}, r"pair: given None, expected a mapping"),
        ({"prompts": {}}, r"prompts: given 'no prompts', expected file"),
        ({"prompts": {"file": "a", "fit": "b"}}, r"prompts: given \['file', 'fit'\], expected either file"),
        ({"prompts": {"file": "a", "policy": "nativ"}}, r"prompts\.policy: given 'nativ', expected .*Did you mean native\?"),
        ({"prompts": {"file": "a", "policy": "raw", "template": "base"}}, r"prompts: given 'base', expected no template"),
        ({"prompts": {"file": "a", "policy": "raw", "system": "Be kind."}}, r"prompts: given 'Be kind\.', expected no system"),
        ({"prompts": {"file": "a", "position": "last"}}, r"prompts\.position: given 'last', expected 'decision' or 'last_user'"),
        ({"seed": True}, r"seed: given True, expected a whole number"),
        ({"seed": -1}, r"seed: given -1, expected greater than or equal to 0"),
        ({"dtype": "fp16"}, r"dtype: given 'fp16', expected 'auto', 'float32', 'bfloat16', 'float16', 'int8' or 'nf4'"),
        ({"measures": []}, r"measures: given \[\], expected a list of some of divergence"),
        ({"measures": {"patching": {}}}, r"measures: given .*, expected a list"),
        ({"measures": ["patchng"]}, r"measures: given 'patchng', expected some of .*Did you mean patching\?"),
        ({"measures": [{"patching": {}, "similarity": {}}]}, r"measures: given .*, expected a measure's name, or one"),
        ({"measures": ["patching", {"patching": {}}]}, r"measures: given 'patching', expected each measure once"),
        ({"measures": [{"patching": [1]}]}, r"measures\.patching: given \[1\], expected a mapping"),
        ({"measures": [{"patching": {"arm": []}}]}, r"measures\.patching\.arm: unknown key; .*Did you mean arms\?"),
        (
            {"measures": [{"patching": {"sites": ["resid_pst"]}}]},
            r"measures\.patching\.sites: given 'resid_pst', .*Did you mean resid_post\?",
        ),
        ({"measures": [{"divergence": {"layers": "all"}}]}, r"measures\.divergence\.layers: unknown key"),
        ({1: 2}, r"given 1, expected a name as key"),
    ],
)
def test_what_is_wrong_is_said(changed: dict[Any, Any], said: str) -> None:
    with pytest.raises(StudyError, match=said):
        make_study({**LEAST, **changed})


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(StudyError) as caught:
        _study(seed="x", dtype="y", extra=1)
    assert str(caught.value).splitlines()[0] == "study: 3 faults"
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]] == ["seed", "dtype", "extra"]


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "empty"), ("# only a comment\n", "empty"), ("{}\n", "empty"), ("- a\n", "expected a mapping"), ("7", "mapping")],
)
def test_files_that_hold_no_study(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(content)
    with pytest.raises(StudyError, match=rf"study\.yaml: .*{said}"):
        load_study(path)


def test_a_study_written_out_is_the_same_study() -> None:
    study = _study(prompts={"report": "/r.jsonl", "policy": "raw"}, measures=[{"patching": {"layers": [3, 1], "windows": [2]}}])
    assert make_study(yaml.safe_load(study_yaml(study))) == study
    assert make_study(study.model_dump(mode="json")) == study


# --- identity


def _files(folder: Path, text: str = '{"text": "a"}\n') -> StudyConfig:
    folder.mkdir(exist_ok=True)
    (folder / "p.jsonl").write_text(text)
    return make_study({**LEAST, "prompts": {"file": "p.jsonl"}}, folder=folder)


def _hash(study: StudyConfig) -> str:
    return config_hash(study, content_hashes(study))


def test_identity_is_the_prompts_content_not_their_place(tmp_path: Path) -> None:
    here, there, other = _files(tmp_path / "a"), _files(tmp_path / "b"), _files(tmp_path / "c", '{"text": "b"}\n')
    assert _hash(here) == _hash(there)
    assert _hash(here) != _hash(other)


def test_identity_counts_a_models_content_where_a_caller_gives_it(tmp_path: Path) -> None:
    study, contents = _files(tmp_path), content_hashes(_files(tmp_path))
    assert config_hash(study, {**contents, "org/base": "1"}) != config_hash(study, {**contents, "org/base": "2"})


def test_identity_ignores_what_only_plan_reads_and_the_order_of_measures(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("x")
    shape = {"n_layers": 2, "d_model": 8, "n_heads": 2, "n_kv_heads": 1, "d_mlp": 16, "vocab": 32}
    prompts = {"file": str(tmp_path / "p.jsonl")}
    plain = _study(prompts=prompts, measures=["divergence", "patching"])
    assert _hash(plain) == _hash(_study(prompts=prompts, measures=["patching", "divergence"], pair={**LEAST["pair"], "shape": shape}))
    for changed in ({"seed": 1}, {"dtype": "bfloat16"}, {"measures": ["divergence"]}, {"prompts": {**prompts, "policy": "raw"}}):
        assert _hash(plain) != _hash(_study(**{"prompts": prompts, "measures": ["divergence", "patching"], **changed}))


@settings(max_examples=60)
@given(seed=st.integers(0, 2**63 - 1), arms=st.permutations(["identity", "shift", "oracle"]), shuffled=st.randoms(use_true_random=False))
def test_identity_does_not_see_the_order_of_keys_or_of_lists(seed: int, arms: list[str], shuffled: random.Random) -> None:
    def mixed(mapping: dict[str, Any]) -> dict[str, Any]:
        items = [(name, mixed(content) if isinstance(content, dict) else content) for name, content in mapping.items()]
        shuffled.shuffle(items)
        return dict(items)

    def data(order: list[str]) -> dict[str, Any]:
        return {**LEAST, "seed": seed, "measures": [{"patching": {"arms": order, "layers": [0, 2]}}]}

    assert config_hash(make_study(mixed(data(arms))), {}) == config_hash(make_study(data(["identity", "shift", "oracle"])), {})


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    study = make_study({**LEAST, "prompts": {"report": "gone.jsonl"}}, folder=tmp_path)
    with pytest.raises(StudyError, match=r"prompts\.report: given '.*gone\.jsonl', expected a file that can be read"):
        content_hashes(study)
    (tmp_path / "p.jsonl").write_text("x")
    study = make_study({**LEAST, "prompts": {"file": "p.jsonl", "template": "tunned"}}, folder=tmp_path)
    with pytest.raises(StudyError, match=r"prompts\.template: given .*Did you mean tuned\?"):
        content_hashes(study)


# --- fuzz: no crash, only StudyError

_SECTIONS = st.sampled_from(("pair", "prompts", "measures", "patching", "similarity", "layers", "sites"))
_WORDS = _SECTIONS | st.sampled_from(("a", "all", "file", "fit", "base", "tuned"))
_LEAVES = _WORDS | st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
_DATA = st.recursive(_LEAVES, lambda part: st.lists(part, max_size=3) | st.dictionaries(_WORDS, part, max_size=4), max_leaves=12)


@settings(max_examples=100)
@given(data=st.fixed_dictionaries({}, optional=dict.fromkeys(("pair", "prompts", "seed", "dtype", "measures", "x"), _DATA)))
def test_any_content_is_a_study_or_a_study_error(data: dict[str, Any]) -> None:
    for content in (data, {**LEAST, "measures": data.get("measures", ["divergence"])}):
        with contextlib.suppress(StudyError):
            assert isinstance(make_study(content), StudyConfig)


# --- how


def test_run_options_are_checked() -> None:
    assert RunOptions().engine == "auto"
    with pytest.raises(StudyError, match=r"memory: given 'bth', expected one of auto, both, one\. Did you mean both\?"):
        RunOptions(memory="bth")  # type: ignore[arg-type]
    with pytest.raises(StudyError, match="engine: given 'slow'"):
        RunOptions(engine="slow")  # type: ignore[arg-type]
    with pytest.raises(StudyError, match="max_rows: given 0, expected a whole number from 1"):
        RunOptions(max_rows=0)
    with pytest.raises(StudyError, match="are of a Ray cluster: give --ray auto, local or an address too"):
        RunOptions(workers=2)
    assert RunOptions(ray="auto", workers=2).workers == 2


# --- the studies that ship


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_shipped_studies(path: Path) -> None:
    study, text = load_study(path)
    assert len(text.splitlines()) <= 25
    assert study.pair.shape is not None
    assert study.pair.alternatives
    assert set(study.prompts.sources()) == {"fit", "select", "report"}
    assert Path(study.prompts.template).is_file()
    assert len(_hash(study)) == 64


def test_twelve_studies_ship() -> None:
    assert len(STUDIES) == 12, "four pairs, and a study a question of the original for either of its kinds"
