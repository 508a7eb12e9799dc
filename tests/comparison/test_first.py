"""A comparison opens with each run's own first answers, and says how runs differ only where they do."""

import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mechdiff import api
from mechdiff.comparison import first
from mechdiff.comparison.compare import Comparison, beside, sections
from mechdiff.measures.catalogue import BETWEEN_RUNS, CHAPTERS
from mechdiff.report.overview.overview import TITLES
from report.planted_compare import RANK_8, SPREAD, Planted, manifest_of, write_planted


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("first runs")


@pytest.fixture(scope="module")
def made(folder: Path) -> Comparison:
    one = write_planted(folder / "local", Planted())
    other = write_planted(folder / "spread", Planted(sites=SPREAD, ranks=RANK_8, seed=1, texts="other", strength=0.4))
    (one / "report.html").write_text("the page of local")
    return api.compare(one, other, out=folder / "compared")


def test_each_column_is_what_the_run_says_of_itself(made: Comparison, folder: Path) -> None:
    page = unescape(re.sub(r"<[^>]+>", "", made.report().read_text(encoding="utf-8")))
    for column in made.columns:
        own = api.open_run(folder / column.name).overview()
        assert [one.text for one in column.overview.tiles] == [one.text for one in own.tiles]
        for tile in own.tiles:
            assert tile.text in page
    text = made.report().read_text(encoding="utf-8")
    assert [title for title in TITLES.values() if f'<th scope="row">{title}</th>' not in text] == []


def test_a_page_that_is_there_is_linked_and_no_other(made: Comparison) -> None:
    text = made.report().read_text(encoding="utf-8")
    assert '<a href="../local/report.html">local</a>' in text
    assert (made.path / "../local/report.html").resolve().read_text() == "the page of local"
    assert "../spread/report.html" not in text
    assert {column.name: column.report for column in made.columns} == {"local": "../local/report.html", "spread": ""}


def test_how_they_differ_is_what_was_planted(made: Comparison) -> None:
    size, width, place = made.plainly()
    d = {column.name: column.overview.tiles[0].numbers[0].value for column in made.columns}
    assert size.startswith("local changes the next token more than spread: 3.00 against 0.379 nats, ")
    assert size.endswith(f" {d['local'] / d['spread']:.2g} times as much.")
    assert width == "spread's change is spread over more attention and MLP outputs than local's: about 12.0 against 1.00."
    assert place == "local's change comes later: half of it is recovered at L4, spread's at L3."
    data = json.loads(json.dumps(made.data(), allow_nan=False))
    assert data["differences"] == made.plainly()
    assert [run["name"] for run in data["runs"]] == ["local", "spread"]


def test_two_runs_of_one_truth_have_no_such_sentence(folder: Path) -> None:
    runs = [write_planted(folder / name, Planted(sites=SPREAD, n=12, seed=seed, texts=name), manifest=manifest_of(name))
            for name, seed in (("one", 5), ("two", 6))]  # fmt: skip
    assert first.plainly(beside(runs, BETWEEN_RUNS)) == []


def test_a_difference_among_many_numbers_is_said_in_one_of_twenty_comparisons_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Holm: of numbers that do not differ, any is said where the least p times their number is 0.05 or less."""
    from types import SimpleNamespace

    random, said = np.random.default_rng(0), 0
    for _ in range(400):
        pairs = [SimpleNamespace(contrast=SimpleNamespace(p=p), apart=p <= 0.05, silent="") for p in random.uniform(size=5)]
        said += bool(first._apart(pairs))  # type: ignore[arg-type]
    assert 8 <= said <= 32  # 400 at 5 %: 20, within three standard deviations


def test_caveats_come_last_and_several_runs_have_a_matrix(made: Comparison, folder: Path) -> None:
    assert [one.id for one in sections(made.content, BETWEEN_RUNS)][-1] == "unlike"
    assert first.matrices(made.content) == []
    third = write_planted(folder / "middle", Planted(sites={(at, "mlp_out"): 0.3 for at in (1, 3, 5)}, seed=3, texts="third"))
    three = beside([folder / "local", folder / "spread", third], BETWEEN_RUNS)
    assert first.plainly(three)[1] == "Over how many attention and MLP outputs it is spread: spread (12.0) > middle (2.99) > local (1.00)."
    tables = {one["title"]: one for one in first.matrices(three)}
    sites = tables["Over how many attention and MLP outputs it is spread"]
    assert sites["columns"] == ["row less column", "local", "spread", "middle"]
    held = {(pair.one, pair.other): pair.contrast for pair in three.held if pair.key == ("where", "effective sites")}
    cells = {(row[0], name): cell for row in sites["rows"] for name, cell in zip(sites["columns"][1:], row[1:], strict=True)}
    for (one, other), contrast in held.items():
        there, back = (float(cells[pair].split("\n")[0].replace("−", "-").removeprefix("≈ ")) for pair in ((one, other), (other, one)))
        assert there == pytest.approx(contrast.value, rel=5e-3)
        assert back == -there
    assert cells["local", "local"].startswith("1.00")
    size = tables["How much the next token changes, nats"]
    assert size["rows"][0][3].startswith("≈ "), "local and middle are as large as one another"
    assert [one.id for one in sections(three, BETWEEN_RUNS)][1] == "each"


def test_a_run_without_an_effect_is_left_out_of_sentences(folder: Path, made: Comparison) -> None:
    still = write_planted(folder / "still", Planted(strength=1e-10))
    assert first.plainly(beside([folder / "local", still], BETWEEN_RUNS)) == []
    columns = first.columns(beside([folder / "local", still], BETWEEN_RUNS), CHAPTERS, folder)
    assert columns[1].overview.tiles[0].text.startswith("None. ")
    assert pl.DataFrame(columns[1].overview.data()["tiles"])["measured"][0]
