"""Two harness logs, item by item: tests against textbook numbers, flips by name, unequal items refused by name, divergence of flips."""

import json
import zipfile
from pathlib import Path
from typing import Any

import answered_run
import numpy as np
import pytest
from scipy.stats import binomtest, mannwhitneyu

from mechdiff.errors import RunError, StudyError
from mechdiff.exchange import divergences, inspect_logs, lm_eval, paired, said
from mechdiff.exchange.answered import read_answers
from mechdiff.exchange.logs import Item, Logged, read_logs
from mechdiff.statistics import intervals


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return answered_run.write(tmp_path_factory.mktemp("answered"))


@pytest.fixture(scope="module")
def logs(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    of = read_answers(run)
    lm_eval.write(of, folder)
    for path in inspect_logs.write(of, folder / "inspect"):
        side = "base" if "_base-" in path.name else "tuned"
        (folder / "inspect" / side).mkdir(exist_ok=True)
        path.rename(folder / "inspect" / side / path.name)
    return folder


def sample(i: int, score: float, **more: Any) -> dict[str, Any]:
    return {"doc_id": i, "doc": {"q": f"question {i}"}, "target": "x", "arguments": [[f"Q: question {i}\nA:", {}]], "resps": [["a"]],
            "filtered_resps": ["a"], "acc": score, **more}  # fmt: skip


def samples(path: Path, scores: list[float], **more: Any) -> Path:
    path.write_text("".join(json.dumps(sample(i, score, **more)) + "\n" for i, score in enumerate(scores)))
    return path


# ---- tests and flips ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["", "inspect/"])
def test_both_harnesses_give_the_same_flips(logs: Path, run: Path, kind: str) -> None:
    a, b = (read_logs(logs / f"{kind}{side}") for side in ("base", "tuned"))
    found = paired.compare(a, b, kl=divergences.of_run(run, a))
    tasks = {one.task: one for one in found.tasks}
    one = tasks["report"]
    named = answered_run.ids() if kind else [str(i) for i in range(answered_run.N)]
    assert [flip.item for flip in one.lost] == named[3:9]
    assert [flip.item for flip in one.gained] == named[10:]
    assert (one.n, one.metric, one.a, one.b, one.binary) == (12, "exact_match", 0.75, pytest.approx(5 / 12), True)
    assert one.p == pytest.approx(binomtest(2, 8, 0.5).pvalue)
    other = tasks["refusal_unsafe"].p
    assert other == pytest.approx(0.5), "McNemar of 2 and 0"
    assert [task.holm for task in found.tasks] == pytest.approx(intervals.holm(np.array([task.p for task in found.tasks])))
    assert [flip.kl_nats for flip in one.flips] == pytest.approx([answered_run.KL[i] for i in (*range(3, 9), 10, 11)])


def test_flipped_items_diverge_more_where_they_do(logs: Path) -> None:
    a, b = (read_logs(logs / side) for side in ("base", "tuned"))
    flipped = {*range(3, 9), 10, 11}
    kl = {("report", str(i)): (1.0 + i if i in flipped else 0.1 + i / 100) for i in range(12)}
    found = next(one for one in paired.compare(a, b, kl=kl).tasks if one.task == "report").divergence
    assert found is not None
    moved, still = ([kl["report", str(i)] for i in range(12) if (i in flipped) is here] for here in (True, False))
    by_hand = mannwhitneyu(moved, still, alternative="greater")
    assert (found.auc, found.p, found.flipped, found.same) == (1.0, pytest.approx(float(by_hand.pvalue)), 8, 4)
    assert any("items that flipped diverge more than the others" in one for one in said.sentences(paired.compare(a, b, kl=kl)))
    other_way = {key: -value for key, value in kl.items()}
    task = next(one for one in paired.compare(a, b, kl=other_way).tasks if one.task == "report")
    assert task.divergence is not None
    assert task.divergence.auc == 0.0
    assert any("do not diverge significantly more" in one for one in said.sentences(paired.compare(a, b, kl=other_way)))


def test_a_paired_test_finds_what_two_means_hide(tmp_path: Path) -> None:
    """40 items, 7 lost and none gained: unpaired, 30 and 23 of 40 do not differ (p 0.1); paired p is 2 / 2^7."""
    one = read_logs(samples(tmp_path / "samples_t_2026-01-01T00-00-00.jsonl", [1.0] * 30 + [0.0] * 10))
    other = read_logs(samples(tmp_path / "samples_t_2026-01-02T00-00-00.jsonl", [1.0] * 23 + [0.0] * 17))
    (task,) = paired.compare(one, other).tasks
    assert task.p == pytest.approx(2 / 2**7)
    assert task.low is not None
    assert task.high is not None
    assert task.difference == pytest.approx(-7 / 40)
    assert task.low < task.difference < task.high < 0
    (sentence,) = said.sentences(paired.compare(one, other))
    assert sentence.startswith("On t B scores lower than A: −17.5 % [−30, −5] of acc, 40 items ")
    assert "(7 lost, 0 gained, McNemar p = 0.016)" in sentence


def test_scores_that_are_no_rates_have_the_bootstraps_interval_and_no_flips(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(2, 30))
    a, b = (read_logs(samples(tmp_path / f"samples_t_2026-01-0{i + 1}T00-00-00.jsonl", row.tolist())) for i, row in enumerate(values))
    (task,) = paired.compare(a, b).tasks
    difference = values[1] - values[0]
    low, high = intervals.mean_intervals(difference[:, None])
    assert (task.low, task.high) == (pytest.approx(low[0]), pytest.approx(high[0]))
    assert task.p == pytest.approx(intervals.mean_p(difference[:, None])[0])
    assert (task.flips, task.binary) == ((), False)


def test_newcombe_s_interval_covers_and_mirrors() -> None:
    rng, truth, held = np.random.default_rng(1), -0.1, 0
    studies = rng.multinomial(40, [0.5, 0.2, 0.1, 0.2], size=2000)
    for counts in studies:
        low, high = intervals.paired_shares(*(int(one) for one in counts))
        assert -1 <= low <= (counts[2] - counts[1]) / 40 <= high <= 1
        held += low <= truth <= high
    assert 0.94 <= held / 2000 <= 0.985
    low, high = intervals.paired_shares(5, 7, 2, 26)
    assert intervals.paired_shares(5, 2, 7, 26) == pytest.approx((-high, -low))
    low, high = intervals.paired_shares(0, 0, 0, 12)
    assert low == -high < 0, "no difference in 12 is not no difference"


def test_without_a_correlation_newcombe_s_ends_are_those_of_two_independent_shares() -> None:
    low, high = intervals.paired_shares(15, 15, 15, 15)
    reach = float(np.sqrt(2)) * (0.5 - float(intervals.wilson(np.array(0.5), 60)[0]))
    assert (low, high) == (pytest.approx(-reach), pytest.approx(reach))


# ---- what is refused ---------------------------------------------------------------------------------------------------------------


def test_items_of_one_side_alone_are_named(tmp_path: Path) -> None:
    a = read_logs(samples(tmp_path / "samples_t_2026-01-01T00-00-00.jsonl", [1.0] * 9))
    b = read_logs(samples(tmp_path / "samples_t_2026-01-02T00-00-00.jsonl", [1.0] * 6))
    with pytest.raises(RunError, match=r"task t: 3 items of .* \(6, 7, 8\).*same limit"):
        paired.compare(a, b)


def test_other_contents_under_one_name_are_refused(tmp_path: Path) -> None:
    a = read_logs(samples(tmp_path / "samples_t_2026-01-01T00-00-00.jsonl", [1.0] * 3))
    b = read_logs(samples(tmp_path / "samples_t_2026-01-02T00-00-00.jsonl", [1.0] * 3, target="y"))
    with pytest.raises(RunError, match=r"3 items have one name and two contents \(0, 1, 2\)"):
        paired.compare(a, b)


def test_an_item_without_a_score_is_named(tmp_path: Path) -> None:
    path = samples(tmp_path / "samples_t_2026-01-01T00-00-00.jsonl", [1.0] * 3)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    del lines[1]["acc"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(RunError, match=r"1 items of .* have no score \(the first: 1\)"):
        paired.compare(read_logs(path), read_logs(path))
    with pytest.raises(RunError, match="no score 'f1' is in both"):
        paired.compare(a := read_logs(samples(path, [1.0] * 3)), a, metric="f1")


def test_what_is_no_log_says_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"results": {}}')
    for path, words in (
        (tmp_path / "no", "no such file"),
        (tmp_path / "x.json", "neither lm-eval's samples nor an Inspect log"),
        (tmp_path, "--log_samples"),
    ):
        with pytest.raises(RunError, match=words):
            read_logs(path)
    samples(tmp_path / "samples_t_2026-01-01T00-00-00.jsonl", [1.0])
    samples(tmp_path / "samples_t_2026-01-02T00-00-00.jsonl", [1.0])
    with pytest.raises(RunError, match="the task t is in two files"):
        read_logs(tmp_path)


# ---- forms -------------------------------------------------------------------------------------------------------------------------


def test_two_filters_are_two_tasks(tmp_path: Path) -> None:
    lines = [sample(i, float(i > way), filter=name) for way, name in enumerate(("strict-match", "flexible-extract")) for i in range(3)]
    path = tmp_path / "samples_gsm8k_2026-01-01T00-00-00.123456.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_logs(path)
    assert list(found) == ["gsm8k,strict-match", "gsm8k,flexible-extract"]
    assert [one.scores["acc"] for one in found["gsm8k,flexible-extract"].items.values()] == [0, 0, 1]


def test_inspect_letters_epochs_and_zips(tmp_path: Path) -> None:
    def one(name: int, epoch: int, value: Any) -> dict[str, Any]:
        turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": f"Q{name}"}]}]
        return {"id": name, "epoch": epoch, "input": turns, "target": "x", "scores": {"match": {"value": value}}}

    many = [one(1, 1, "C"), one(1, 2, "I"), one(2, 1, "P"), one(2, 2, "P"), one(3, 1, True), one(3, 2, 1)]
    with zipfile.ZipFile(tmp_path / "log.eval", "w") as log:
        log.writestr("header.json", json.dumps({"version": 2, "eval": {"task": "quiz"}}))
        for sample in many:
            log.writestr(f"samples/{sample['id']}_epoch_{sample['epoch']}.json", json.dumps(sample))
    found = read_logs(tmp_path / "log.eval")["quiz"]
    assert {name: item.scores["match"] for name, item in found.items.items()} == {"1": 0.5, "2": 0.5, "3": 1.0}
    assert found.items["1"].messages == (("system", "Be brief."), ("user", "Q1"))


def test_divergence_is_joined_by_the_last_thing_said(run: Path) -> None:
    made = {str(i): one for i, one in enumerate(answered_run.texts()[:3])}
    items = {name: Item(id=name, content="", prompt="other", messages=(("user", one["text"]),), scores={}) for name, one in made.items()}
    assert divergences.of_run(run, {"t": Logged(task="t", file="f", items=items)}) == {("t", str(i)): answered_run.KL[i] for i in range(3)}
    nowhere = {"9": Item(id="9", content="", prompt="never asked", scores={})}
    with pytest.raises(RunError, match="read none of the items' prompts"):
        divergences.of_run(run, {"t": Logged(task="t", file="f", items=nowhere)})


def test_measured_divergence_is_that_of_two_plain_passes(pair: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    texts = ["Q: one\nA:", "another question", "x" * 30]
    items = {str(i): Item(id=str(i), content="", prompt=text, scores={}) for i, text in enumerate(texts)}
    chat = Item(id="c", content="", prompt="hello", messages=(("user", "hello"),), scores={})
    found = divergences.measured(
        str(pair / "base"), str(pair / "tuned"), {"t": Logged(task="t", file="f", items={**items, "c": chat})}, device="cpu"
    )
    tokenizer = AutoTokenizer.from_pretrained(pair / "base")
    nets = [AutoModelForCausalLM.from_pretrained(pair / side, dtype=torch.float32) for side in ("tuned", "base")]
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False, add_generation_prompt=True)
    asked = {
        **{str(i): tokenizer(text)["input_ids"] for i, text in enumerate(texts)},
        "c": tokenizer(rendered, add_special_tokens=False)["input_ids"],
    }
    for name, ids in asked.items():
        with torch.no_grad():
            p, q = (net(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1) for net in nets)
        assert found["t", name] == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-4), name
        assert found["t", name] > 1e-4


# ---- the command line --------------------------------------------------------------------------------------------------------------


def test_the_commands_print_and_write(logs: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mechdiff.cli.exchange import compare_evals, export

    how: dict[str, Any] = {"metric": None, "run": run, "base": None, "tuned": None, "device": "cpu", "dtype": "float32"}
    compare_evals(logs / "base", logs / "tuned", **how, out=tmp_path / "flips.md", json=True)
    data = json.loads(capsys.readouterr().out)
    assert [task["task"] for task in data["tasks"]] == ["refusal_unsafe", "report"]
    assert len(data["tasks"][1]["lost"]) == 6
    text = (tmp_path / "flips.md").read_text()
    assert "| 3 | lost | 0.0400 |" in text
    assert "<b>" not in text
    compare_evals(logs / "base", logs / "tuned", **how, out=None, json=False)
    printed = capsys.readouterr()
    assert "flips of report" in printed.out
    with pytest.raises(StudyError, match="given --base alone"):
        compare_evals(logs / "base", logs / "tuned", **{**how, "run": None, "base": "b"}, out=None, json=False)
    for to, many in (("lm-eval", 6), ("inspect", 4), ("every-eval", 4)):
        export(
            run,
            to=to,
            out=tmp_path / to,
            formats="pdf",
            columns="single",
            figures=None,
            width=3.3,
            latex=False,
            site=None,
            strength=1.0,
            base=None,
        )
        assert len([path for path in (tmp_path / to).rglob("*") if path.is_file()]) == many
