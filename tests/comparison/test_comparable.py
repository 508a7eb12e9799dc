"""What may be compared: each refusal by name, each mark, and names that stay apart."""

import json
import shutil
from pathlib import Path

import pytest

from mechdiff.comparison import comparable
from mechdiff.errors import RunError
from mechdiff.measures.catalogue import BETWEEN_RUNS
from report.planted_compare import Planted, manifest_of, planted, write_planted


@pytest.fixture(scope="module")
def table():
    return planted(Planted())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, table) -> Path:
    return write_planted(tmp_path_factory.mktemp("finished") / "a", Planted(), table=table)


@pytest.fixture
def run_of(tmp_path: Path, finished: Path):
    """A run's folder by this name, with this record."""

    def made(name: str, manifest: dict | None = None) -> Path:
        folder = shutil.copytree(finished, tmp_path / name, dirs_exist_ok=True)
        (folder / "manifest.json").write_text(json.dumps(manifest_of(folder.name) if manifest is None else manifest))
        return folder

    return made


@pytest.fixture
def two(run_of):
    """Two runs; what `changed` says of the second's record is another."""

    def made(**changed: object) -> list[Path]:
        manifest = json.loads(json.dumps(manifest_of("b")))
        for path, value in changed.items():
            *parents, last = path.split("__")
            place = manifest
            for name in parents:
                place = place[name]
            place[last] = value
        return [run_of("a"), run_of("b", manifest)]

    return made


def checked(folders: list[Path], **options: bool) -> list[str]:
    runs = comparable.load(folders)
    return [mark.field for mark in (*comparable.refuse(runs, **options), *comparable.differing(runs, BETWEEN_RUNS))]


def test_runs_that_are_alike_have_no_marks(two) -> None:
    assert checked(two()) == []


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("prompts__policy", "raw", "prompt policy: a same_text, b raw"),
        ("prompts__position", "last_user", "position: a decision, b last_user"),
        ("pair__base__files", {"model.gguf": "8a" * 32}, "base model: a 7f7f7f7f7f7f, b 8a8a8a8a8a8a"),
        ("pair__base__n_layers", 12, "layers: a 6, b 12"),
    ],
)
def test_what_changes_every_number_is_refused_by_name(two, field: str, value: object, named: str) -> None:
    with pytest.raises(RunError, match="cannot be compared") as raised:
        checked(two(**{field: value}))
    assert named in str(raised.value)
    assert ("--across-bases" in str(raised.value)) == field.startswith("pair")


def test_other_bases_pass_where_that_is_asked_for_and_nothing_else_does(two) -> None:
    assert checked(two(pair__base__files={"model.gguf": "8a" * 32}), across_bases=True) == ["base model"]
    with pytest.raises(RunError, match="position"):
        checked(two(pair__base__files={"model.gguf": "8a" * 32}, prompts__position="last_user"), across_bases=True)


def test_a_tokenizer_file_of_another_version_is_the_same_base(two) -> None:
    assert checked(two(pair__base__files={"model.gguf": "7f" * 32, "tokenizer_config.json": "00" * 32})) == []


@pytest.mark.parametrize(
    ("field", "value", "mark"),
    [
        ("prompts__template", "base", "template"),
        ("dtype", "bfloat16", "dtype"),
        ("prompts__n", {"fit": 8, "select": 16, "report": 16}, "prompts"),
        ("quick", True, "quick run"),
        ("engine__name", "full", "engine"),
    ],
)
def test_what_changes_how_far_to_trust_it_is_marked(two, field: str, value: object, mark: str) -> None:
    folders = two(**{field: value})
    (only,) = [one for one in comparable.differing(comparable.load(folders), BETWEEN_RUNS) if one.field == mark]
    assert len(only.values) == 2
    assert only.values[0] != only.values[1]


def test_two_quick_runs_are_marked_too(run_of) -> None:
    folders = [run_of(name, manifest_of(name, quick=True)) for name in "ab"]
    assert checked(folders) == ["quick run"]


def test_other_texts_measures_and_few_prompts_are_marked(tmp_path: Path, run_of) -> None:
    small = Planted(n=6, texts="others")
    other = planted(small)
    folders = [
        run_of("a"),
        write_planted(tmp_path / "b", small, table=other.filter(other["measure"] != "grafting")),
    ]
    assert checked(folders) == ["measures", "reported prompts", "few prompts"]


def test_shared_token_divergence_is_marked(two, tmp_path: Path, table) -> None:
    import polars as pl

    renamed = table.with_columns(metric=pl.col("metric").replace("kl_tuned_base_nats", "kl_shared_nats"))
    folders = [two()[0], write_planted(tmp_path / "c", Planted(), table=renamed)]
    assert checked(folders) == ["D is"]


def test_what_is_no_pair_of_runs_says_so(two, tmp_path: Path, table) -> None:
    a, b = two()
    with pytest.raises(RunError, match="given 1 run, expected two"):
        comparable.load([a])
    with pytest.raises(RunError, match="given twice"):
        comparable.load([a, b, tmp_path / "." / "a"])
    with pytest.raises(RunError, match="no such folder"):
        comparable.load([a, tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="no mechdiff run"):
        comparable.load([a, tmp_path / "empty"])
    (b / "prompts.jsonl").write_text("{not json")
    with pytest.raises(RunError, match=r"prompts\.jsonl: cannot be read"):
        comparable.load([a, b])
    bare = write_planted(tmp_path / "bare", Planted(), table=table.filter(table["measure"] == "patching"))
    with pytest.raises(RunError, match="bare: D was not measured"):
        checked([a, bare])


def test_runs_of_one_fine_tune_go_by_their_folders(run_of) -> None:
    folders = [run_of(name, manifest_of("same")) for name in ("first", "second")]
    assert [run.name for run in comparable.load(folders)] == ["same (first)", "same (second)"]
    deep = [run_of(f"{one}/run", manifest_of("same")) for one in "xy"]
    names = [run.name for run in comparable.load(deep)]
    assert len(set(names)) == 2


def test_without_its_prompts_a_run_pairs_with_none(two) -> None:
    folders = two()
    for folder in folders:
        (folder / "prompts.jsonl").unlink()
    one, other = comparable.load(folders)
    assert not comparable.report_texts(one) & comparable.report_texts(other)
