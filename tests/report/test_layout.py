"""The page in a real browser, laid out: two levels, a list of sections, one figure and one table in view, numbers and links, print, phone."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mechdiff.measures.catalogue import CHAPTERS, NUMBERS
from mechdiff.report.page import OPEN, brief, draw_section, headed, in_the_open, in_view, to_the_right, unbroken, without_folders
from mechdiff.report.parts import assembled, table
from mechdiff.report.sections import all_sections
from mechdiff.statistics.summary import summarise
from report.planted_run import planted_manifest

# ---- what is in view, and what it is called: no browser ------------------------------------------------------------------------------


def kinds(*parts: str) -> list[dict]:
    """Parts by their kind; a star marks one, brackets fold it."""
    return [{"kind": one.strip("*()"), "main": "*" in one, "folded": "(" in one} for one in parts]


@pytest.mark.parametrize(
    ("parts", "view"),
    [
        (("figure", "table", "figure", "table"), {0, 1}),
        (("note", "(table)", "table", "note", "figure"), {0, 2, 4}),
        (("note", "answers", "answers", "table"), {0, 1, 3}),
        (("figure", "table*", "answers*"), {1, 2}),
        (("note", "list"), {0, 1}),
        (("(table)", "figure"), {1}),
    ],
)
def test_one_figure_and_one_table_are_in_view_unless_others_say_that_they_are(parts: tuple[str, ...], view: set[int]) -> None:
    assert in_view(kinds(*parts)) == view


def test_a_heading_is_a_clause_and_what_follows_it_stands_below() -> None:
    assert headed("The most changed tensors") == ("The most changed tensors", "")
    assert headed("D on 10 report prompts: mean 8.1. " + "and so " * 20) == ("D on 10 report prompts: mean 8.1", "And so " + "and so " * 19)
    assert headed("D on 10 report prompts: " + "so " * 40) == ("D on 10 report prompts", "So " + "so " * 39)
    assert headed("x" * 200) == ("", "x" * 200)


def test_a_finding_in_the_list_has_no_brackets_and_is_short() -> None:
    assert brief("D is 0.054 (95 %: 0.05 to 0.06 (few)) nats; more.") == "D is 0.054 nats"
    assert len(brief("word " * 60)) <= 100
    assert brief("word " * 60).endswith(" …")


def test_numbers_stand_right_and_words_left() -> None:
    lines = [["L1.mlp", "−0.12 (−0.2 to −0.1)", "“ivid” “ople”", "3", "–"], ["L2.mlp", "2.0 × 10⁻⁴", "1 is read", "–", "–"]]
    assert to_the_right(table(["site", "effect", "tokens", "n", "p"], lines)) == {1, 3}
    assert unbroken("0.1 × 10⁻⁴ (0 to 1)", True) == "0.1\u00a0×\u00a010⁻⁴ (0\u00a0to\u00a01)"
    assert unbroken("0.1 × 10⁻⁴ (0 to 1)", False) == "0.1\u00a0×\u00a010⁻⁴ (0 to 1)"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("base: /home/ann/models/kazakh/", "base: "),
        ("base: /home/ann/models/kazakh", "base: kazakh"),
        ("file '/home/ann/p.jsonl', 8", "file 'p.jsonl', 8"),
        ("~/x/y.yaml and C:\\Users\\ann\\z.yaml", "y.yaml and z.yaml"),
        ("HuggingFaceTB/SmolLM2-135M, 1/2, https://x.org/a/b", "HuggingFaceTB/SmolLM2-135M, 1/2, https://x.org/a/b"),
    ],
)
def test_paths_of_this_machine_are_cut_to_their_last_parts(given: str, shown: str) -> None:
    assert without_folders(given) == shown


def words(count: int, start: str = "It") -> str:
    return " ".join([start, *["says"] * (count - 1)])


@pytest.mark.parametrize(
    ("lead", "shown", "folded"),
    [
        ([], [], []),
        ([words(20), words(40)], [words(20), words(40)], []),
        ([words(20), words(41), words(5)], [words(20)], [words(41), words(5)]),
        ([f"{words(30)}; {words(40, 'in')}."], [f"{words(30)}."], [f"{words(40, 'In')}."]),
        ([f"{words(50)} ({words(9)}; {words(9)})."], [f"{words(50)}."], [f"{words(50)} ({words(9)}; {words(9)})."]),
        ([f"{words(50)} (a (b; {words(9)})).", "Z."], [f"{words(50)}."], [f"{words(50)} (a (b; {words(9)})).", "Z."]),
        ([words(90)], [f"{words(60)} …"], [words(90)]),
    ],
)
def test_sentences_stand_open_as_far_as_sixty_words_go(lead: list[str], shown: list[str], folded: list[str]) -> None:
    """Nothing is lost: what is shortened stands whole behind the fold."""
    assert in_the_open(lead) == (shown, folded)


def test_a_dot_says_whether_anything_was_found(rows: pl.DataFrame, full_rows: pl.DataFrame, full_manifest: dict) -> None:
    """Of models that differ, and of models whose predictions are the same while nobody looked at more."""

    def states(rows: pl.DataFrame, manifest: dict) -> dict[str, str]:
        run = assembled(rows, [], summarise(rows, NUMBERS), manifest)
        return {one.id: draw_section(one, run.rows, run.summary, run.manifest)["state"] for one in all_sections(run, CHAPTERS)}

    there = states(full_rows, full_manifest)
    assert {there[name] for name in ("divergence", "weights", "patching", "similarity")} == {"effect"}
    assert {there[name] for name in ("rank", "panel", "words")} == {"absent"}
    assert there["trust"] == ""
    equal = rows.filter(pl.col("measure") == "divergence").with_columns(
        value=pl.when(pl.col("metric").str.ends_with("_nats")).then(0.0).otherwise("value")
    )
    assert states(equal, planted_manifest())["divergence"] == "none"
    waiting = states(full_rows.filter(pl.col("measure") != "patching"), full_manifest | {"waits": ["patching"]})
    assert waiting["patching"] == waiting["patching.agreement"] == "waits"


# ---- in the browser ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(chromium: Any, full_run: Path) -> Iterator[Any]:
    """A function that opens the page of a whole run at a width. What the console says, or a request to anywhere, fails the test."""
    said: list[str] = []
    contexts = []

    def at(behind: str = "", width: int = 1280, **options: Any) -> Any:
        context = chromium.new_context(viewport={"width": width, "height": 900}, reduced_motion="reduce", **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if not request.url.startswith(("file:", "blob:")) else None)
        page.goto((full_run / "report.html").as_uri() + behind)
        page.wait_for_timeout(100)
        return page

    yield at
    for context in contexts:
        context.close()
    assert said == []


def described(page: Any, what: str) -> Any:
    """What an expression over the page gives."""
    return page.evaluate(what)


@pytest.mark.ci
@pytest.mark.browser
class TestLayout:
    """The page of a whole planted run."""

    def test_the_summary_is_two_screens_and_a_link_leads_to_everything(self, opened: Any) -> None:
        page = opened()
        assert described(page, "document.documentElement.scrollHeight") <= 1800
        assert page.locator("section:visible").count() == 0
        assert page.locator(".levels [aria-current]").inner_text() == "Summary"
        page.locator(".onward a").click()
        page.wait_for_timeout(100)
        assert page.locator("section:visible").count() > 20
        assert page.locator(".levels [aria-current]").inner_text() == "Everything"
        page.go_back()
        page.wait_for_timeout(100)
        assert page.locator("section:visible").count() == 0

    def test_sections_fold_all_but_one_figure_and_one_table(self, opened: Any) -> None:
        page = opened("#everything")
        shown = "s => [...s.querySelectorAll('figure, .block')].filter(b => b.checkVisibility()).length"
        counts = page.eval_on_selector_all("section:not(#record):not(#trust)", f"all => all.map({shown})")
        assert max(counts) == 2
        inside = ", ".join(f"m.querySelectorAll('{kind}').length" for kind in ("figure", "table"))
        counted = f"all => all.map(m => [m.querySelector('summary').textContent, {inside}])"
        folds = page.eval_on_selector_all("details.more", counted)
        assert len(folds) > 5
        for said, *here in folds:
            told = [re.search(rf"(\d+) {kind}s?\b", said) for kind in ("figure", "table")]
            assert [int(one[1]) if one else 0 for one in told] == here, said
        more = page.locator("#patching details.more")
        assert not more.locator("figure").first.is_visible()
        more.locator("> summary").click()
        assert more.locator("figure").first.is_visible()

    def test_no_section_says_more_than_sixty_words_before_its_first_block(self, opened: Any) -> None:
        page = opened("#everything")
        before = """all => all.map(section => {
            const said = [], block = one => one.matches('figure, .block, .tokens, .answers, .explorer, h3');
            for (const one of [...section.children].slice(1)) { if (block(one)) break; said.push(one.matches('details') ? '' : one.innerText); }
            return [section.id, said.join(' ').split(/\\s+/).filter(Boolean).length];
        })"""
        counted = dict(page.eval_on_selector_all("section:not(#record)", before))
        assert {name: count for name, count in counted.items() if count > OPEN} == {}
        assert max(counted.values()) > 30
        rest = page.locator("details.rest").first
        assert not rest.locator("p").first.is_visible()
        said = int(re.match(r"\d+", rest.locator("summary").inner_text())[0])  # type: ignore[index]
        assert rest.locator("p").count() == said
        rest.locator("summary").click()
        assert rest.locator("p").first.is_visible()

    def test_numbers_go_up_by_one_and_their_links_open_what_is_folded(self, opened: Any) -> None:
        page = opened("#everything")
        for kind, blocks in (("Figure", "figure"), ("Table", "[id^=table-]")):
            numbers = page.eval_on_selector_all(f"{blocks} h3 .number", "all => all.map(one => one.textContent)")
            assert numbers == [f"{kind} {place}" for place in range(1, len(numbers) + 1)]
            assert len(numbers) > 10
        folded = page.locator("details.more figure").last
        assert not folded.is_visible()
        name = folded.get_attribute("id")
        assert folded.locator("h3 a.number").get_attribute("href") == f"#{name}"
        elsewhere = opened(f"#{name}")
        assert elsewhere.locator(f"#{name}").is_visible()
        assert 0 <= elsewhere.locator(f"#{name}").bounding_box()["y"] < 900

    def test_the_list_of_sections_stays_and_says_what_each_found(self, opened: Any) -> None:
        page = opened("#patching")
        page.wait_for_timeout(300)
        assert page.locator(".contents").bounding_box()["y"] == pytest.approx(0, abs=1)
        assert page.locator(".contents a[aria-current]").get_attribute("href") == "#patching"
        links = page.locator(".contents ol a")
        assert links.count() == page.locator("section:not(#glossary)").count()
        assert page.locator(".contents li.effect a[href='#weights']").inner_text().count("\n") >= 1, "its finding stands under it"
        assert "(found something)" in page.locator(".contents a[href='#weights']").text_content()
        assert "(not measured)" in page.locator(".contents a[href='#panel']").text_content()
        widths = page.eval_on_selector_all(
            ".contents .effect, .contents .absent",
            "all => [...new Set(all.map(one => getComputedStyle(one, '::before').height))]",
        )
        assert len(widths) == 2, "the two states differ in shape, not in colour alone"
        narrow = opened("", width=800)
        assert not narrow.locator(".contents ol").is_visible()
        narrow.locator(".contents summary").click()
        narrow.locator(".contents a[href='#weights']").click()
        narrow.wait_for_timeout(100)
        assert narrow.locator("#weights h2").is_visible()
        assert not narrow.locator(".contents ol").is_visible()

    def test_no_table_is_wider_than_its_box_and_blocks_have_headings(self, opened: Any) -> None:
        page = opened("?print=all#everything")
        wide = "all => all.filter(box => box.scrollWidth > box.clientWidth + 1).map(box => box.querySelector('table').ariaLabel)"
        assert page.eval_on_selector_all(".scroll", wide) == []
        assert page.eval_on_selector_all("figure, .block", "all => all.filter(one => !one.querySelector('h3')).length") == 0
        assert page.locator("p.title").count() == 0
        bare = "all => all.filter(one => !one.querySelector('h3 .words, h3.title')).map(one => one.id)"
        assert page.eval_on_selector_all("figure, [id^=table-]", bare) == []

    def test_a_phone_moves_nothing_sideways_but_what_scrolls_in_its_box(self, opened: Any) -> None:
        page = opened("?print=all#everything", width=390, has_touch=True)
        assert described(page, "document.documentElement.scrollWidth") <= 390
        moving = page.locator(".scroll.moves").first
        assert moving.get_attribute("tabindex") == "0"
        moving.evaluate("box => { box.scrollLeft = 60; }")
        first = moving.locator("tbody th").first.bounding_box()
        assert first["x"] == pytest.approx(moving.bounding_box()["x"], abs=1), "the first column stays"
        assert page.locator(".cells button").first.bounding_box()["height"] >= 24
        small = "all => all.filter(one => one.checkVisibility() && one.getBoundingClientRect().height < 43.5).map(one => one.outerHTML.slice(0, 90))"
        assert page.eval_on_selector_all("summary, .levels a, .contents ol a, button:not([role=gridcell]), .onward a, input", small) == []

    def test_print_is_short_unless_all_is_asked_for(self, opened: Any) -> None:
        pages = {}
        for behind in ("", "?print=all"):
            made = opened(behind).pdf(format="A4", prefer_css_page_size=True)
            pages[behind] = len(re.findall(rb"/Type\s*/Page\b", made))
        assert 2 <= pages[""] <= 8
        paper = opened("#everything", width=680)
        paper.pdf(format="A4", prefer_css_page_size=True)
        paper.emulate_media(media="print")
        paper.wait_for_timeout(300)
        sections = ":not(#record):has(> figure)"
        heights = paper.eval_on_selector_all(f"section{sections}", "all => all.map(one => one.getBoundingClientRect().height)")
        assert len(heights) >= 8
        assert sum(heights) / len(heights) <= 1009 / 4, (
            "four sections a page: with all measures and a summary of two pages that is at most 8"
        )
        assert max(heights) <= 1009 / 3
        beside = paper.locator("section:has(> .lead):has(> figure)").first
        lead, whole, figure = (one.bounding_box()["width"] for one in (beside.locator("> .lead"), beside, beside.locator("figure")))
        assert lead < whole / 2 < figure
        assert pages["?print=all"] > pages[""]

    def test_without_a_script_text_and_tables_are_there(self, opened: Any) -> None:
        page = opened(java_script_enabled=False)
        assert page.locator("#weights h2").is_visible()
        assert page.locator("#weights table").first.is_visible()
        assert page.locator(".contents a[href='#weights']").is_visible()
        assert not page.locator(".explorer").is_visible()
