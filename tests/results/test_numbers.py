"""Run.results has the numbers of the tiles, and more; results.json says the same and keeps its schema."""

import copy
import json
import re
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import polars as pl
import pytest
import torch

import mechdiff
from mechdiff.measures.catalogue import CHAPTERS
from mechdiff.report.headlines import Number
from mechdiff.results import document, numbers
from mechdiff.results.numbers import slug


def test_every_number_of_a_tile_is_a_row_with_its_interval(finished: mechdiff.Run) -> None:
    found = finished.results
    for tile in finished.overview().tiles:
        for number in tile.numbers:
            row = found.filter(question=tile.question, name=number.of).row(0, named=True)
            assert (row["value"], row["low"], row["high"], row["n"]) == (number.value, number.low, number.high, number.n)
            assert row["sentence"] in tile.text
    assert found.columns == list(numbers.COLUMNS)
    assert found["key"].is_unique().all()
    assert found["value"].is_finite().all()


def test_a_row_s_number_is_what_plain_passes_give(finished: mechdiff.Run, held: dict[str, Any]) -> None:
    row = finished.results.filter(key="how_much/kl_of_the_next_token").row(0, named=True)
    values = []
    for line in map(json.loads, (finished.path / "prompts.jsonl").read_text().splitlines()):
        if line["split"] == "report":
            with torch.no_grad():
                p, q = (held[side](torch.tensor([line["ids_base"]])).logits[0, -1].double().log_softmax(-1) for side in ("tuned", "model"))
            values.append(float((p.exp() * (p - q)).sum()))
    assert row["value"] == pytest.approx(sum(values) / len(values), rel=1e-5)
    assert (row["unit"], row["n"], row["prompts"], row["section"]) == ("nats", len(values), "test prompts", "divergence")
    size = finished.results.filter(key="how_much/relative_change_of_all_weights")["value"].item()
    pairs = [(held["model"].state_dict()[name].double(), tensor.double()) for name, tensor in held["tuned"].state_dict().items()]
    moved, all_of = sum(float((b - a).square().sum()) for a, b in pairs), sum(float(a.square().sum()) for a, _ in pairs)
    assert size == pytest.approx((moved / all_of) ** 0.5, rel=1e-6)


def test_a_key_names_no_place_and_no_phrase() -> None:
    same = [f"part of the change (KL) that L{layer}.mlp's copied weights alone recover" for layer in (2, 27)]
    assert {slug(one) for one in same} == {"part_of_the_change_that_copied_weights_alone_recover"}
    assert slug("KL(tuned ‖ base) of the next token, mean over test prompts") == "kl_of_the_next_token"
    phrases = [
        slug(f"the base's answers that begin with “{phrase}”; exact exchange test, family-wise p = 0.0039") for phrase in ("—", "To")
    ]
    assert phrases == ["the_bases_answers_that_begin_with"] * 2


def test_a_number_that_is_none_is_no_row_and_two_of_one_name_have_two_keys() -> None:
    one = numbers.Result(question="where", name="x", value=1.0, unit="", prompts="none", section="weights", key="where/x")
    told = numbers._named([one, replace(one, value=float("nan")), replace(one, value=2.0)])
    assert [(r.key, r.value) for r in told] == [("where/x", 1.0), ("where/x_2", 2.0)]


def test_numbers_that_are_none_or_of_numpy_keep_the_schema(finished: mechdiff.Run) -> None:
    numbers_ = (
        Number(shown="x", value=float("inf"), of="“quoted”", n=np.int64(3)),
        Number(shown="y", value=np.float32(2), of="y", low=float("nan"), high=np.float64(3)),
    )
    overview = finished.overview()
    odd = replace(overview, tiles=(replace(overview.tiles[0], parts=numbers_), *overview.tiles[1:]))
    rows = [
        numbers.Result(
            question="where",
            name="y",
            value=2.0,
            unit="",
            low=float("nan"),
            n=np.int64(3),
            prompts="none",
            section="weights",
            key=f"where/{slug('7')}",
        )
    ]
    told = document.document(finished._content, odd, rows).model_dump(mode="json")
    jsonschema.validate(told, document.schema())
    shown = told["tiles"][0]["numbers"]
    assert [one["value"] for one in shown] == [None, 2.0]
    assert (shown[0]["n"], shown[1]["low"], shown[1]["high"]) == (3, None, 3.0)
    assert (told["results"][0]["low"], told["results"][0]["key"]) == (None, "where/number")


def test_what_fails_a_gate_is_no_row(finished: mechdiff.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from mechdiff.report.headlines import told
    from mechdiff.report.parts import Feed

    def says(run: Any) -> list[Any]:
        return [told(Number(shown="1", value=1, of="one"), tested=False), told(Number(shown="2", value=2, of="two"))]

    chapter = replace(CHAPTERS["weights"], feeds={"where": Feed(says=says, place=0)})
    found = numbers.results(finished._content, {"weights": chapter})
    assert [one.name for one in found if one.question == "where"] == ["two"]


# ---- results.json ----------------------------------------------------------------------------------------------------------------------


def read(run: mechdiff.Run) -> dict[str, Any]:
    return json.loads((run.path / document.NAME).read_text(encoding="utf-8"))


def test_results_json_keeps_its_schema_and_says_what_the_run_says(finished: mechdiff.Run) -> None:
    told = read(finished)
    jsonschema.Draft202012Validator.check_schema(shipped := json.loads(document.SCHEMA.read_text(encoding="utf-8")))
    jsonschema.Draft202012Validator(shipped).validate(told)
    assert pl.DataFrame(told["results"], schema=numbers.COLUMNS).equals(finished.results)
    assert [tile["text"] for tile in told["tiles"]] == [tile.text for tile in finished.overview().tiles]
    assert told["base"]["files"] == finished.manifest()["pair"]["base"]["files"]
    assert told["measures"] == ["divergence", "weights", "patching", "behaviour"]
    assert set(told["run_files"]) >= {"rows.parquet", "summary.parquet"}


def test_the_shipped_schema_is_that_of_the_document() -> None:
    assert json.loads(document.SCHEMA.read_text(encoding="utf-8")) == document.schema()
    assert re.fullmatch(r"\d+\.\d+", document.VERSION)
    assert document.schema()["properties"]["schema_version"]["const"] == document.VERSION


@pytest.mark.parametrize(
    ("wrong", "at"),
    [
        (lambda told: told["results"][0].update(value="8"), "value"),
        (lambda told: told["tiles"].pop(), "tiles"),
        (lambda told: told.update(more=1), "more"),
        (lambda told: told["results"][0].update(question="why"), "why"),
    ],
)
def test_another_document_does_not_keep_the_schema(wrong: Any, at: str, finished: mechdiff.Run) -> None:
    told = copy.deepcopy(read(finished))
    wrong(told)
    with pytest.raises(jsonschema.ValidationError, match=at):
        jsonschema.validate(told, document.schema())


def test_results_json_is_made_anew_with_the_report(of_run: mechdiff.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from mechdiff.results import finished as module

    monkeypatch.setattr(module, "page_of", lambda content, chapters, path: path / "report.html")
    before = (of_run.path / document.NAME).read_bytes()
    (of_run.path / document.NAME).unlink()
    assert of_run.report() == of_run.path / "report.html"
    assert (of_run.path / document.NAME).read_bytes() == before
