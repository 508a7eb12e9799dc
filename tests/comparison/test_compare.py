"""Comparisons of planted fine-tunes: the truth is told, nothing is told that is not there, and the page is whole."""

import re
from pathlib import Path

import polars as pl
import pytest

from mechdiff.api import compare
from mechdiff.comparison import contrasts
from mechdiff.comparison.compare import Comparison, beside, default_name, sections
from mechdiff.comparison.compared import Compared
from mechdiff.comparison.words import verdict
from mechdiff.errors import RunError
from mechdiff.measures.catalogue import BETWEEN_RUNS
from mechdiff.measures.grafting import compare as grafting_compare
from mechdiff.measures.patching import compare as patching_compare
from report.planted_compare import LOCAL, N_LAYERS, RANK_8, SPREAD, Planted, manifest_of, planted, write_planted
from report.test_page import Page

pytestmark = pytest.mark.ci

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def local(folder: Path) -> Path:
    return write_planted(folder / "local", Planted())


@pytest.fixture(scope="module")
def spread_out(folder: Path) -> Path:
    return write_planted(folder / "spread", Planted(sites=SPREAD, ranks=RANK_8, seed=1, texts="other"))


@pytest.fixture(scope="module")
def made(folder: Path, local: Path, spread_out: Path) -> Comparison:
    return compare(local, spread_out, out=folder / "compared")


def table_of(of: Compared) -> pl.DataFrame:
    return contrasts.tidy(of.found, of.held)


def number(table: pl.DataFrame, run: str, quantity: str, against: str | None = None) -> dict:
    return table.filter(pl.col("run") == run, pl.col("quantity") == quantity, pl.col("against").eq_missing(against)).row(0, named=True)


def test_the_verdict_tells_the_planted_truth(made: Comparison) -> None:
    said = made.verdict()
    assert said[0] == "spread is more distributed and takes more directions than local."
    assert len(said) <= 5
    table = made.table()
    for quantity, few, many in (("effective sites", 1, 12), ("effective layers", 1, 6), ("effective modules, grafted alone", 1, 12)):
        one, other = number(table, "local", quantity), number(table, "spread", quantity)
        assert one["value"] == pytest.approx(few, abs=0.02)
        assert other["low"] - 0.3 < many
        assert other["value"] > 0.9 * many
        difference = number(table, "local", quantity, "spread")
        assert difference["value"] == pytest.approx(one["value"] - other["value"], rel=0.05)
        assert difference["high"] < 0
        assert difference["q"] < 1e-3
    ranks = [number(table, run, grafting_compare.DIMENSIONS.name)["value"] for run in ("local", "spread")]
    assert ranks[0] == pytest.approx(1, abs=0.05)
    assert ranks[1] > 6.5


def test_profiles_are_in_the_table_and_differ_where_it_was_planted(made: Comparison) -> None:
    table = made.table().filter(pl.col("quantity") == "share of D, attn_out, KL increase")
    assert table.filter(pl.col("against").is_null()).select("run", "layer").n_unique() == 2 * N_LAYERS
    shares = table.filter(pl.col("against").is_null(), pl.col("layer") == 4).select("run", "value").rows()
    assert dict(shares) == pytest.approx({"local": 0.95, "spread": 0.1}, rel=0.2)
    apart = table.filter(pl.col("against") == "spread").sort("layer")
    assert apart["value"].to_list() == pytest.approx([*[-0.1] * 4, 0.85, -0.1], rel=0.3)
    assert apart.filter(pl.col("low") > 0)["layer"].to_list() == [4]


def test_half_of_d_is_passed_where_it_was_planted(made: Comparison) -> None:
    table = made.table()
    for direction in ("KL increase", "recovery"):
        assert number(table, "local", f"half of D passed, {direction}")["value"] == 4
        assert number(table, "spread", f"half of D passed, {direction}")["value"] == 3
    assert number(table, "local", "modules for 0.9 of D, added greedily")["value"] == 1
    assert number(table, "spread", "modules for 0.9 of D, added greedily")["value"] == 11


def test_two_runs_of_one_truth_are_not_told_apart(folder: Path) -> None:
    runs = [
        write_planted(folder / name, Planted(sites=SPREAD, ranks=RANK_8, n=12, seed=seed, texts=name), manifest=manifest_of(name))
        for name, seed in (("one", 5), ("two", 6))
    ]
    said = verdict(beside(runs, BETWEEN_RUNS))
    assert said[0] == "one and two do not differ significantly, neither in how distributed they are nor in the number of their directions."
    assert not any("more distributed" in one or "more directions" in one for one in said)
    assert "(minimum detectable difference " in said[1]


def test_the_same_texts_pair_and_other_texts_do_not(folder: Path, local: Path) -> None:
    again = write_planted(folder / "again", Planted(seed=9))
    paired = table_of(beside([local, again], BETWEEN_RUNS))
    assert number(paired, "local", "D", "again")["where"] == "paired"
    assert number(paired, "local", "D", "again")["n"] == "16"
    other = write_planted(folder / "other", Planted(seed=9, texts="elsewhere"))
    assert number(table_of(beside([local, other], BETWEEN_RUNS)), "local", "D", "other")["where"] == "unpaired"


def test_what_one_run_lacks_is_left_out_and_said(folder: Path, local: Path) -> None:
    table = planted(Planted(sites=SPREAD, seed=2))
    bare = write_planted(folder / "bare", Planted(), table=table.filter(pl.col("measure") != "grafting"))
    found = beside([local, bare], BETWEEN_RUNS)
    assert table_of(found).filter(pl.col("against").is_not_null(), pl.col("axis") == "weights").is_empty()
    assert "bare is more distributed than local; the number of their directions was not measured in both." in verdict(found)
    notes = [
        part["text"]
        for section in sections(found, BETWEEN_RUNS)
        for part in section.parts
        if isinstance(part, dict) and part["kind"] == "note"
    ]
    assert "No ranks in bare: not measured, or no effect was found." in notes
    assert "No heads in local and bare: not measured, or no effect was found." in notes


def test_without_an_effect_there_is_nothing_to_compare(folder: Path, local: Path) -> None:
    still = write_planted(folder / "still", Planted(strength=1e-10))
    found = beside([local, still], BETWEEN_RUNS)
    said = verdict(found)
    assert said[0].startswith("There is no effect to compare in still (D = ")
    assert "nothing to compare it with" in said[1]
    assert table_of(found).filter(pl.col("against").is_not_null(), pl.col("axis") == "where").is_empty()


def test_three_runs_stand_in_order_or_are_not_set_apart(folder: Path, local: Path, spread_out: Path) -> None:
    middle = write_planted(folder / "middle", Planted(sites={(at, "mlp_out"): 0.3 for at in (1, 3, 5)}, seed=3, texts="third"))
    assert verdict(beside([local, spread_out, middle], BETWEEN_RUNS))[0] == "From local to distributed: local, middle, spread."
    twin = write_planted(folder / "twin", Planted(sites=SPREAD, ranks=RANK_8, seed=7, texts="fourth"))
    said = verdict(beside([local, spread_out, twin], BETWEEN_RUNS))
    assert said[0] == "Of these 3, most local is local; the others are not set apart."
    assert "not significantly different: spread and twin" in said[1]


def test_across_bases_only_shares_of_what_there_is(folder: Path, local: Path) -> None:
    manifest = manifest_of("elsewhere")
    manifest["pair"]["base"] |= {"files": {"model.gguf": "00" * 32}, "n_layers": N_LAYERS}
    other = write_planted(folder / "elsewhere", Planted(sites=SPREAD, ranks=RANK_8, seed=4), manifest=manifest)
    with pytest.raises(RunError, match="--across-bases"):
        compare(local, other, out=folder / "refused")
    assert not (folder / "refused").exists()
    found = beside([local, other], BETWEEN_RUNS, across_bases=True)
    table = table_of(found)
    assert set(table["axis"]) == {"where", "weights", "rank"}
    assert set(table.filter(pl.col("axis") != "rank")["unit"]) == {"share of parts", "share of depth"}
    assert number(table, "local", "effective sites")["value"] == pytest.approx(1 / 12, rel=0.02)
    assert [section.id for section in sections(found, BETWEEN_RUNS)] == ["local", "where", "unlike"]
    assert verdict(found)[0] == "elsewhere is more distributed and takes more directions than local."


def test_the_page_is_whole_and_loads_nothing(made: Comparison) -> None:
    text = made.report().read_text(encoding="utf-8")
    page = Page(text)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for name, value in page.attributes if name == "href" and value and value.startswith("#")} <= set(ids)
    assert set(re.findall(r"url\(#([^)]+)\)", re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL))) <= set(ids)
    for name in ("compare_local", "compare_profiles", "compare_differences", "compare_ranks"):
        assert name in ids
    for sentence in made.verdict():
        assert sentence in page.text
    assert page.tags.count("script") == 2 * page.tags.count("style") == 2
    links = [value for name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert not [link for link in links if link and re.match(r"\w+:|//", link)]
    assert pl.read_parquet(made.path / "compare.parquet").equals(made.table())


def test_names_stay_text(folder: Path, local: Path) -> None:
    manifest = manifest_of(EVIL)
    manifest["pair"]["base"]["ref"] = EVIL
    manifest["pair"]["base"]["files"] = {}
    evil = write_planted(folder / "evil", Planted(sites=SPREAD, seed=8), manifest=manifest)
    page = compare(local, evil, out=folder / "escaped", across_bases=True).report().read_text(encoding="utf-8")
    assert EVIL not in page
    assert page.count("<script>") == 2  # ours: the renderer and the page's own
    assert "alert(1)" in Page(page).text


def test_a_runs_folder_is_not_written_over(local: Path, spread_out: Path) -> None:
    with pytest.raises(RunError, match="given a run's folder"):
        compare(local, spread_out, out=spread_out)


def test_default_names_are_plain() -> None:
    assert default_name(["org/model", EVIL, "…"]) == "compare-org-model-script-alert-1-script-run"


def test_a_claim_needs_more_than_certainty(made: Comparison) -> None:
    pair = next(pair for pair in made.content.held if pair.key == patching_compare.SITES.key)
    assert pair.apart
    assert pair.higher == "spread"
    close = contrasts.Pair(key=pair.key, one="local", other="spread", values=(10.0, 11.0), contrast=pair.contrast, q=1e-9)
    assert close.apart
    assert close.higher is None
    late = contrasts.Pair(key=pair.key, one="local", other="spread", values=pair.values, contrast=pair.contrast, q=0.2)
    assert not late.apart
    assert LOCAL.keys() <= SPREAD.keys()


def test_from_the_command_line_the_same_runs_give_the_same_page(
    made: Comparison, local: Path, spread_out: Path, capsys, monkeypatch
) -> None:
    import mechdiff
    from mechdiff.cli import main as cli

    assert mechdiff.compare is compare
    before = made.report().read_bytes()
    monkeypatch.setattr("sys.argv", ["mechdiff", "compare", str(local), str(spread_out), "--out", str(made.path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == str(made.report())
    assert "more distributed" in err
    assert made.report().read_bytes() == before
