"""The exact baselines of a run: the planted matrix is found in the files, and grafting it alone is the whole fine-tune."""

import json
from pathlib import Path

import polars as pl
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig

from mechdiff.api import Run
from mechdiff.architectures.network import quiet
from mechdiff.study.config import RunOptions
from pico import SIZES, make_net, moved, pico, save, twin
from runs import run
from tokenizers_made import CHATML, byte_tokenizer

pytestmark = pytest.mark.ci

MEASURES = ["divergence", "weights", "grafting"]


def finish(base: Path, tuned: Path, prompts: Path, out: Path, **options: object) -> Run:
    return run(base=str(base), tuned=str(tuned), prompts=prompts, measures=MEASURES, out=out, options=RunOptions(**options))  # type: ignore[arg-type]


def grafted(finished: Run, arm: str, **where: object) -> list[float]:
    rows = finished.rows().filter(pl.col("measure") == "grafting", pl.col("metric") == "kl_other_nats")
    rows = rows.filter(pl.col("split") == "report", pl.col("arm") == arm)
    return rows.filter(*(pl.col(name).eq_missing(value) for name, value in where.items())).sort("prompt")["value"].to_list()


@pytest.fixture(scope="module")
def finished(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finish(pair / "base", pair / "tuned", pair / "prompts.jsonl", tmp_path_factory.mktemp("baselines") / "run")


def test_the_planted_matrix_is_the_only_one_that_changed(finished: Run) -> None:
    """P2: rank 2 on the output projection of block 1."""
    rows = finished.rows().filter(pl.col("measure") == "weights")
    moved_tensors = rows.filter(pl.col("metric") == "relative_norm", pl.col("value") > 0)["unit"].to_list()
    assert moved_tensors == ["model.layers.1.self_attn.o_proj.weight"]
    assert rows.filter(pl.col("metric") == "numerical_rank")["value"].to_list() == [2.0]
    assert rows.filter(pl.col("metric") == "data_weighted_norm")["unit"].to_list() == moved_tensors
    assert rows["direction"].null_count() == rows["split"].null_count() == rows["prompt"].null_count() == len(rows)
    record = finished.manifest()["weights"]
    assert list(record["spectra"]) == moved_tensors
    assert [one["tensor"] for one in record["decoded"]] == moved_tensors
    assert len(record["decoded"][0]["up"]) == 8


def test_grafting_it_alone_is_the_whole_fine_tune(finished: Run) -> None:
    d = (
        finished.rows()
        .filter(pl.col("metric") == "kl_tuned_base_nats", pl.col("unit").is_null(), pl.col("split") == "report")
        .sort("prompt")
    )
    assert grafted(finished, "none") == d["value"].to_list()
    for arm in ("alone", "from_below", "from_above"):
        found = grafted(finished, arm, layer=1, site="attn")
        assert len(found) == len(d)
        assert max(found) < 1e-9
        assert len(grafted(finished, arm)) == len(d), "unchanged modules cost nothing"
    assert max(grafted(finished, "greedy", unit="L1.attn", rank=1)) < 1e-9
    assert grafted(finished, "truncate", unit="all", rank=0) == d["value"].to_list()
    assert max(grafted(finished, "truncate", unit="all", rank=2)) < 1e-9
    assert min(grafted(finished, "truncate", unit="all", rank=1)) > 1e-6


@pytest.mark.parametrize("memory", [pytest.param("both", marks=pytest.mark.slow), "one"])
def test_a_change_everywhere_is_not_one_modules(pair: Path, tmp_path: Path, memory: str) -> None:
    base, tokenizer = pico("llama"), byte_tokenizer(CHATML)
    save(twin(base, moved).net, tokenizer, tmp_path / "tuned")
    done = finish(pair / "base", tmp_path / "tuned", pair / "prompts.jsonl", tmp_path / "run", memory=memory)
    assert max(grafted(done, "all")) < 1e-6
    v = done.rows().filter(pl.col("metric") == "kl_other_nats", pl.col("split") == "report")
    alone = v.filter(pl.col("arm") == "alone").group_by("layer", "site").agg(pl.col("value").mean())
    assert len(alone) == 4 * 3 + 3
    d = sum(grafted(done, "none")) / len(grafted(done, "none"))
    assert alone["value"].min() > 0.05 * d  # type: ignore[operator]
    below = v.filter(pl.col("arm") == "from_below", pl.col("site") == "head")["value"]
    assert max(below) < 1e-6


def test_an_adapter_is_weighed_and_grafted_without_merging(pair: Path, tmp_path: Path) -> None:
    """P5: LoRA of rank 4."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], layers_to_transform=[2])
    with quiet():
        adapted = get_peft_model(pico("llama").net, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    adapted.save_pretrained(tmp_path / "adapter")
    done = finish(pair / "base", tmp_path / "adapter", pair / "prompts.jsonl", tmp_path / "run")
    ranks = done.rows().filter(pl.col("metric") == "numerical_rank")["value"]
    assert ranks.to_list() == [4.0, 4.0]
    assert max(grafted(done, "all")) < 1e-9
    alone = done.rows().filter(pl.col("arm") == "alone").select("layer", "site").unique().sort("site")
    assert alone.rows() == [(2, "attn"), (2, "mlp")]
    assert max(grafted(done, "truncate", unit="all", rank=4)) < 1e-9


def test_identical_models_have_nothing_to_graft(pair: Path, tmp_path: Path) -> None:
    """P0."""
    done = finish(pair / "base", pair / "base", pair / "prompts.jsonl", tmp_path / "run")
    rows = done.rows()
    assert rows.filter(pl.col("metric") == "relative_norm")["value"].max() == 0
    assert set(rows.filter(pl.col("measure") == "grafting")["arm"]) == {"none", "all"}
    assert rows.filter(pl.col("measure") == "grafting")["value"].max() < 1e-10  # type: ignore[operator]


def test_a_study_without_report_prompts_weighs_and_does_not_graft(pair: Path, tmp_path: Path) -> None:
    done = run(
        base=str(pair / "base"),
        tuned=str(pair / "tuned"),
        prompts={"fit": str(pair / "prompts.jsonl")},
        measures=MEASURES,
        out=tmp_path / "run",
    )
    assert "weights" in set(done.rows()["measure"])
    assert "grafting" not in set(done.rows()["measure"])
    assert any(entry["what"] == "grafting" for entry in done.manifest()["skipped"])


def test_weights_of_two_depths_are_compared_where_both_have_them_and_it_is_said(pair: Path, tmp_path: Path) -> None:
    deeper = make_net(LlamaConfig(**SIZES | {"num_hidden_layers": 5}))
    save(deeper, byte_tokenizer(CHATML), tmp_path / "other")
    text = json.dumps({"text": "hello"})
    (tmp_path / "p.jsonl").write_text(text + "\n")
    done = run(
        base=str(pair / "base"), tuned=str(tmp_path / "other"), prompts={"report": str(tmp_path / "p.jsonl")}, measures=["divergence", "weights"],
        out=tmp_path / "run",
    )  # fmt: skip
    said = " ".join(done.manifest()["weights"]["statements"])
    assert "only" in said
    assert "model.layers.4" in said
    compared = done.rows().filter(pl.col("metric") == "relative_norm")
    assert set(compared["layer"].drop_nulls()) == {0, 1, 2, 3}
