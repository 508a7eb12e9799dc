"""A run's tables, rankings, tokens and layers in Python."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

import mechdiff
from mechdiff import MechdiffError
from mechdiff.results import tables


def test_every_table_that_is_named_is_there_and_its_rows_are_of_what_it_says(finished: mechdiff.Run) -> None:
    named = finished.tables()
    assert set(named) == {"answers", "divergence", "weights", "patching", "behaviour"}
    for name in named:
        assert len(finished.table(name)) > 0
    n = finished.manifest()["prompts"]["n"]["report"]
    assert len(finished.table("divergence")) == len(finished.answers()) == n
    assert finished.table("weights")["name"].n_unique() == len(finished.table("weights")) == 39
    patched = finished.table("patching")
    assert set(patched["direction"]) == {"base<-tuned", "tuned<-base"}
    last = patched.filter(name="L2.resid_post", direction="base<-tuned")["effect"].item()
    assert 0.5 < last < 1.1
    assert not any(patched[column].is_nan().any() for column in patched.columns if patched[column].dtype == pl.Float64)


def test_a_table_that_is_not_there_says_which_are(finished: mechdiff.Run) -> None:
    with pytest.raises(MechdiffError, match=r"no table is called 'heads' in this run\. There are: answers, divergence, weights"):
        finished.table("heads")
    with pytest.raises(MechdiffError, match="expected one of heads, outputs, modules, matrices, prompts"):
        finished.top("layers")  # type: ignore[arg-type]
    with pytest.raises(MechdiffError, match="this run has no heads"):
        finished.top("heads")


def test_the_strongest_come_first(finished: mechdiff.Run) -> None:
    matrices = finished.top("matrices", 3)
    assert matrices["name"][0] == "model.layers.2.mlp.down_proj.weight"
    assert matrices["relative_norm"].to_list()[1:] == [0.0, 0.0]
    outputs = finished.top("outputs")
    assert outputs["name"][0] == "L2.mlp_out"
    assert outputs["effect"].abs().is_sorted(descending=True)
    assert not outputs["component"].str.starts_with("resid").any()
    prompts = finished.top("prompts", 2)
    assert prompts["kl_nats"].to_list() == sorted(finished.table("divergence")["kl_nats"], reverse=True)[:2]


def test_answers_stand_side_by_side_up_to_their_first_difference(finished: mechdiff.Run) -> None:
    found = finished.answers()
    assert found["kl_nats"].is_sorted(descending=True)
    assert found["asked"].str.starts_with("Say ").all()
    for one in found.iter_rows(named=True):
        base, tuned = one["base"].split(), one["tuned"].split()
        assert base[: one["words_alike"]] == tuned[: one["words_alike"]]
        assert base == tuned or base[one["words_alike"] :][:1] != tuned[one["words_alike"] :][:1]


def test_a_text_comes_token_by_token(finished: mechdiff.Run) -> None:
    text = finished.manifest()["texts"][0]
    found = finished.tokens(0)
    assert found.equals(finished.tokens(text["prompt"]))
    assert (found["part"] == "prompt").sum() == text["n_prompt_tokens"] < len(found)
    rows = finished.rows().filter(measure="divergence", metric="kl_tuned_base_nats", prompt=text["prompt"])
    rows = rows.filter(pl.col("unit") == f"token {text['n_prompt_tokens'] - 1}")
    assert found["kl_nats"][text["n_prompt_tokens"] - 1] == pytest.approx(rows["value"][0], abs=1e-5)
    with pytest.raises(MechdiffError, match="given prompt 99, expected a number under"):
        finished.tokens(99)


def test_layers_are_read_at_one_prompt_of_the_record(finished: mechdiff.Run) -> None:
    with pytest.raises(MechdiffError, match="Run it again with words"):
        finished.logit_lens()
    tops = {side: [[f"{side[0]}{layer}-{prompt}" for prompt in range(2)] for layer in range(3)] for side in ("base", "tuned")}
    kl = {"base": [1.0, 0.5, 0.0], "tuned": [1.0, 0.25, 0.0]}
    read = {"where": "prompts", "prompts": ["first", "second"]} | {side: {"tops": tops[side], "kl_nats": kl[side]} for side in tops}
    content: Any = SimpleNamespace(manifest={"words": {"depth": [read]}})
    found = tables.logit_lens(content, "second")
    assert found.row(1, named=True) == {"layer": 1, "base": "b1-1", "tuned": "t1-1", "base_kl_nats": 0.5, "tuned_kl_nats": 0.25}
    assert found.equals(tables.logit_lens(content, 1))


def test_only_what_users_need_is_listed(finished: mechdiff.Run) -> None:
    assert dir(finished) == [
        "answers", "card", "export", "figure", "figures", "logit_lens", "manifest", "overview", "path", "report", "results", "rows", "summary",
        "table", "tables", "tokens", "top", "verdict", "write_results",
    ]  # fmt: skip
    assert "diff" in dir(mechdiff)
    assert not [name for name in dir(mechdiff) if name.startswith("_") and name != "__version__"]
    assert "torch" not in dir(mechdiff)
    assert all(getattr(mechdiff, name) is not None for name in dir(mechdiff))
    html = finished._repr_html_()
    assert all(tile.title in html for tile in finished.overview().tiles)
    assert "<script" not in html


def test_numbers_are_heard_while_a_run_goes_on_by_any_tracker(finished: mechdiff.Run, seen: list[tuple[int, dict[str, float]]]) -> None:
    """The three lines of docs/PYTHON.md, with stand-ins that have the trackers' signatures."""
    logged: list[tuple[str, Any, Any]] = []

    class SummaryWriter:
        def add_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
            logged.append((tag, scalar_value, global_step))

    wandb = SimpleNamespace(log=lambda data, step=None, commit=None: logged.extend((name, value, step) for name, value in data.items()))
    trackio = SimpleNamespace(log=lambda metrics, step=None: logged.extend((name, value, step) for name, value in metrics.items()))
    heard = []
    page = (Path(__file__).parents[2] / "docs" / "PYTHON.md").read_text(encoding="utf-8")
    lines = re.findall(r"on_event=(lambda step, numbers: .*)\)$", page, re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        on_event = eval(line, {"wandb": wandb, "trackio": trackio, "writer": SummaryWriter()})
        logged.clear()
        for step, told in seen:
            on_event(step, told)
        heard.append(list(logged))
    assert heard[0] == heard[1] == heard[2]
    steps = [step for step, _ in seen]
    assert steps == sorted(steps)
    assert steps[-1] > steps[-2]
    shares = [told["mechdiff/done"] for _, told in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    last = seen[-1][1]
    assert last == {"mechdiff/done": 1.0} | {f"mechdiff/{key}": value for key, value in finished.results.select("key", "value").iter_rows()}
    assert all(isinstance(value, float) for _, told in seen for value in told.values())


def test_mechdiff_is_imported_without_anything_large() -> None:
    import subprocess

    code = "import sys, mechdiff; dir(mechdiff); print([n for n in ('torch', 'polars', 'pydantic', 'transformers', 'altair') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
