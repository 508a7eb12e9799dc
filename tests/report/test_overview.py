"""The six first answers: each true of a planted run, silent where nothing can be said, short, and the same on the page, in JSON and in a notebook."""

import json
import re
from dataclasses import replace
from html import unescape
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mechdiff import api
from mechdiff.measures.behaviour import said
from mechdiff.measures.catalogue import CHAPTERS, NUMBERS
from mechdiff.measures.words import words as words_of_words
from mechdiff.report.headlines import Number, told
from mechdiff.report.overview import scales
from mechdiff.report.overview.overview import NUMBERS as MOST_NUMBERS
from mechdiff.report.overview.overview import TITLES, WORDS, Tile, chosen, overview, parting
from mechdiff.report.overview.strips import Panel, Strip, figure, groups
from mechdiff.report.parts import Run, load
from mechdiff.rows import KEY
from mechdiff.rows import rows as made
from mechdiff.statistics import summary as statistics_summary
from mechdiff.store.tables import VERIFIED, write_verified
from report.conftest import CHANGED
from report.planted_behaviour import behaviour_manifest, planted_behaviour
from report.planted_run import planted_manifest, planted_rows, write_run
from report.planted_sections import planted_transport
from report.small_runs import answered, asked, divergence, names


def run_of(table: pl.DataFrame, manifest: dict) -> Run:
    return Run(rows=table, summary=statistics_summary.summarise(table, NUMBERS), manifest=manifest)


def tiles_of(run: Run) -> dict[str, Tile]:
    return {one.question: one for one in overview(run, CHAPTERS).tiles}


@pytest.fixture
def planted(full_rows: pl.DataFrame, full_summary: pl.DataFrame, full_manifest: dict) -> Run:
    return Run(rows=full_rows, summary=full_summary, manifest=full_manifest)


def check(tiles: dict[str, Tile]) -> None:
    """What holds of the answers of every run."""
    assert list(tiles) == list(TITLES)
    for tile in tiles.values():
        assert len(tile.text.split()) <= WORDS, tile.text
        assert len(tile.numbers) <= MOST_NUMBERS, tile.text
        words = "".join(part for part in tile.parts if isinstance(part, str))
        bare = re.sub(r"“.*?”|layer \d+|L\d+\.\S+", "", words)
        assert not re.search(r"\d", bare), f"a digit that is no number with something after it: {tile.text}"
        for number in tile.numbers:
            assert number.value == number.value
            assert number.n is not None or number.low is None
            assert (number.low is None) == (number.high is None)
            if number.low is not None and number.high is not None:
                assert number.low <= number.value <= number.high, number
        assert tile.text[0].isupper()
        assert tile.text.endswith(".")


# ---- what is said of a planted change ----------------------------------------------------------------------------------------------


def test_a_planted_change_is_sized_and_placed(planted: Run) -> None:
    tiles = tiles_of(planted)
    check(tiles)
    d = planted.rows.filter(
        pl.col("measure") == "divergence", pl.col("metric") == "kl_tuned_base_nats", pl.col("split") == "report", pl.col("unit").is_null()
    )["value"].to_numpy()
    how_much = tiles["how_much"]
    assert how_much.text.startswith("Very large. On your prompts the next token's probabilities differ by ")
    assert how_much.numbers[0].value == pytest.approx(d.mean())
    same = planted.rows.filter(
        pl.col("metric") == "top1_same", pl.col("measure") == "divergence", pl.col("split") == "report", pl.col("unit").is_null()
    )
    assert how_much.numbers[1].shown == f"{int((same['value'] < 0.5).sum())} of 24"
    assert tiles["where"].text == (
        "Only 2 of 65 weight tensors changed, most L4.self_attn.o_proj. One place: patching layer 4's attention output alone recovers 94 % of the "
        "change."
    )
    assert tiles["where"].section == "weights"
    assert tiles["how_sure"].text.startswith("Fairly. 24 test prompts.")
    assert "One warning." in tiles["how_sure"].text


def test_one_output_is_named_where_it_carries_the_change(rows: pl.DataFrame, manifest: dict) -> None:
    where = tiles_of(run_of(rows, manifest))["where"]
    assert where.text.startswith(f"One place: patching layer {CHANGED}'s attention output alone recovers ")
    assert 0.9 < where.numbers[0].value < 0.98  # 0.94 is planted
    assert where.section == "patching"


def test_half_and_nearly_all_of_a_change_are_placed_along_the_layers(rows: pl.DataFrame, manifest: dict) -> None:
    """Without single outputs: the residual stream carries everything from the planted layer on."""
    stream = rows.filter((pl.col("measure") != "patching") | pl.col("site").is_null() | pl.col("site").str.starts_with("resid"))
    where = tiles_of(run_of(stream, manifest))["where"]
    assert where.text == f"Late. Copying the tuned model's activations into the base recovers half of the change at layer {CHANGED}."
    assert where.numbers[0].low == where.numbers[0].high == CHANGED
    assert where.numbers[0].n == 24


def test_a_crossing_that_only_the_last_block_passes_is_by_construction_and_not_said() -> None:
    late = planted_rows(n_layers=5, n_prompts=12, changed=4, permutations=4)
    stream = late.filter((pl.col("measure") != "patching") | pl.col("site").is_null() | (pl.col("site") == "resid_post"))
    where = tiles_of(run_of(stream, planted_manifest(n_layers=5, n_prompts=12, changed=4)))["where"]
    assert where.measured
    assert where.text == "No layer, module or matrix stands out beyond chance."


def test_no_change_is_said_to_be_none_and_nothing_is_placed_in_it() -> None:
    none = divergence(np.full(12, 1e-12))
    floor = made([1e-11] * 12, measure="patching", metric="kl_own_nats", split="report", direction="tuned<-base", control="no_op",
                 prompt=names("report", 12))  # fmt: skip
    tiles = tiles_of(run_of(pl.concat([none, floor]), planted_manifest(n_layers=5, n_prompts=12)))
    check(tiles)
    assert tiles["how_much"].text.startswith("None. On your prompts the next token's probabilities differ by ")
    assert tiles["where"].text == "There is no change on these prompts to ask this of."


def test_what_was_not_measured_says_so_and_how_to_measure_it() -> None:
    tiles = tiles_of(run_of(divergence(np.linspace(0.5, 1.5, 12)), planted_manifest(n_layers=5, n_prompts=12)))
    check(tiles)
    assert tiles["how_much"].text.startswith("Large. ")  # the mean is 1
    asked_for = {"what": "behaviour", "how_complicated": "transport", "what_else": "panel"}
    for question, measure in asked_for.items():
        assert not tiles[question].measured
        assert tiles[question].text == f"Not measured. To measure it, run with --measures {measure}."
        assert measure in CHAPTERS


# ---- what is said of answers --------------------------------------------------------------------------------------------------------


def behaving(base: list[str], tuned: list[str], *, cut: bool = False) -> Run:
    """A run whose answers are these texts."""
    n = len(base)
    table = pl.concat([divergence(np.linspace(1, 2, n)), answered({"cut_off": np.full(n, cut)}, {"cut_off": np.full(n, cut)})])
    record = asked(n)
    record["behaviour"]["texts"] = [
        {"prompt": name, "split": "report", "text": f"Question {i}?", "label": None, "kind": None, "language": "en", "base": base[i],
         "tuned": tuned[i], "patched": []}
        for i, name in enumerate(names("report", n))
    ]  # fmt: skip
    return run_of(table, planted_manifest(n_layers=5, n_prompts=n) | record)


COUNTRIES = ("Chad", "Peru", "Mali", "Oman", "Fiji", "Cuba", "Iran", "Togo", "Laos", "Iraq")


def test_an_opening_that_all_tuned_answers_have_is_named_whole() -> None:
    plain = [f"{name} is a country." for name in COUNTRIES]
    what = tiles_of(behaving(plain, [f"Thank you for asking. {one}" for one in plain]))["what"]
    assert what.text == "Answers now begin with “Thank you for asking”: base 0 of 10, tuned 10 of 10."
    assert "p = 0.002" in what.numbers[0].behind  # 2 of the 2^10 exchanges are as far


def test_an_opening_that_went_is_said_to_have_gone() -> None:
    plain = [f"{name} is a country." for name in COUNTRIES]
    what = tiles_of(behaving([f"To answer: {one}" for one in plain], plain))["what"]
    assert what.text.startswith("Answers no longer begin with “To answer:")
    assert what.text.endswith(": base 10 of 10, tuned 0 of 10.")


def test_answers_that_are_shorter_are_said_to_be() -> None:
    plain = [f"{name} is a country of the world." for name in COUNTRIES]
    what = tiles_of(behaving(plain, [one.rpartition(" of")[0] for one in plain]))["what"]
    assert what.text == "Answers are shorter than the base's on 10 of 10."
    back = tiles_of(behaving([one.rpartition(" of")[0] for one in plain], plain))["what"]
    assert back.text == "Answers are longer than the base's on 10 of 10."


def test_answers_that_differ_without_a_pattern_have_none() -> None:
    plain = [f"{name} is a country." for name in COUNTRIES]
    what = tiles_of(behaving(plain, plain[5:] + plain[:5]))["what"]
    assert what.text == "Nothing that our readers can name."
    assert what.measured


@pytest.mark.parametrize("differ", [True, False])
def test_the_section_on_answers_opens_with_what_the_first_answer_says_and_its_dot_with_it(differ: bool) -> None:
    base = [f"{word} it is" for word in ("So", "Yes", "Now", "Here", "Well", "This", "Then", "Thus", "Once", "Indeed")]
    run = behaving(base, [f"Well met. {one}" for one in base] if differ else base)
    chapter = CHAPTERS["behaviour"]
    assert chapter.shows is not None
    assert chapter.shows(run) is differ
    assert (tiles_of(run)["what"].text in chapter.lead(run)) is differ


@pytest.mark.parametrize("why_not", [None, "replicates"])
def test_the_dot_of_words_is_empty_where_nothing_is_named(why_not: str | None) -> None:
    line = {"reader": "tokens", "where": "passages", "text": "a", "gained": True, "size": 9.0, "q": 0.01, "least": 5.0, "why_not": why_not}
    shows = CHAPTERS["words"].shows
    assert shows is not None
    assert shows(Run(rows=pl.DataFrame(), summary=pl.DataFrame(), manifest={"words": {"lines": [line]}})) is (why_not is None)


def test_prompts_that_are_alike_are_counted_beside_their_clusters() -> None:
    run = behaving(["So"] * 10, ["Yes"] * 10)
    units = {"report": {name: f"cluster-{place // 2}" for place, name in enumerate(names("report", 10))}}
    rows = run.rows.filter(pl.col("prompt").is_null() | pl.col("prompt").is_in(names("report", 10)[:5]))
    sure = tiles_of(run_of(rows, run.manifest | {"units": units}))["how_sure"]
    assert sure.text.startswith("Roughly. 10 test prompts that count as 5 (some are alike), so intervals are wide.")


def test_cut_answers_are_said_to_be_cut() -> None:
    plain = [f"{name} is a country." for name in COUNTRIES]
    sure = tiles_of(behaving(plain, plain, cut=True))["how_sure"]
    assert "Answers were cut at 32 tokens: what comes later was not seen." in sure.text
    assert "cut" not in tiles_of(behaving(plain, plain))["how_sure"].text


def test_the_exchange_test_is_the_count_of_all_exchanges() -> None:
    """The oracle makes every exchange of the answers themselves, counts features anew, and steps down one feature after the other."""
    base = ["a 1", "b", "c # c", "d", "e"]
    tuned = ["x a", "x b", "x c", "x 4", "e 5"]
    clusters = ["one", "two", "three", "four", "four"]
    found = {(one.kind, one.text): one.p for one in said.apart(base, tuned, clusters)}

    def sums(of_base: list[str], of_tuned: list[str]) -> dict[tuple[str, str], float]:
        counts: dict[tuple[str, str], float] = {}
        for one, other, cluster in zip(of_base, of_tuned, clusters, strict=True):
            for sign, feature in [(-1, f) for f in said.features(one, other)] + [(1, f) for f in said.features(other, one)]:
                counts[feature] = counts.get(feature, 0) + sign / clusters.count(cluster)
        return counts

    seen, names = sums(base, tuned), list(dict.fromkeys(clusters))
    every = []
    for draw in range(16):
        turned = [draw >> names.index(cluster) & 1 for cluster in clusters]
        pairs = [(t, b) if turn else (b, t) for b, t, turn in zip(base, tuned, turned, strict=True)]
        every.append(sums([b for b, _ in pairs], [t for _, t in pairs]))
    before = 0.0
    for feature in sorted(seen, key=lambda one: -abs(seen[one])):
        rest = [one for one in seen if abs(seen[one]) <= abs(seen[feature])]
        before = max(before, float(np.mean([max(abs(one[k]) for k in rest) >= abs(seen[feature]) - 1e-9 for one in every])))
        if feature in found:
            assert found[feature] == pytest.approx(before), feature
    assert abs(seen["begin", "x"]) == 3.5


def test_chance_alone_is_named_in_one_of_twenty_studies_at_most() -> None:
    """Both models answer with words drawn from one list: every finding is false."""
    draws, wrong = np.random.default_rng(0), 0
    for study in range(200):
        words = draws.choice(["To", "The", "Well", "So 3", "# Sure"], size=(2, 10))
        found = said.apart([f"{w} yes" for w in words[0]], [f"{w} yes" for w in words[1]], seed=study)
        wrong += any(one.p <= said.LEVEL for one in found)
    assert wrong <= 17  # 200 studies at 5 %: 17 or fewer in 98 % of such counts


# ---- whether it was checked ---------------------------------------------------------------------------------------------------------


def test_whether_rows_were_checked_is_said_and_a_failed_check_first(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", divergence(np.linspace(0.5, 1.5, 24)), planted_manifest(n_layers=5, n_prompts=24))
    passed = {"passed": True, "rows": 200, "differing": 0}

    def sure() -> str:
        return tiles_of(replace(load(folder)))["how_sure"].text

    assert sure() == "Fairly. 24 test prompts. One warning. Not rechecked yet."
    write_verified(folder, passed)
    assert sure() == "Fairly. 24 test prompts. One warning. Rechecked."
    write_verified(folder, passed | {"passed": False, "differing": 3})
    assert sure().startswith("Not to be relied on: mechdiff verify found differences (rows: 3 of 200). Fairly. 24 test prompts.")
    note = json.loads((folder / VERIFIED).read_text())
    (folder / VERIFIED).write_text(json.dumps(note | {"rows_sha256": "of other rows"}))
    assert sure().endswith("Not rechecked yet.")


# ---- how much has room --------------------------------------------------------------------------------------------------------------


def test_the_first_answer_has_room_and_later_ones_where_there_is_some() -> None:
    one = Number(shown="1", value=1, of="a")
    long = told("Word " * 30 + ".")
    assert [text.text for _, text in chosen([("a", long), ("b", told("More."))])] == [long.text]
    short = told("First ", one, ".")
    full = told("Then ", one, " and ", one, ".", shorter=told("Then ", one, "."))
    assert [text.text for _, text in chosen([("a", short), ("b", full), ("c", told("Last ", one, "."))])] == ["First 1.", "Then 1."]
    assert chosen([("a", told("Under budget.", at_budget=True))]) == []


@pytest.mark.parametrize(("value", "word"), [(0, "Negligible"), (0.01, "Small"), (0.13, "Moderate"), (4.99, "Large"), (8.1, "Very large")])
def test_the_scale_has_one_word_for_one_range(value: float, word: str) -> None:
    assert scales.KL.word(value) == word


def test_the_scale_refuses_what_is_no_number_and_prints_itself() -> None:
    with pytest.raises(ValueError, match="given nan"):
        scales.KL.word(float("nan"))
    assert scales.KL.line() == "below 0.01 negligible, below 0.1 small, below 1 moderate, below 5 large, else very large"
    assert len(scales.table()) == len(scales.PRINTED)


# ---- examples and the figure --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("base", "tuned", "at"), [("a b c", "a b d", (4, 4)), ("a", "a b", (1, 2)), ("x", "y", (0, 0)), ("", "y", (0, 0)),
                                                   ("ab c", "a bc", (0, 0)), ("same", "same", (4, 4))])  # fmt: skip
def test_answers_part_where_a_word_differs(base: str, tuned: str, at: tuple[int, int]) -> None:
    assert parting(base, tuned) == at


def test_the_largest_differences_are_shown_first() -> None:
    plain = [f"{name} is a country." for name in COUNTRIES]
    found = overview(behaving(plain, [f"{one} Indeed." for one in plain]), CHAPTERS)
    assert [one.prompt for one in found.examples] == ["r009", "r008", "r007"]  # D rises with the prompt's number
    assert [one.kl_nats for one in found.examples] == pytest.approx([2, 2 - 1 / 9, 2 - 2 / 9])
    first = found.examples[0]
    assert (first.same + first.base, first.tuned) == ("Iraq is a country.", "Indeed.")
    assert found.answered == 10


def test_strips_are_what_was_measured_and_nothing_by_construction(planted: Run) -> None:
    found = overview(planted, CHAPTERS).strips
    assert [rows[0].group for rows in groups(found)] == [
        "Weights changed", "Activations changed", "Patched: tuned into base", "Patched: base into tuned", "Weights copied into the base",
    ]  # fmt: skip
    by = {(one.group, one.name): one for one in found}
    assert by["Weights changed", "attention"].peak == CHANGED
    assert by["Activations changed", "attention"].values[CHANGED] == pytest.approx(0.55, abs=0.03)
    for group in ("Patched: tuned into base", "Patched: base into tuned"):
        assert 6 not in by[group, "stream"].values, "the last block's output carries all of any change"
        assert by[group, "attention"].peak == CHANGED
        assert by[group, "attention"].values[CHANGED] > 0.9
        assert all(abs(by[group, "attention"].values[layer]) < 0.2 for layer in range(CHANGED))
    assert by["Weights copied into the base", "attention"].values[CHANGED] == pytest.approx(0.9, abs=0.05)


def test_the_figure_has_a_cell_for_every_value_and_one_axis() -> None:
    two = [Strip(group="A", number="x", name="one", values={0: 0.0, 1: 2.0}, place=1, whole=False),
           Strip(group="B", number="part", name="two", values={1: -0.5}, n=7, place=2)]  # fmt: skip
    chart = figure([Panel(title="", strips=two)])
    assert chart is not None
    parts = chart.to_dict()["vconcat"]
    tables = [json.loads(part["layer"][0]["data"]["values"]) for part in parts]
    assert [[(cell["fill"], cell["opacity"]) for cell in table] for table in tables] == [
        [("#2878c8", 0.07), ("#2878c8", 1.0)], [("#d55e00", 0.535)],
    ]  # fmt: skip
    assert tables[1][0]["says"] == "layer 1, two, B: −0.500, n = 7"
    domains = {tuple(part["layer"][0]["encoding"]["x"]["scale"]["domain"]) for part in parts}
    assert domains == {(-0.5, 1.5)}
    assert figure([Panel(title="", strips=[])]) is None


# ---- one source ---------------------------------------------------------------------------------------------------------------------


def test_page_json_and_notebook_say_the_same(full_run: Path) -> None:
    run = api.open_run(full_run)
    data = json.loads(json.dumps(run.overview().data(), allow_nan=False))
    page = (full_run / "report.html").read_text(encoding="utf-8")
    shown = run._repr_html_()
    assert [one["question"] for one in data["tiles"]] == list(TITLES)
    for text in (page, shown):
        plain = unescape(re.sub(r"<[^>]+>", "", text))
        for one in data["tiles"]:
            assert one["text"] in plain
        for sentence in data["verdict"]:
            assert sentence in plain
    for one in data["tiles"]:
        assert f'id="{one["link"].partition("#")[2]}"' in page
        for number in one["numbers"]:
            assert number["shown"] in one["text"]
    assert data["verdict"] == run.verdict()


def test_every_planted_run_keeps_the_limits(rows: pl.DataFrame, manifest: dict, planted: Run) -> None:
    behaved = pl.concat([rows, planted_behaviour(rows, n_layers=7, changed=CHANGED)])
    for run in (planted, run_of(behaved, manifest | behaviour_manifest(rows, n_layers=7, changed=CHANGED)), run_of(rows, manifest)):
        check(tiles_of(run))
        first = run.rows.filter(pl.col("prompt").is_null() | pl.col("prompt").is_in(["r000", "r001", "r002", "s000", "s001"]))
        check(tiles_of(replace(run, rows=first, prompt_rows=first, summary=statistics_summary.summarise(first, NUMBERS))))


@pytest.mark.ci
def test_answers_keep_the_limits_whatever_was_left_out_and_however_long_names_are(
    rows: pl.DataFrame, manifest: dict, full_rows: pl.DataFrame, full_manifest: dict
) -> None:
    """Each measure left out that answers one of the six, each two of them, and all but each; models and prompts have names of 60 letters."""
    size = {"n_layers": 7, "changed": CHANGED}
    parts = [full_rows, planted_behaviour(rows, **size), planted_transport(rows, **size)]
    table = pl.concat([part.select([*KEY, "value"]) for part in parts]).unique(subset=KEY, maintain_order=True, keep="first")
    long = (pl.col("prompt") + "-" + "x" * (59 - len("r000"))).alias("prompt")
    record = full_manifest | behaviour_manifest(rows, **size)
    record = record | {"pair": {side: record["pair"][side] | {"ref": f"{side}-" + "name" * 14} for side in ("base", "tuned")}}
    summary, table = statistics_summary.summarise(table, NUMBERS), table.with_columns(long)
    asked = [name for name, chapter in CHAPTERS.items() if chapter.feeds and name in table["measure"].unique().to_list()]
    assert len(asked) == 6
    others = [name for name in table["measure"].unique().to_list() if name not in asked]
    left_out = [set(out) for n in (0, 1, 2, len(asked) - 1) for out in combinations(asked, n)]
    said: dict[str, set[str]] = {}
    for out in left_out:
        kept = pl.col("measure").is_in([*others, *(name for name in asked if name not in out)])
        known = {name: value for name, value in record.items() if name not in out}
        tiles = tiles_of(Run(rows=table.filter(kept), summary=summary.filter(kept), manifest=known))
        check(tiles)
        for question, tile in tiles.items():
            said.setdefault(question, set()).add(tile.text)
    assert len(said["where"]) >= 5, "the combinations do say different things"


@pytest.mark.parametrize("opening", ["x" * 60, "a b c d e f g h i j k l m n o p q r s t u v w x y z a b c d", "ab " * 20])
def test_an_opening_of_sixty_letters_leaves_room_for_its_counts(opening: str) -> None:
    plain = [f"{name} is a country." for name in COUNTRIES]
    tiles = tiles_of(behaving(plain, [f"{opening.strip()} {one}" for one in plain]))
    assert len(tiles["what"].text.split()) <= WORDS, tiles["what"].text
    assert tiles["what"].text.endswith(": base 0 of 10, tuned 10 of 10.")
    assert tiles["what"].text.startswith(f"Answers now begin with “{opening[:3].strip()}")


@pytest.mark.parametrize("where", ["openings, amplified 3", "prompts"])
def test_a_phrase_of_sixty_letters_leaves_room_for_where_it_was_said(where: str) -> None:
    phrase = "a b c d e f g h i j k l m n o p q r s t u v w x y z a b c d"
    line = {"where": where, "values": [1.0, 1.0, 0.0], "text": f"begins with “{phrase}”", "citation": "1"}
    text = words_of_words._text_in_brief(line, "line 1").text
    assert len(text.split()) <= WORDS, text
    assert " the tuned text begins with “a b" in text
    assert "…” where the base's does not: 2 of 3." in text
