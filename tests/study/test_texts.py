"""Both models read the same tokens: the tuned model's own greedy answer, and the record says where they part."""

import json
import math
from pathlib import Path

import polars as pl
import pytest
import torch

from mechdiff.api import Run
from mechdiff.engine.activations import forward
from mechdiff.engine.generation import Speech, speak, stop_ids
from mechdiff.engine.replay import full
from mechdiff.measures.divergence.compute import MOVED, TEXTS
from mechdiff.measures.divergence.formula import kind_of
from mechdiff.models.pair import open_pair
from runs import run


@pytest.fixture(scope="module")
def finished(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(
        base=str(pair / "base"), tuned=str(pair / "tuned"), prompts=pair / "prompts.jsonl", out=tmp_path_factory.mktemp("texts") / "run",
        measures=[{"divergence": {"continuation": 5}}],
    )  # fmt: skip


def test_the_decision_position_of_the_text_is_d(finished: Run) -> None:
    rows = finished.rows().filter(pl.col("measure") == "divergence", pl.col("split") == "report", pl.col("metric") == "kl_tuned_base_nats")
    d = dict(rows.filter(pl.col("unit").is_null()).select("prompt", "value").iter_rows())
    for text in finished.manifest()["texts"]:
        at = rows.filter(pl.col("prompt") == text["prompt"], pl.col("unit") == f"token {text['n_prompt_tokens'] - 1}")
        assert at["value"][0] == pytest.approx(d[text["prompt"]], rel=1e-4, abs=1e-9)


def test_bits_and_first_divergence_are_those_of_whole_forward_passes(pair: Path, finished: Run) -> None:
    """By each model alone: -log2 p of the tuned model's greedy answer, token by token, and where the two first choices part."""
    rows = finished.rows().filter(pl.col("measure") == "divergence", pl.col("unit").is_null(), pl.col("split") == "report")
    texts = {text["prompt"]: text for text in finished.manifest()["texts"]}
    nets = open_pair(str(pair / "base"), str(pair / "tuned"), device="cpu")
    tokenizer = nets.tokenizer("tuned")
    for name, text in texts.items():
        values = dict(rows.filter(pl.col("prompt") == name).select("metric", "value").iter_rows())
        shown = [text["tokens"][i]["text"] for i in range(text["n_prompt_tokens"])]
        prompt = torch.tensor(tokenizer("".join(shown), add_special_tokens=False)["input_ids"])
        assert len(prompt) == text["n_prompt_tokens"]
        with nets.use("tuned") as tuned:
            said = speak(tuned, full, [prompt.tolist()], Speech(max_tokens=5, stop=stop_ids(tuned, tokenizer)))[0]
        n_bytes = int((said < 256).sum())  # ids below 256 are the bytes
        tops = {}
        for side in ("base", "tuned"):
            with nets.use(side) as model:
                laws = forward(model, torch.cat([prompt, said])[None], logits_to_keep=0).logits[0].double()
            tops[side] = laws[len(prompt) - 1 : -1].argmax(-1)
            log_p = laws.log_softmax(-1)[len(prompt) - 1 : -1].gather(-1, said[:, None])
            assert values[f"bits_per_byte_{side}"] == pytest.approx(float(-log_p.sum()) / math.log(2) / n_bytes, rel=1e-5)
        apart = (tops["base"] != tops["tuned"]).nonzero()[:, 0].tolist()
        first = values["first_divergence"]
        assert math.isnan(first) if not apart else first == len(prompt) - 1 + apart[0]


def test_the_record_keeps_the_most_divergent_texts_and_the_tokens_that_moved(finished: Run) -> None:
    manifest = finished.manifest()
    rows = finished.rows().filter(pl.col("metric") == "kl_tuned_base_nats", pl.col("unit").is_not_null())
    means = rows.group_by("prompt").agg(pl.col("value").mean()).sort("value", descending=True)["prompt"].to_list()
    assert [text["prompt"] for text in manifest["texts"]] == means[:TEXTS]
    for text in manifest["texts"]:
        assert len(text["tokens"]) <= text["n_prompt_tokens"] + 5
        assert set(text["tokens"][0]) == {"text", "kl", "top_base", "top_tuned"}
    moved = manifest["moved_tokens"]
    assert len(moved["up"]) == len(moved["down"]) == MOVED
    assert all(one["tuned"] > one["base"] for one in moved["up"])
    assert all(one["tuned"] < one["base"] for one in moved["down"])
    json.dumps(manifest["texts"])
    for text in manifest["texts"]:
        last, by_kind = text["n_prompt_tokens"] - 1, {}
        for place in range(last, len(text["tokens"]) - 1):  # what a token's place says is how differently the next one is predicted
            kind = "first token" if place == last else kind_of(text["tokens"][place + 1]["text"])
            by_kind.setdefault(kind, []).append(text["tokens"][place]["kl"])
        kept = {one["kind"]: (one["n"], one["kl"]) for one in manifest["kl_by_kind"] if one["prompt"] == text["prompt"]}
        assert kept == {kind: (len(kl), pytest.approx(sum(kl) / len(kl), abs=2e-6)) for kind, kl in by_kind.items()}
        assert "first token" in kept
