"""The page: one file, true, escaped, whole whatever is missing."""

import base64
import hashlib
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest

from mechdiff.errors import RunError
from mechdiff.measures.catalogue import CHAPTERS
from mechdiff.report.page import HEAD, build_report, headed
from mechdiff.report.record import short_name
from report.conftest import CHANGED
from report.planted_run import planted_manifest, planted_rows, write_run

EVIL = "<script>alert(1)</script>\"'&"
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; raises where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append("data" if ("type", "application/json") in attrs else tag)  # which does not run
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] != ["script"] or self.open[-1:] != ["script"]:  # what runs is no text; the data of figures are
            self.text += data


def page_of(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_is_whole_and_names_the_planted_site(run: Path) -> None:
    page = page_of(run)
    assert page.tags.count("noscript") == 6
    assert page.tags.count("figure") == 6 + 1  # the overview's, which needs no script
    assert page.tags.count("svg") == 9 + 1, "a strip for each row, and their axis"
    assert page.tags.count("h2") == 24 + 2
    assert page.tags.count("data") == 6 + 1 + 1  # behind each figure, and behind the map's explorer; and the colours of dark pages
    assert f"L{CHANGED}.attn_out" in page.text
    assert "SmolLM2-135M-Instruct" in page.text
    assert "transport: not asked for by the study" in page.text
    for name in ("d_by_prompt", "cka_by_layer", "causal_map", "arms_by_layer", "cka_against_effect"):
        assert ("id", name) in page.attributes
    assert not (run / "figures").exists()


def test_the_page_loads_nothing_and_its_policy_says_so(run: Path) -> None:
    page = page_of(run)
    links = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "srcset", "action")]
    assert not [link for link in links if link and re.match(r"\w+:|//", link)]
    assert page.tags.count("script") == 2 * page.tags.count("style") == 2  # Vega and its licences, and ours
    assert "University of Washington Interactive Data Lab" in (run / "report.html").read_text(encoding="utf-8")
    assert not [name for name, _ in page.attributes if name == "style" or name.startswith("on")]
    policy = next(value for _, value in page.attributes if value and "default-src" in value)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    text = (run / "report.html").read_text(encoding="utf-8")
    for tag in ("script", "style"):
        contents = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in contents]
        allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
        assert f"{tag}-src {allowed};" in policy
    assert len(text) < 1_500_000


def test_links_within_the_page_lead_somewhere_and_ids_are_unique(run: Path) -> None:
    page = page_of(run)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for name, value in page.attributes if name == "href" and value and value.startswith("#")} <= set(ids)
    text = (run / "report.html").read_text(encoding="utf-8")
    assert set(re.findall(r"url\(#([^)]+)\)", re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL))) <= set(ids)


def test_the_same_folder_gives_the_same_bytes_in_time(run: Path) -> None:
    before = (run / "report.html").read_bytes()
    start = time.process_time()
    assert build_report(run, CHAPTERS) == run / "report.html"
    assert time.process_time() - start < 4
    assert (run / "report.html").read_bytes() == before
    assert not list(run.glob("*.partial"))


def test_what_comes_from_prompts_and_models_stays_text(tmp_path: Path) -> None:
    rows = planted_rows(n_layers=3, n_prompts=6, changed=1, permutations=4).filter(pl.col("measure") != "patching")
    rows = rows.with_columns(prompt=pl.when(pl.col("prompt") == "r002").then(pl.lit(EVIL)).otherwise("prompt"))
    manifest = planted_manifest(n_layers=3, n_prompts=6, changed=1)
    manifest["pair"]["tuned"]["ref"] = EVIL
    manifest["warnings"] = [EVIL]
    manifest["skipped"] = [{"what": EVIL, "why": EVIL}]
    manifest["selection"]["why"] = {EVIL: EVIL}
    manifest["pair"]["base"]["files"] = {EVIL: EVIL}
    folder = write_run(tmp_path, rows, manifest)
    (folder / "study.yaml").write_text(EVIL)
    build_report(folder, CHAPTERS)
    page = page_of(folder)
    assert page.tags.count("script") == 2
    assert page.text.count(EVIL) > 8
    assert "<script>alert" not in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("kept", [["divergence"], ["similarity"], ["patching"], []])
def test_what_was_not_measured_is_a_sentence(kept: list[str], tmp_path: Path, rows: pl.DataFrame) -> None:
    folder = write_run(tmp_path, rows.filter(pl.col("measure").is_in(kept)), {})
    page_text = Page(build_report(folder, CHAPTERS).read_text(encoding="utf-8")).text
    missing = {"divergence": "Divergence was not measured", "similarity": "Similarity was not", "patching": "Patching was not"}
    for measure, sentence in missing.items():
        assert (sentence in page_text) == (measure not in kept)


def test_equal_models_on_one_split_have_no_shares(tmp_path: Path) -> None:
    rows = planted_rows(n_layers=3, n_prompts=6, changed=1, permutations=4).filter(
        pl.col("split") == "select", pl.col("measure") != "similarity"
    )
    rows = rows.with_columns(value=pl.when(pl.col("metric").str.ends_with("_nats")).then(0.0).otherwise("value"))
    text = Page(build_report(write_run(tmp_path, rows, planted_manifest()), CHAPTERS).read_text(encoding="utf-8")).text
    assert "There is no effect to explain: D = 0 nats, on 6 prompts." in text
    assert "strongest" not in text
    assert 'id="causal_map"' not in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "nan" not in text.lower().split()


def test_wider_writes_have_their_own_map(tmp_path: Path) -> None:
    rows = planted_rows(n_layers=3, n_prompts=6, changed=1, permutations=4).filter(pl.col("measure") != "similarity")
    wider = rows.filter(pl.col("measure") == "patching", pl.col("layer").is_not_null()).with_columns(unit=pl.lit("window 2"))
    folder = write_run(tmp_path, pl.concat([rows, wider]), planted_manifest(n_layers=3, n_prompts=6, changed=1))
    page = Page(build_report(folder, CHAPTERS).read_text(encoding="utf-8"))
    assert "wider patches: window 2" in page.text
    assert ("id", "causal_map_window_2") in page.attributes


def test_a_folder_without_a_finished_run_is_an_error(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunError, match="finished run"):
            build_report(folder, CHAPTERS)


def test_the_real_manifest_s_shapes(tmp_path: Path, rows: pl.DataFrame, manifest: dict) -> None:
    """What other versions of a run may write: nothing, or other shapes of the same thing."""
    odd = json.loads(json.dumps(manifest))
    odd |= {"quick": True, "selection": None, "noise_floor": {}, "selfcheck": {"base": {}, "tuned": {}}, "skipped": [], "warnings": []}
    folder = write_run(tmp_path, rows.filter(pl.col("measure") == "divergence"), odd)
    text = Page(build_report(folder, CHAPTERS).read_text(encoding="utf-8")).text
    assert "A quick run" in text
    assert "Nothing that the study asked for was skipped." in text


@pytest.mark.parametrize(
    ("ref", "name"),
    [
        ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"),
        ("/models/llama/", "llama"),
        ("./x/SmolLM2.Q4_1.gguf", "SmolLM2.Q4_1"),
        ("courtesy", "courtesy"),
    ],
)
def test_a_model_s_name_in_the_title(ref: str, name: str) -> None:
    assert short_name({"pair": {"base": {"ref": ref}}}, "base") == name
    assert short_name({}, "tuned") == "tuned"


FULL = [
    "divergence",
    "divergence.texts",
    "weights",
    "grafting",
    "similarity",
    "patching",
    "factorial",
    "patching.agreement",
    "trust",
    "record",
]


def test_a_run_of_all_measures_has_all_sections_in_order(full_run: Path) -> None:
    page = page_of(full_run)
    sections = [value for name, value in page.attributes if name == "id" and value in FULL]
    assert sections == FULL
    assert page.tags.count("figure") == 17 + 1
    for name in ("kl_by_position", "weight_map", "grafts_alone", "factorial_by_layer"):
        assert ("id", name) in page.attributes
    text = (full_run / "report.html").read_text(encoding="utf-8")
    assert 'class="k5 prompt"' in text
    assert "&lt;|im_start|&gt;" in text
    assert "None" not in page.text
    assert "nan" not in page.text.lower().split()


def test_the_full_page_keeps_its_policy_its_ids_and_its_bytes(full_run: Path) -> None:
    test_the_page_loads_nothing_and_its_policy_says_so(full_run)
    test_links_within_the_page_lead_somewhere_and_ids_are_unique(full_run)
    test_the_same_folder_gives_the_same_bytes_in_time(full_run)


def test_sections_that_were_not_measured_are_one_note_each(run: Path) -> None:
    text = page_of(run).text
    for sentence in (
        "Divergence along whole texts was not measured",
        "Weights were not compared",
        "Grafting was not run",
        "The factorial of lower and upper blocks was not run",
    ):
        assert text.count(sentence) == 1


def test_hostile_tokens_tensors_and_statements_stay_text(tmp_path: Path, full_rows: pl.DataFrame, full_manifest: dict) -> None:
    manifest = json.loads(json.dumps(full_manifest).replace("<|im_start|>", json.dumps(EVIL)[1:-1]))
    manifest["texts"][0]["prompt"] = EVIL
    manifest["texts"][0]["tokens"][1] |= {"top_base": EVIL, "top_tuned": "\u202e" + EVIL}
    manifest["moved_tokens"]["up"][0]["token"] = EVIL
    manifest["weights"]["statements"] = [EVIL]
    name = f"model.layers.{CHANGED}.self_attn.o_proj.weight"
    manifest["weights"]["spectra"] = {EVIL: manifest["weights"]["spectra"][name]}
    rows = full_rows.filter(pl.col("measure").is_in(["divergence", "weights", "grafting"]))
    unit = pl.when(pl.col("unit") == name).then(pl.lit(EVIL)).when(pl.col("arm") == "greedy").then(pl.lit(EVIL)).otherwise("unit")
    site = pl.when(pl.col("site") == "final_norm", pl.col("measure") == "grafting").then(pl.lit(EVIL)).otherwise("site")
    folder = write_run(tmp_path, rows.with_columns(unit=unit, site=site), manifest)
    build_report(folder, CHAPTERS)
    page = page_of(folder)
    assert page.tags.count("script") == 2
    assert page.text.count(EVIL) > 6
    assert "\u202e" not in page.text
    assert not [name for name, _ in page.attributes if name == "style" or name.startswith("on")]
    assert "<script>alert" not in (folder / "report.html").read_text(encoding="utf-8")


def test_every_figure_has_words_beside_its_number(full_run: Path) -> None:
    text = (full_run / "report.html").read_text(encoding="utf-8")
    heads = re.findall(r'<figure id="(\w+)"[^>]*>\s*<h3>(.*?)</h3>', text, re.DOTALL)
    assert len(heads) == 17
    assert [name for name, head in heads if 'class="words"' not in head] == []


@pytest.mark.parametrize(
    ("caption", "head", "rest"),
    [
        ("Short.", "Short", ""),
        ("The rank of a change at L28.resid_post is 11 (of 16 prompts; R² 0.51), which is much. More of it " + "follows " * 20, "", None),
        ("One clause (a; b: c), and a second one. " + "And on " * 20, "One clause (a; b: c), and a second one", None),
    ],
)  # fmt: skip
def test_a_caption_is_cut_where_no_bracket_is_open(caption: str, head: str, rest: str | None) -> None:
    found, under = headed(caption)
    assert found.count("(") == found.count(")")
    assert len(found) <= HEAD
    if head:
        assert found == head
    if rest is not None:
        assert under == rest
