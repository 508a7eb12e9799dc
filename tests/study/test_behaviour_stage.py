"""Behaviour as part of a run: what is said and scored is what naive passes say, and edits do what was planted."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import runs
from mechdiff.errors import PromptError, StudyError
from mechdiff.measures.behaviour.answers import CHOICE
from mechdiff.measures.catalogue import EXPERIMENTS, make_study
from mechdiff.store.record import plain
from mechdiff.study.config import RunOptions
from mechdiff.study.estimate import estimate
from mechdiff.study.prepare import prepare

OPTIONS: dict[str, Any] = {
    "max_tokens": 5, "samples": 2, "openings": 2, "scored_layers": 4, "closer": [1, 2], "scored_prompts": 8, "spoken_prompts": 4,
    "masked": True, "sites": ["resid_post", "attn_out"],
}  # fmt: skip
MEASURES: list[Any] = [
    "divergence",
    {"transport": {"sites": ["resid_post"], "maps": ["anchored_ridge"], "closer": [1, 2], "permutations": 1}},
    {"steering": {"closer": [1, 2], "sites": ["resid_post"], "side_prompts": 2, "draws": 1, "texts": 1, "continuation": 2}},
    {"behaviour": OPTIONS},
]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 prompts: a third to be chosen from, a third with a number as the answer, a third with a class as the label."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    lines: list[dict[str, Any]] = []
    for i in range(24):
        one: dict[str, Any] = {"id": f"p{i}", "text": f"What is {i * 7919 % 97} and {i}?"}
        one |= [{"options": ["blue", "green sky", f"{i}"], "label": "green sky"}, {"label": str(i)}, {"label": "sums"}][i % 3]
        lines.append(one)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@dataclass(frozen=True)
class Finished:
    rows: pl.DataFrame
    record: dict[str, Any]
    folder: Path


def execute(study: dict[str, Any], out: Path, **options: Any) -> Finished:
    rows, record = runs.execute(make_study(study), out, **options)
    return Finished(rows.filter(pl.col("measure") == "behaviour"), json.loads(json.dumps(plain(record))), out)


@pytest.fixture(scope="module")
def study(pair: Path, prompts: Path) -> dict[str, Any]:
    return {"pair": {"base": str(pair / "base"), "tuned": str(pair / "tuned")}, "prompts": {"file": str(prompts)}}


@pytest.fixture(scope="module")
def finished(study: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return execute({**study, "measures": MEASURES}, tmp_path_factory.mktemp("behaviour") / "run")


@pytest.fixture(scope="module")
def rows(finished: Finished) -> pl.DataFrame:
    return finished.rows


def where(rows: pl.DataFrame, **named: Any) -> pl.DataFrame:
    return rows.filter(*(pl.col(name).eq_missing(value) for name, value in named.items()))


def values(rows: pl.DataFrame, **named: Any) -> dict[str, float]:
    found = where(rows, **named)
    assert found["prompt"].n_unique() == len(found)
    return dict(found.select("prompt", "value").iter_rows())


def ids_of(line: dict[str, Any], side: str) -> list[int]:
    """Of a line of prompts.jsonl, which holds the tuned model's tokens only where they are others."""
    return line.get(f"ids_{side}") or line["ids_base"]


def read_rendered(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(one["split"], one["id"]): one for one in map(json.loads, (folder / "prompts.jsonl").read_text().splitlines())}


def naive_logp(net: Any, tokenizer: Any, ids: list[int], text: str) -> float:
    more = tokenizer(text, add_special_tokens=False)["input_ids"]
    laws = net(torch.tensor([ids + more])).logits[0].double().log_softmax(-1)
    return sum(laws[len(ids) - 1 + i, token].item() for i, token in enumerate(more))


def test_rows_are_told_apart(rows: pl.DataFrame) -> None:
    assert len(rows.unique(subset=rows.columns[:-1])) == len(rows)
    assert set(rows["split"]) == {"report", None}
    clean = where(rows, direction=None)
    assert {unit.split(", ")[0] for unit in clean["unit"]} == {"base", "tuned"}
    assert {unit.partition(", ")[2] for unit in clean["unit"]} >= {"", "sampled", "shared tokens", "courtesy"}
    assert set(rows["direction"]) == {None, "tuned<-base", "base<-tuned", "base<-base", "tuned<-tuned"}
    assert set(rows["arm"]) == {None, "identity", "anchored_ridge", "add", "ablate", "alone"}


def test_answers_and_choices_are_those_of_naive_passes(pair: Path, finished: Finished, rows: pl.DataFrame) -> None:
    told = finished.record["behaviour"]["texts"]
    rendered = read_rendered(finished.folder)
    for side in ("base", "tuned"):
        net, tokenizer = AutoModelForCausalLM.from_pretrained(pair / side), AutoTokenizer.from_pretrained(pair / side)
        plain = GenerationConfig(
            max_new_tokens=5, do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id
        )
        for one in told[:6]:
            ids = torch.tensor([ids_of(rendered[one["split"] or "probes", one["prompt"]], side)])
            said = net.generate(ids, attention_mask=torch.ones_like(ids), generation_config=plain)[0, ids.shape[1] :]
            assert tokenizer.decode(said, skip_special_tokens=True) == one[side]
        margin = values(rows, unit=side, split="report", metric="mc_logp_sum_nats")
        assert margin
        for name, value in margin.items():
            assert value == pytest.approx(naive_logp(net, tokenizer, ids_of(rendered["report", name], side), "green sky"), abs=1e-4)


def test_each_prompt_is_asked_what_it_can_answer(rows: pl.DataFrame) -> None:
    report = where(rows, unit="base", split="report")
    kinds = {metric: {int(name[1:]) % 3 for name in part["prompt"]} for (metric,), part in report.group_by("metric")}
    assert all(kinds[metric] == {0} for metric in CHOICE)
    assert kinds["exact_match"] == {1}, "a label that is a number is a final answer; a class is none"
    assert kinds["refusal"] == kinds["refusal_soft_nats"] == {0, 1, 2}
    sampled = where(rows, unit="tuned, sampled", metric="refusal")
    assert set(sampled["value"]) <= {0.0, 0.5, 1.0}
    kept = where(rows, unit="base, shared tokens", metric="mask_coverage")["value"]
    assert kept.to_list() == pytest.approx([1.0] * len(kept)), "one vocabulary: the cut keeps everything"


def test_edits_do_what_was_planted(rows: pl.DataFrame) -> None:
    """The tuned model's only change is in block 1's attention."""
    for split in ("report", None):
        clean = {side: where(rows, unit=side, split=split) for side in ("base", "tuned")}
        for metric in ("refusal_soft_nats", "mc_margin_per_byte_nats"):
            own = {side: values(clean[side], metric=metric) for side in clean}
            here = {"metric": metric, "split": split}
            no_op = values(rows, direction="tuned<-base", control="no_op", **here)
            assert no_op == pytest.approx({name: own["tuned"][name] for name in no_op}, abs=1e-6)
            below = values(rows, direction="tuned<-base", arm="identity", site="resid_post", layer=0, **here)
            assert below == pytest.approx(no_op, abs=1e-5), "nothing differs before the change"
            grafted = values(rows, direction="base<-tuned", arm="alone", site="attn", layer=1, **here)
            assert grafted == pytest.approx({name: own["tuned"][name] for name in grafted}, abs=1e-5), "all of the change"
            moved = values(rows, direction="tuned<-base", arm="identity", site="resid_post", layer=1, **here)
            assert max(abs(moved[name] - no_op[name]) for name in moved) > 1e-4
    spoken = where(rows, metric="refusal", direction="base<-tuned", arm="identity")
    assert set(spoken["layer"]) == {1, 2}, "answers are given at the selected layers"


def test_the_answers_stand_in_the_record(finished: Finished) -> None:
    told = finished.record["behaviour"]
    assert told["n_scored"] == 8
    assert told["n_spoken"] == 4
    edited = [one for one in told["texts"] if one["patched"]]
    assert len(edited) == 4
    assert told["texts"][:4] == edited, "those that were answered under edits come first"
    grafts = [
        (one["tuned"], patched["text"])
        for one in edited
        for patched in one["patched"]
        if patched["arm"] == "alone" and patched["layer"] == 1
    ]
    assert len(grafts) == 4
    assert all(tuned == graft for tuned, graft in grafts), "the grafted base says what the tuned model says"
    n_probes = sum(len(names) for kind, by_language in told["groups"].items() if kind != "report" for names in by_language.values())
    assert told["probes"]["n"] == n_probes == 16
    assert told["languages"] == {"en": n_probes + len(told["groups"]["report"]["en"])}
    (left_out,) = (one for one in finished.record["skipped"] if "behaviour" in one["what"])
    assert left_out["what"] == "behaviour of 32 prompts"
    assert "longer than a model's context: choice-kk-1, " in left_out["why"]


@pytest.mark.slow
def test_the_slow_engine_says_and_scores_the_same(study: dict[str, Any], rows: pl.DataFrame, tmp_path: Path) -> None:
    measures = ["divergence", {"behaviour": OPTIONS | {"samples": 0, "probes": False}}]
    found = execute({**study, "measures": measures}, tmp_path / "run", engine="full").rows
    key = [name for name in rows.columns if name != "value"]
    both = found.join(rows.filter(~pl.col("unit").fill_null("").str.contains("sampled")), on=key, nulls_equal=True, suffix="_fast")
    assert len(both) > 400
    assert (both["value"] - both["value_fast"]).abs().max() < 1e-4  # type: ignore[operator]


def test_behind_an_opening_bracket_no_space_opens_an_option(pair: Path, study: dict[str, Any], tmp_path: Path) -> None:
    prompts = {**study["prompts"], "answer": "The answer is ("}
    measures = [{"behaviour": {"max_tokens": 1, "openings": 1, "probes": False, "scored_prompts": 0}}]
    done = execute({**study, "prompts": prompts, "measures": measures}, tmp_path / "run")
    net, tokenizer = AutoModelForCausalLM.from_pretrained(pair / "base"), AutoTokenizer.from_pretrained(pair / "base")
    rendered = read_rendered(done.folder)
    for name, value in values(done.rows, unit="base", split="report", metric="mc_logp_sum_nats").items():
        assert rendered["report", name]["text_base"].endswith("The answer is (")
        assert value == pytest.approx(naive_logp(net, tokenizer, rendered["report", name]["ids_base"], "green sky"), abs=1e-4)


def test_an_answer_ends_before_a_stop_text(study: dict[str, Any], finished: Finished, tmp_path: Path) -> None:
    said = [one["base"] for one in finished.record["behaviour"]["texts"] if one["split"]]
    letter = next(text for text in said if len(text) > 1)[1]
    options = {"max_tokens": 5, "stop": [letter], "probes": False, "scored_prompts": 0}
    cut = [one["base"] for one in execute({**study, "measures": [{"behaviour": options}]}, tmp_path / "run").record["behaviour"]["texts"]]
    assert sorted(cut) == sorted(text.partition(letter)[0] for text in said)


def test_own_lists_and_probes_are_used_and_hashed(study: dict[str, Any], tmp_path: Path) -> None:
    lists = {"refusal": ["(?s)."], "refusal_openings": ["No"], "neutral_openings": ["Yes"], "style": {"any": {"words": ["yes"]}}}
    (tmp_path / "en.yaml").write_text(json.dumps(lists))
    (tmp_path / "probes.jsonl").write_text('{"id": "q", "text": "Hello there", "meta": {"kind": "greeting"}}\n')
    own = {"patterns": str(tmp_path / "en.yaml"), "probes": str(tmp_path / "probes.jsonl"), "max_tokens": 3, "scored_prompts": 0}
    asked = {**study, "measures": [{"behaviour": own}]}
    done = execute(asked, tmp_path / "run")
    assert set(where(done.rows, metric="refusal", unit="base")["value"]) == {1.0}
    assert done.rows.filter(pl.col("split").is_null())["prompt"].unique().to_list() == ["q"]
    assert done.record["behaviour"]["groups"]["greeting"] == {"en": ["q"]}
    assert done.rows["direction"].null_count() == len(done.rows), "no prompt is edited where none is asked for"
    before = prepare(make_study(asked), RunOptions(), EXPERIMENTS).config_hash
    (tmp_path / "probes.jsonl").write_text('{"id": "q", "text": "Hello you", "meta": {"kind": "greeting"}}\n')
    assert prepare(make_study(asked), RunOptions(), EXPERIMENTS).config_hash != before


def test_the_estimate_knows_what_answers_cost(study: dict[str, Any]) -> None:
    def flops(**options: Any) -> float:
        found = estimate(make_study({**study, "measures": [{"behaviour": options}]}), EXPERIMENTS)
        return sum(flops for _, _, flops, _ in found.stages.values())

    assert flops(max_tokens=8, scored_prompts=0) < flops(max_tokens=8) < flops(max_tokens=8, samples=4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"probes": ""}, StudyError, "probes.*true.*false.*file"),
        ({"probes": "nowhere.jsonl"}, PromptError, "nowhere.jsonl cannot be read"),
        ({"patterns": "nowhere.yaml"}, StudyError, "nowhere.yaml"),
        ({"max_tokens": 0}, StudyError, "max_tokens"),
        ({"top_p": 1.5}, StudyError, "top_p"),
        ({"stop": [""]}, StudyError, "stop.*texts that end an answer"),
    ],
)  # fmt: skip
def test_bad_input_is_said_before_anything_is_computed(study: dict[str, Any], options: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=f"(?s){message}"):
        prepare(make_study({**study, "measures": [{"behaviour": options}]}), RunOptions(), EXPERIMENTS)


def test_answers_under_edits_may_be_shorter_than_answers(study: dict[str, Any]) -> None:
    def tokens(**options: Any) -> dict[str, set[int]]:
        asked = {**study, "measures": [{"behaviour": {**OPTIONS, **options}}]}
        cells = prepare(make_study(asked), RunOptions(), EXPERIMENTS).plan.cells
        stages = ("behaviour", "behaviour_edits")
        return {stage: {cell.key["settings"]["max_tokens"] for cell in cells if cell.stage == stage} for stage in stages}

    assert tokens() == {"behaviour": {5}, "behaviour_edits": {5}}
    assert tokens(max_tokens=9, edited_tokens=2) == {"behaviour": {9}, "behaviour_edits": {2}}
