"""A study of a pair in a folder on nine short prompts, and D of it held against plain forward passes."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from mechdiff.measures.catalogue import make_study
from mechdiff.study import run
from mechdiff.study.prepare import Prepared
from runs import opened


def study(folder: Path, tuned: str, measures: list[Any]) -> tuple[pl.DataFrame, dict[str, Any], Prepared]:
    texts = [f"Say {number * 37 % 11} of ab{'c' * number}" for number in range(9)]
    (folder / "p.jsonl").write_text("".join(json.dumps({"id": f"p{i}", "text": text}) + "\n" for i, text in enumerate(texts)))
    config = make_study(
        {
            "pair": {"base": str(folder / "base"), "tuned": str(folder / tuned)},
            "prompts": {"file": str(folder / "p.jsonl")},
            "measures": measures,
        }
    )
    with opened(config, folder / "run", device="cpu") as (prepared, out):
        return (*run.execute(prepared, out), prepared)


def hold_against(prepared: Prepared, rows: pl.DataFrame, base: Any, tuned: Any) -> None:
    """D of the report prompts is that of plain forward passes of both networks."""
    found = rows.filter(measure="divergence", metric="kl_tuned_base_nats", split="report").filter(pl.col("unit").is_null())
    given = dict(zip(found["prompt"], found["value"], strict=True))
    for one in prepared.rendered["report"].values():
        with torch.no_grad():
            p, q = (net(input_ids=torch.tensor([one.ids_tuned])).logits[0, -1].double().log_softmax(-1) for net in (tuned, base))
        assert given[one.prompt.id] == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-4, abs=1e-9)
