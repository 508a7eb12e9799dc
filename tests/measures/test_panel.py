"""The panel's numbers are those of plain passes of transformers; copies change nothing; tests of groups are corrected; a user's own file is read."""

import json
import math
import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from every_measure import made
from mechdiff.errors import PromptError
from mechdiff.measures.catalogue import make_study
from mechdiff.measures.panel import compare, findings, words
from mechdiff.measures.panel.charts import kl_by_group
from mechdiff.measures.panel.plan import GROUPS, PanelOptions, entries
from mechdiff.models.pair import Pair
from mechdiff.report import parts
from mechdiff.rows import where
from mechdiff.study import run as study_run
from runs import execute, finish, opened

OWN = [
    {"id": "mine", "text": "Say yes", "label": "yes, of course"},
    {"id": "both", "text": "Say yes or no", "label": "no", "options": ["yes", "no"]},
    {"id": "plain", "text": "Say what you like"},
]


def of_pair(folder: Path, tuned: str, **options: Any) -> tuple[parts.Run, dict[str, Any]]:
    study = make_study(
        {
            "pair": {"base": str(folder / "base"), "tuned": str(folder / tuned)},
            "prompts": {"report": str(folder / "report.jsonl"), "policy": "native"},
            "measures": [{"panel": options}],
        }
    )
    out = folder / f"run_{tuned}"
    _, _, record = finish(study, out, device="cpu")
    return parts.load(out), record


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("panel")
    made(place)
    (place / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in OWN))
    return place


@pytest.fixture(scope="module")
def run(folder: Path) -> parts.Run:
    return of_pair(folder, "tuned", per_group=2, also=str(folder / "own.jsonl"))[0]


def test_with_one_model_in_memory_a_pass_loads_one_model_and_gives_the_same_rows(folder: Path, tmp_path: Path) -> None:
    """Whose turn it is first is whose weights are there: of so many passes each after the first loads one model."""
    study = make_study({
        "pair": {"base": str(folder / "base"), "tuned": str(folder / "tuned")}, "prompts": {"report": str(folder / "report.jsonl")},
        "measures": [{"panel": {"per_group": 2}}],
    })  # fmt: skip
    loaded: list[str] = []
    with pytest.MonkeyPatch.context() as patched:
        load = Pair._load
        patched.setattr(Pair, "_load", lambda self, side: loaded.append(side) or load(self, side))
        alone, _ = execute(study, tmp_path / "one", device="cpu", memory="one")
    with opened(study, tmp_path / "both", device="cpu") as (prepared, folder_of):
        passes = sum(cell.stage == "panel" for cell in prepared.plan.cells)
        both, _ = study_run.execute(prepared, folder_of)
    here = {"measure": "panel"}
    assert where(alone, **here).equals(where(both, **here))
    assert passes > 2
    assert all(one != other for one, other in pairwise(loaded)), "no model is loaded that is there"
    assert len(loaded) <= passes + 4, "both for what comes before, then one a pass"


def value(run: parts.Run, prompt: str, metric: str) -> float:
    (found,) = where(run.rows, measure="panel", prompt=prompt, metric=metric)["value"]
    return float(found)


def laws(folder: Path, side: str, ids: list[int]) -> torch.Tensor:
    net = AutoModelForCausalLM.from_pretrained(folder / side, dtype=torch.float64)
    with torch.no_grad():
        return net(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)


def asked(folder: Path, side: str, text: str) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(folder / side)
    told = tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
    return list(tokenizer(told, add_special_tokens=False)["input_ids"])


def test_a_text_is_scored_at_every_position(run: parts.Run, folder: Path) -> None:
    (entry,) = [one for one in entries(PanelOptions(per_group=1)) if one.group == "news"]
    ids = AutoTokenizer.from_pretrained(folder / "base")(entry.prompt.text)["input_ids"][:512]
    base, tuned = (laws(folder, side, ids) for side in ("base", "tuned"))
    assert value(run, "news-01", "kl_tuned_base_nats") == pytest.approx(float((tuned.exp() * (tuned - base)).sum(-1).mean()), rel=1e-4)
    assert value(run, "news-01", "kl_base_tuned_nats") == pytest.approx(float((base.exp() * (base - tuned)).sum(-1).mean()), rel=1e-4)
    assert value(run, "news-01", "top1_same") == pytest.approx(float((base.argmax(-1) == tuned.argmax(-1)).double().mean()))
    said = torch.tensor(ids[1:])
    loss = {side: -float(law[:-1].gather(-1, said[:, None]).mean()) for side, law in (("base", base), ("tuned", tuned))}
    assert value(run, "news-01", "loss_base_nats") == pytest.approx(loss["base"], rel=1e-5)
    assert value(run, "news-01", "loss_change_nats") == pytest.approx(loss["tuned"] - loss["base"], abs=1e-5)


def test_an_answer_is_scored_behind_its_prompt_alone(run: parts.Run, folder: Path) -> None:
    loss = {}
    for side in ("base", "tuned"):
        ids = asked(folder, side, OWN[0]["text"])
        answer = AutoTokenizer.from_pretrained(folder / side)(f" {OWN[0]['label']}", add_special_tokens=False)["input_ids"]
        law = laws(folder, side, [*ids, *answer])[len(ids) - 1 : -1]
        loss[side] = -float(law.gather(-1, torch.tensor(answer)[:, None]).mean())
    assert value(run, "also/mine", "loss_base_nats") == pytest.approx(loss["base"], rel=1e-5)
    assert value(run, "also/mine", "loss_tuned_nats") == pytest.approx(loss["tuned"], rel=1e-5)


def test_an_option_is_right_where_its_log_p_per_byte_is_highest(run: parts.Run, folder: Path) -> None:
    for side in ("base", "tuned"):
        ids, tokenizer = asked(folder, side, OWN[1]["text"]), AutoTokenizer.from_pretrained(folder / side)
        scores = []
        for option in OWN[1]["options"]:
            behind = tokenizer(f" {option}", add_special_tokens=False)["input_ids"]
            law = laws(folder, side, [*ids, *behind])[len(ids) - 1 : -1]
            scores.append(float(law.gather(-1, torch.tensor(behind)[:, None]).sum()) / len(option.encode()))
        assert value(run, "also/both", f"right_{side}") == float(scores[1] > scores[0])


def test_a_prompt_without_a_label_has_its_next_token_alone(run: parts.Run, folder: Path) -> None:
    base, tuned = (laws(folder, side, asked(folder, side, OWN[2]["text"]))[-1] for side in ("base", "tuned"))
    assert value(run, "also/plain", "kl_tuned_base_nats") == pytest.approx(float((tuned.exp() * (tuned - base)).sum()), rel=1e-4)
    measured = where(run.rows, measure="panel", prompt="also/plain")["metric"].to_list()
    assert not any(name.startswith(("loss", "right", "refusal")) for name in measured)


def test_every_group_is_read_and_the_users_own_stands_last(run: parts.Run) -> None:
    table = findings.groups(run.summary)
    assert table["group"].to_list() == [*GROUPS, "also"]
    assert table["n"].to_list() == [2] * len(GROUPS) + [len(OWN)]
    assert findings.overall(run.rows)["kl"][3] == 2 * len(GROUPS), "the user's own prompts are not among the shipped ones"
    assert kl_by_group(run.rows, run.summary, run.manifest) is not None


def test_two_texts_a_group_are_not_tested(run: parts.Run) -> None:
    assert all(math.isnan(one.p) for one in findings.changes(run.rows, run.summary))
    assert any("a test takes 5" in sentence for sentence in words.lead(run))


def test_a_copy_changes_nothing(folder: Path) -> None:
    shutil.copytree(folder / "base", folder / "copy")
    found, _ = of_pair(folder, "copy", per_group=5)
    apart = where(found.rows, measure="panel").filter(pl.col("metric").str.contains("^kl|change"))
    assert set(apart["value"]) == {0.0}
    assert words.lead(found) == [
        "On 60 texts of 12 groups outside these prompts the two models say the same everywhere.",
        "No loss, rate of right answers or refusals changed beyond chance (corrected over 8 scores of all groups; 4 more have too few texts "
        "for a test); with 5 texts a group only large changes would show.",
    ]
    assert kl_by_group(found.rows, found.summary, found.manifest) is None


def test_fine_tunes_stand_beside_one_another(run: parts.Run) -> None:
    """Two runs, one without a panel: a line a group, and the other named."""
    bare = parts.Run(rows=run.rows.clear(), summary=run.summary.clear(), manifest={})
    runs = [SimpleNamespace(name="one", content=run), SimpleNamespace(name="other", content=bare)]
    shown, said = compare.axis(SimpleNamespace(runs=runs)).parts
    assert [line[0] for line in shown["rows"]] == [words.name(group) for group in [*GROUPS, "also"]]
    assert said["text"] == "No panel was read for other."


def test_changes_are_corrected_over_all_groups() -> None:
    """Twelve right answers lost of twelve is found among many scores; one that moves both ways is not; p is Holm's over McNemar's."""
    lost, mixed = [1.0] * 12, [1.0, -1.0] * 6
    rows = pl.concat([_rows("arithmetic", [-one for one in lost]), _rows("multiple_choice", mixed)])
    columns = ("unit", "metric", "mean")
    lines = [
        (f"texts: {group}", metric, mean)
        for group, change in (("arithmetic", -1.0), ("multiple_choice", 0.0))
        for metric, mean in (
            ("kl_tuned_base_nats", 0.1), ("top1_same", 0.5), ("right_change", change), ("right_base", 1.0), ("right_tuned", 1.0 + change),
        )
    ]  # fmt: skip
    none = {name: pl.lit(None, dtype=pl.Float64) for name in ("ci_low", "ci_high", "floor", "p")}
    summary = pl.DataFrame(lines, schema=columns, orient="row").with_columns(measure=pl.lit("panel"), n=pl.lit(12), **none)
    found = {one.group: one for one in findings.changes(rows, summary)}
    assert found["arithmetic"].p == pytest.approx(2 * 2 * 0.5**12)
    assert found["arithmetic"].found
    assert not found["multiple_choice"].found


def _rows(group: str, values: list[float]) -> pl.DataFrame:
    from mechdiff.rows import rows

    names = [f"{group}-{i}" for i in range(len(values))]
    return rows(np.array(values), measure="panel", split="panel", unit=f"texts: {group}", prompt=names, metric="right_change")


def test_texts_are_left_out_and_said_where_a_tokenizer_ends_each_by_itself(folder: Path, tmp_path: Path) -> None:
    """Prompts stand in a template, which no tokenizer ends: they are read all the same."""
    for side in ("base", "tuned"):
        shutil.copytree(folder / side, tmp_path / side)
        file = tmp_path / side / "tokenizer.json"
        made_of = json.loads(file.read_text())
        eos = made_of["added_tokens"][1]
        made_of["post_processor"]["single"].append({"SpecialToken": {"id": eos["content"], "type_id": 0}})
        made_of["post_processor"]["special_tokens"][eos["content"]] = {"id": eos["content"], "ids": [eos["id"]], "tokens": [eos["content"]]}
        file.write_text(json.dumps(made_of))
    shutil.copy(folder / "report.jsonl", tmp_path / "report.jsonl")
    found, record = of_pair(tmp_path, "tuned", per_group=1)
    assert findings.groups(found.summary)["group"].to_list() == [name for name, form in GROUPS.items() if form != "text"]
    (said,) = [one["why"] for one in record["skipped"] if one["what"] == "7 whole texts of the panel"]
    assert "after the text" in said


def test_a_file_that_is_not_there_is_an_error(folder: Path) -> None:
    with pytest.raises(PromptError, match=r"nowhere\.jsonl cannot be read"):
        of_pair(folder, "tuned", per_group=1, also=str(folder / "nowhere.jsonl"))
