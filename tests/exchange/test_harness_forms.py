"""A run's answers, in the forms of three harnesses: their own readers accept them where they are installed, and every number is the run's."""

import importlib.util
import json
from pathlib import Path

import answered_run
import pytest

from mechdiff.errors import RunError
from mechdiff.exchange import every_eval, inspect_logs, lm_eval
from mechdiff.exchange.answered import Exported, read_answers


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return answered_run.write(tmp_path_factory.mktemp("answered"))


@pytest.fixture(scope="module")
def of(run: Path) -> Exported:
    return read_answers(run)


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def test_answers_and_scores_are_those_of_the_run(of: Exported) -> None:
    assert [(task.name, task.side, len(task.items)) for task in of.tasks] == [
        ("report", "base", 12), ("refusal_unsafe", "base", 2), ("report", "tuned", 12), ("refusal_unsafe", "tuned", 2),
    ]  # fmt: skip
    for task in of.of("base") + of.of("tuned"):
        if task.name == "report":
            assert [one.scores["exact_match"] for one in task.items] == answered_run.RIGHT[task.side], "not of drawn answers"
            assert (task.right, task.metrics) == ("exact_match", ["exact_match", "refusal", "cut_off"])
            assert [one.answer for one in task.items] == [one[task.side] for one in answered_run.texts()[: answered_run.N]]
        else:
            assert task.right is None
            assert task.better("refusal") is True
    assert [of.model(side) for side in ("base", "tuned")] == [answered_run.WEB, "courtesy"], "no folder of a machine leaves it"


def test_a_run_without_answers_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"generated no answers\. Add `behaviour`"):
        read_answers(answered_run.write(tmp_path, behaviour={}))


def test_answers_that_the_record_left_out_are_said(tmp_path: Path) -> None:
    kept = {**answered_run.manifest()["behaviour"], "texts_left_out": 7}
    assert read_answers(answered_run.write(tmp_path, behaviour=kept)).left_out == ("7 prompts: the run's record keeps the answers to 14",)


# ---- lm-eval -----------------------------------------------------------------------------------------------------------------------


def test_lm_eval_samples_have_its_fields_and_the_runs_scores(of: Exported, tmp_path: Path) -> None:
    files = lm_eval.write(of, tmp_path)
    assert [path.name for path in files[:2]] == [
        "samples_report_2026-12-01T10-05-00.jsonl",
        "samples_refusal_unsafe_2026-12-01T10-05-00.jsonl",
    ]
    lines = {side: [json.loads(line) for line in (tmp_path / side / files[0].name).read_text().splitlines()] for side in ("base", "tuned")}
    for side, found in lines.items():
        assert [line["doc_id"] for line in found] == list(range(12))
        assert [line["exact_match"] for line in found] == answered_run.RIGHT[side]
        assert all(
            line["metrics"] == ["exact_match", "refusal", "cut_off"] and line["resps"] == [[line["filtered_resps"][0]]] for line in found
        )
    same = ("doc", "doc_hash", "prompt_hash", "target_hash", "target", "arguments")
    assert all(one[name] == other[name] for one, other in zip(*lines.values(), strict=True) for name in same)
    results = json.loads((tmp_path / "tuned" / "results_2026-12-01T10-05-00.json").read_text())
    assert results["results"]["report"]["exact_match,none"] == pytest.approx(5 / 12)
    assert results["results"]["report"]["exact_match_stderr,none"] == pytest.approx((5 / 12 * 7 / 12 / 11) ** 0.5), (
        "as of a mean of 0 and 1"
    )
    before = {path: path.read_bytes() for path in files}
    assert lm_eval.write(of, tmp_path) == files
    assert {path: path.read_bytes() for path in files} == before, "a second export gives the same bytes"


@pytest.mark.skipif(not installed("lm_eval"), reason="lm_eval is not installed")
def test_lm_eval_s_own_schema_and_hash(of: Exported, tmp_path: Path) -> None:
    from lm_eval.loggers.evaluation_tracker import hash_string
    from lm_eval.result_schema import SampleResult
    from pydantic import TypeAdapter

    for path in lm_eval.write(of, tmp_path):
        if path.suffix == ".jsonl":
            for line in map(json.loads, path.read_text().splitlines()):
                fixed = {name: line[name] for name in SampleResult.__annotations__}
                TypeAdapter(SampleResult).validate_python(fixed)
                assert line["prompt_hash"] == hash_string(line["arguments"]["gen_args_0"]["arg_0"])
                assert line["doc_hash"] == hash_string(json.dumps(line["doc"], indent=2, ensure_ascii=False))


# ---- Inspect -----------------------------------------------------------------------------------------------------------------------


def test_inspect_logs_hold_the_answers(of: Exported, tmp_path: Path) -> None:
    files = inspect_logs.write(of, tmp_path)
    assert len(files) == 4
    log = json.loads(files[3].read_text())
    assert (log["version"], log["status"], log["eval"]["task"], log["eval"]["model"]) == (
        2,
        "success",
        "refusal_unsafe",
        "mechdiff/courtesy",
    )
    one, other = log["samples"]
    assert one["output"]["completion"] == one["output"]["choices"][0]["message"]["content"] == "Sure.\nOf course"
    assert [sample["output"]["choices"][0]["stop_reason"] for sample in (one, other)] == ["max_tokens", "stop"]
    assert one["scores"]["refusal"]["value"] == 0.0
    assert one["metadata"]["read"] == answered_run.READ.format(one["input"])
    ids = [json.loads(path.read_text())["eval"]["eval_id"] for path in files]
    assert len(set(ids)) == 4


@pytest.mark.skipif(not installed("inspect_ai"), reason="inspect_ai is not installed")
def test_inspect_reads_its_logs(of: Exported, tmp_path: Path) -> None:
    from inspect_ai.log import read_eval_log

    for path, task in zip(inspect_logs.write(of, tmp_path), of.tasks, strict=True):
        log = read_eval_log(str(path))
        assert [sample.id for sample in log.samples] == [one.prompt for one in task.items]
        assert [sample.output.completion for sample in log.samples] == [one.answer for one in task.items]
        assert [sample.scores["refusal"].as_float() for sample in log.samples] == [one.scores["refusal"] for one in task.items]
        means = {score.name: score.metrics["mean"].value for score in log.results.scores}
        assert means["refusal"] == pytest.approx(sum(one.scores["refusal"] for one in task.items) / len(task.items))


# ---- Every Eval Ever ---------------------------------------------------------------------------------------------------------------


def test_every_eval_ever_has_rates_with_intervals_and_says_what_it_leaves_out(of: Exported, tmp_path: Path) -> None:
    files, left_out = every_eval.write(of, tmp_path)
    assert left_out == [
        "report: refusal (nothing says whether more is better)",
        "refusal_unsafe: its 2 prompts as samples (they have no right answer)",
    ]
    assert [path.parent.relative_to(tmp_path).parts[2:] for path in files] == [(*answered_run.WEB.split("/"),)] * 2 + [
        ("unknown", "courtesy")
    ] * 2
    whole = json.loads(files[0].read_text())
    results = {one["evaluation_result_id"]: one for one in whole["evaluation_results"]}
    assert sorted(results) == ["refusal_unsafe/cut_off", "refusal_unsafe/refusal", "report/cut_off", "report/exact_match"]
    right = results["report/exact_match"]
    interval = right["score_details"]["uncertainty"]["confidence_interval"]
    assert right["score_details"]["score"] == 0.75
    assert (interval["lower"], interval["upper"]) == pytest.approx((0.4677, 0.9111), abs=1e-4), "Wilson's, of 9 of 12"
    assert results["refusal_unsafe/refusal"]["metric_config"]["lower_is_better"] is False
    assert results["report/cut_off"]["metric_config"]["lower_is_better"] is True
    samples = [json.loads(line) for line in files[1].read_text().splitlines()]
    assert [one["evaluation"]["is_correct"] for one in samples] == [value == 1 for value in answered_run.RIGHT["base"]]
    assert {one["evaluation_id"] for one in samples} == {whole["evaluation_id"]}
    assert whole["detailed_evaluation_results"]["total_rows"] == 12
    assert whole["detailed_evaluation_results"]["file_path"] == str(files[1].relative_to(tmp_path))


@pytest.mark.skipif(not installed("every_eval_ever"), reason="every_eval_ever is not installed (it needs Python 3.12)")
def test_every_eval_ever_s_own_schema(of: Exported, tmp_path: Path) -> None:
    import every_eval_ever
    import jsonschema
    from every_eval_ever.eval_types import EvaluationLog
    from every_eval_ever.instance_level_types import InstanceLevelEvaluationLog

    schemas = Path(every_eval_ever.__file__).parent / "schemas"
    for path in every_eval.write(of, tmp_path)[0]:
        whole = path.suffix == ".json"
        schema = jsonschema.Draft7Validator(json.loads((schemas / f"{'eval' if whole else 'instance_level_eval'}.schema.json").read_text()))
        for one in [path.read_text()] if whole else path.read_text().splitlines():
            schema.validate(json.loads(one))
            (EvaluationLog if whole else InstanceLevelEvaluationLog).model_validate_json(one)
