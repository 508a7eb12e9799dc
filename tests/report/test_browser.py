"""The page in a real browser: nothing is refused or loaded, figures are there, what can be clicked works, and texts stay texts."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mechdiff.measures.catalogue import CHAPTERS
from mechdiff.measures.patching import charts as patching_charts
from mechdiff.report import drawing
from mechdiff.report.page import build_report
from report.planted_run import planted_manifest, write_run

pytestmark = [pytest.mark.ci, pytest.mark.browser]
EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, full_rows: pl.DataFrame) -> Path:
    """A run whose first prompt and tuned model have a script for a name and a text."""
    first = full_rows.filter(pl.col("split") == "report", pl.col("prompt").is_not_null())["prompt"].min()
    rows = full_rows.with_columns(prompt=pl.when(pl.col("prompt") == first).then(pl.lit(EVIL)).otherwise("prompt"))
    manifest = planted_manifest(n_layers=7, n_prompts=24, changed=4)
    manifest["pair"]["tuned"]["ref"] = EVIL
    made = write_run(tmp_path_factory.mktemp("browser"), rows, manifest)
    names = rows.filter(pl.col("split") == "report")["prompt"].drop_nulls().unique().sort()
    lines = [
        {
            "split": "report",
            "id": name,
            "sha256": name,
            "text_base": f"<|im_start|>user\nHe: {name} says {EVIL} to {name}?<|im_end|>\n<|im_start|>assistant\n",
        }
        for name in names
    ]
    (made / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    build_report(made, CHAPTERS)
    return made


@pytest.fixture
def page(chromium: Any, folder: Path) -> Iterator[Any]:
    """The page at 1000 pixels, everything unfolded. Whatever the console says, a dialog or a request to anywhere fails the test."""
    context = chromium.new_context(viewport={"width": 1000, "height": 900}, accept_downloads=True)
    opened = context.new_page()
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("dialog", lambda dialog: (said.append("dialog"), dialog.dismiss()))
    opened.on("request", lambda request: said.append(request.url) if not request.url.startswith(("file:", "blob:")) else None)
    opened.goto((folder / "report.html").as_uri() + "#everything")
    opened.evaluate("for (const fold of document.querySelectorAll('#everything details')) fold.open = true")
    yield opened
    context.close()
    assert said == []


def drawn(page: Any) -> dict[str, int]:
    """How many marks with an area each figure has, by its name."""
    marks = "f => [...f.querySelectorAll('.plot svg path')].filter(m => m.getBoundingClientRect().width > 0).length"
    return dict(page.eval_on_selector_all("#everything figure", f"all => all.map(f => [f.id, ({marks})(f)])"))


def draw_all(page: Any) -> None:
    """As a reader who opens every fold and comes by every figure."""
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    for figure in page.locator("#everything figure").all():
        figure.evaluate("one => one.scrollIntoView()")
        figure.locator(".plot[data-drawn]").wait_for()


def test_a_figure_is_drawn_when_it_comes_into_view(page: Any) -> None:
    page.locator("#everything .plot[data-drawn]").first.wait_for()
    assert 0 in drawn(page).values()
    draw_all(page)
    found = drawn(page)
    assert len(found) >= 10
    assert min(found.values()) > 2


def test_it_shows_every_value_that_it_has(page: Any, folder: Path) -> None:
    """Marks of the map say what the marks of the exported figure say."""
    draw_all(page)
    with_words = page.eval_on_selector_all(
        "#causal_map [aria-roledescription='rect mark']", "all => all.map(m => m.getAttribute('aria-label'))"
    )
    svg = drawing.to_svg(patching_charts.causal_map(*(pl.read_parquet(folder / f"{name}.parquet") for name in ("rows", "summary")), {}))
    exported = re.findall(r'aria-label="([^"]*)" role="graphics-symbol" aria-roledescription="rect mark"', svg)
    assert sorted(with_words) == sorted(exported)
    assert len(exported) > 20


def test_texts_stay_texts(page: Any) -> None:
    assert EVIL in page.title()
    assert EVIL in page.inner_text("h1")


def test_the_explorer_shows_what_was_asked_for(page: Any, folder: Path) -> None:
    summary = pl.read_parquet(folder / "summary.parquet")
    assert page.locator(".cells button").count() == 7 * 5
    page.select_option("select[aria-label=direction]", "base<-tuned")
    page.select_option("select[aria-label=arm]", "mean")
    page.select_option("select[aria-label=metric]", "kl_other_nats")
    here = summary.filter(
        pl.col("measure") == "patching", pl.col("split") == "report", pl.col("direction") == "base<-tuned", pl.col("arm") == "mean",
        pl.col("metric") == "kl_other_nats", pl.col("layer") == 4, pl.col("site") == "attn_out", pl.col("unit").is_null(),
        pl.col("control").is_null(),
    )  # fmt: skip
    said = page.locator('.cells button[aria-label^="L4.attn_out"]').get_attribute("aria-label")
    assert float(re.match(r"L4.attn_out: ([\d.]+)", said)[1]) == pytest.approx(here["mean"][0], rel=0.006)  # type: ignore[index]


def test_a_cell_opens_its_prompts_by_click_and_by_key(page: Any, folder: Path) -> None:
    rows = pl.read_parquet(folder / "rows.parquet").filter(
        pl.col("measure") == "patching", pl.col("split") == "report", pl.col("direction") == "tuned<-base", pl.col("arm") == "identity",
        pl.col("metric") == "kl_own_nats", pl.col("layer") == 4, pl.col("site") == "attn_out", pl.col("unit").is_null(), pl.col("control").is_null(),
    ).sort("value", descending=True)  # fmt: skip
    cell = page.locator('.cells button[aria-label^="L4.attn_out"]')
    cell.click()
    entries = page.locator(".prompts li").all_inner_texts()
    assert len(entries) == len(rows) == 24
    assert entries[0].startswith(rows["prompt"][0])
    assert entries[0].endswith(f"He: {rows['prompt'][0]} says {EVIL} to {rows['prompt'][0]}?"), "all of it but the template's words"
    for entry, value in zip(entries, rows["value"], strict=True):
        assert float(re.search(r" ([\d.]+) of ", entry)[1]) == pytest.approx(value, rel=0.006)  # type: ignore[index]
    cell.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.locator(".detail h4").inner_text().startswith("L5.attn_out")


def first_numbers(cells: list[str]) -> list[float]:
    """What each cell is sorted by: its value, before its interval."""
    return [float(re.match(r"[−\d.]+", text)[0].replace("−", "-")) for text in cells]  # type: ignore[index]


def test_tables_sort_and_search(page: Any) -> None:
    table = page.locator("#patching table").first
    head = table.locator("thead th", has_text="recovery").locator("button")
    head.click()
    values = first_numbers(table.locator("tbody tr td:nth-child(3)").all_inner_texts())
    assert values == sorted(values, reverse=True)
    head.click()
    assert first_numbers(table.locator("tbody tr td:nth-child(3)").all_inner_texts()) == sorted(values)
    assert table.locator("th[aria-sort=ascending]").count() == 1
    search = page.locator("input[type=search]").first
    search.evaluate("one => { const folded = one.closest('details'); if (folded) folded.open = true; }")
    rows = search.locator("xpath=ancestor::div[1]/preceding-sibling::div[1]//tbody/tr")
    first = rows.first.locator("th").inner_text()
    search.fill(first)
    assert 1 <= rows.locator("visible=true").count() < rows.count()
    search.fill("no such row")
    assert rows.locator("visible=true").count() == 0


@pytest.mark.parametrize(("kind", "start"), [("SVG", b"<svg"), ("PNG", b"\x89PNG"), ("CSV", b"layer,")])
def test_a_figure_can_be_taken_from_the_file_alone(page: Any, kind: str, start: bytes, tmp_path: Path) -> None:
    with page.expect_download() as taken:
        page.locator("#cka_by_layer .tools button", has_text=kind).click()
    taken.value.save_as(tmp_path / "file")
    content = (tmp_path / "file").read_bytes()
    assert content.startswith(start)
    assert len(content) > 500


@pytest.mark.parametrize("width", [390, 1280])
def test_figures_are_as_wide_as_the_page_and_can_be_read(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.reload()
    draw_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    letters = "all => all.map(t => parseFloat(getComputedStyle(t).fontSize) * t.ownerSVGElement.getScreenCTM().a)"
    assert min(page.eval_on_selector_all("#everything .plot svg text", letters)) >= 8.9
    frames = page.eval_on_selector_all(
        "#everything .plot", "all => all.map(f => [f.clientWidth, f.querySelector('svg').getBoundingClientRect().width])"
    )
    assert all(0.85 * min(frame, 1000) < svg <= frame + 1 for frame, svg in frames), frames


def test_dark_pages_have_dark_figures(page: Any) -> None:
    page.locator("#cka_by_layer").scroll_into_view_if_needed()
    colours = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.locator(f"#cka_by_layer .plot[data-drawn={scheme}]").wait_for()
        found = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
        shown = page.eval_on_selector("#cka_by_layer .plot svg .role-axis-label text", "one => getComputedStyle(one).fill")
        colours[scheme] = [[int(part) for part in re.findall(r"\d+", one)[:3]] for one in (*found, shown)]
        text, paper, label = colours[scheme]
        assert contrast(text, paper) >= 4.5
        assert contrast(label, paper) >= 4.5
    assert colours["light"] != colours["dark"]


def test_paper_has_all_figures_and_they_are_light(page: Any) -> None:
    page.emulate_media(color_scheme="dark")
    page.locator("#everything .plot[data-drawn]").first.wait_for()
    page.pdf()
    assert min(drawn(page).values()) > 2
    page.locator("#cka_by_layer .plot[data-drawn=dark]").wait_for()
    page.emulate_media(color_scheme="dark", media="print")
    page.locator("#cka_by_layer .plot[data-drawn=light]").wait_for()
    assert page.locator(".plot[data-drawn=dark]:visible").count() == 0


def test_without_its_script_a_page_says_what_is_missing(chromium: Any, folder: Path) -> None:
    context = chromium.new_context(java_script_enabled=False)
    opened = context.new_page()
    opened.goto((folder / "report.html").as_uri())
    assert opened.locator("noscript").first.is_visible()
    assert opened.locator("figure noscript").count() == opened.locator("#everything figure").count() >= 10
    assert opened.locator("figure h3").first.is_visible()
    context.close()


def contrast(one: list[int], other: list[int]) -> float:
    """The contrast ratio of WCAG 2."""

    def light(colour: list[int]) -> float:
        parts = [part / 255 for part in colour]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)
