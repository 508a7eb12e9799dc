"""A model card has the front matter that the Hub reads and one block of the six answers, whatever stood there before."""

import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

import mechdiff
from mechdiff import MechdiffError
from mechdiff.cli import main as cli
from mechdiff.results.card import END, START, front_matter


def record(base: str, *, adapter: bool, stated: str | None = None) -> dict[str, Any]:
    return {"pair": {"base": {"ref": base}, "tuned": {"ref": "t", "adapter": adapter}}, "lineage": {"stated_base": stated}}


@pytest.mark.parametrize(
    ("manifest", "given", "base", "relation", "library"),
    [
        (record("owner/base", adapter=True), None, "owner/base", "adapter", "peft"),
        (record("owner/base", adapter=False), None, "owner/base", "finetune", "transformers"),
        (record("/models/base", adapter=True, stated="owner/stated"), None, "owner/stated", "adapter", "peft"),
        (record("/models/base", adapter=False, stated="./base"), None, None, None, "transformers"),
        (record("/models/base", adapter=False), "owner/mine", "owner/mine", "finetune", "transformers"),
        (record("Llama (in memory, 0123abcd)", adapter=False), None, None, None, "transformers"),
    ],
)
def test_front_matter_names_a_base_that_the_hub_could_have(
    manifest: dict[str, Any], given: str | None, base: str | None, relation: str | None, library: str
) -> None:
    found = front_matter(manifest, given)
    assert (found.get("base_model"), found.get("base_model_relation"), found["library_name"]) == (base, relation, library)
    assert found["pipeline_tag"] == "text-generation"
    assert "mechdiff" in found["tags"]


def test_the_hub_s_own_reader_reads_the_card(finished: mechdiff.Run) -> None:
    card = ModelCard(finished.card(base_model="owner/base", page="https://example.org/r.html"))
    assert card.data.base_model == "owner/base"
    assert card.data.library_name == "transformers"
    for tile in finished.overview().tiles:
        assert f"[{tile.title}](https://example.org/r.html#{tile.section})" in card.text
    assert card.text.count("\n| ") == 1 + 6
    assert "Compared with [owner/base](https://huggingface.co/owner/base) on 2 test prompts" in card.text
    assert "in memory" not in finished.card()


def test_a_card_gets_a_block_once_and_keeps_its_own_words(finished: mechdiff.Run, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    own = "---\nlicense: mit  # ours\ntags: lora\nbase_model: other/base\n---\n# Mine\n\nText.\n\n{}\n\n## After\n"
    path.write_text(own.format(f"{START}\nold\n{END}"))
    finished.card(path, base_model="owner/base")
    once = path.read_text()
    finished.card(path, base_model="owner/base")
    assert path.read_text() == once
    card = ModelCard(once)
    assert card.data.license == "mit"
    assert card.data.base_model == "other/base"
    assert getattr(card.data, "base_model_relation", None) is None  # it would be said of another base
    assert card.data.tags == ["lora", "mechdiff", "model-diffing", "interpretability"]
    body = once.split("---\n", 2)[2]
    assert body.startswith("# Mine\n\nText.\n\n<!-- mechdiff:start -->\n## What")
    assert body.endswith(f"{END}\n\n## After\n")
    assert "old" not in body


def test_a_card_that_is_not_there_or_has_no_block_gets_both(finished: mechdiff.Run, tmp_path: Path) -> None:
    finished.card(tmp_path / "new.md")
    assert ModelCard((tmp_path / "new.md").read_text()).data.library_name == "transformers"
    (tmp_path / "text.md").write_text("# Mine")
    finished.card(tmp_path / "text.md")
    assert (tmp_path / "text.md").read_text().startswith("---\nlibrary_name")
    assert f"---\n# Mine\n\n{START}" in (tmp_path / "text.md").read_text()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"{START}\n", f"found 1 of {START} and 0 of {END}"),
        (f"{END}{START}", "in this order"),
        ("---\na: 1\n", "front matter does not end"),
        ("---\n- a\n---\n", "no list of fields"),
        ("---\na: [\n---\n", "is no YAML"),
    ],
)
def test_a_broken_card_is_left_as_it_is(text: str, says: str, finished: mechdiff.Run, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(MechdiffError, match=says):
        finished.card(path)
    assert path.read_text() == text


def test_what_a_model_said_is_no_markup(finished: mechdiff.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    evil = "<script>x</script> | [a](b)\n# *t*"
    overview = finished.overview()
    tiles = (replace(overview.tiles[0], parts=(evil,)), *overview.tiles[1:])
    from mechdiff.results.card import block

    line = block(replace(overview, tiles=tiles), finished.manifest()).splitlines()[7]
    assert line.endswith(r"| &lt;script&gt;x&lt;/script&gt; \| \[a\](b) \# \*t\* |")


def test_the_verb_prints_a_card_or_writes_it(
    finished: mechdiff.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(*words: Any) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["mechdiff", "card", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        return capsys.readouterr()

    out, err = call(finished.path)
    assert out == finished.card()
    assert "base_model is left out" in err
    out, err = call(finished.path, "--into", tmp_path / "README.md", "--base-model", "owner/base", "--page", "p.html")
    assert out == f"{tmp_path / 'README.md'}\n"
    assert err == ""
    assert (tmp_path / "README.md").read_text().endswith(finished.card(page="p.html", base_model="owner/base").partition("---\n\n")[2])
