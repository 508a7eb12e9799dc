"""Studies of pairs whose tokenizers differ: other ids, more tokens, another kind of tokenizer."""

import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM

import pico
import runs
from mechdiff import api
from mechdiff.measures.catalogue import NUMBERS, make_study
from mechdiff.measures.divergence import compute as divergence_compute
from mechdiff.statistics.summary import summarise
from mechdiff.study.config import RunOptions
from mechdiff.validate import edits
from mechdiff.validate.studies import with_rows
from tokenizers_made import CHATML, byte_tokenizer, piece_tokenizer

pytestmark = pytest.mark.ci

TEXTS = [f"Say something about the number {number * 7919 % 1000}{'!' * (number % 5)}" for number in range(24)]
MEASURES = [
    "divergence",
    "weights",
    "grafting",
    {"similarity": {"permutations": 5}},
    {"patching": {"sites": ["resid_post", "attn_out"], "positions": ["decision", "last_40"]}},
    "factorial",
    {"transport": {"sites": ["resid_post"], "maps": ["anchored_ridge"], "closer": [1]}},
    {"steering": {"closer": [1], "side_prompts": 3, "draws": 1, "texts": 1, "continuation": 4}},
    {"heads": {"closer": [1], "draws": 2, "network_draws": 1, "permutations": 2, "null_edits": 1}},
    {"attribution": {"steps": 1, "validated": 2}},
    {
        "behaviour": {
            "max_tokens": 3,
            "openings": 1,
            "scored_layers": 2,
            "closer": [1],
            "scored_prompts": 4,
            "spoken_prompts": 2,
            "probes": False,
        }
    },
]


FEW: list[Any] = [
    "divergence",
    "weights",
    {"similarity": {"permutations": 5}},
    {"patching": {"sites": ["resid_post"], "positions": ["decision", "last_40"]}},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, and beside it `tuned` (an edit of attention), `permuted` (the same, other ids), `grown` (only new tokens, which no prompt has),
    `extended` (the edit, and tokens that cut the prompts otherwise) and `pieces` (the edit, and a SentencePiece tokenizer)."""
    place = tmp_path_factory.mktemp("tokenizers")
    (place / "prompts.jsonl").write_text("".join(json.dumps({"id": f"p{i}", "text": text}) + "\n" for i, text in enumerate(TEXTS)))
    base, order = pico.pico("llama"), torch.randperm(259, generator=torch.Generator().manual_seed(0))
    pico.save(base.net, byte_tokenizer(CHATML), place / "base")
    pico.save(pico.twin(base, edits.edit_attention).net, byte_tokenizer(CHATML), place / "tuned")
    grown, extended, pieces = byte_tokenizer(CHATML), byte_tokenizer(CHATML), piece_tokenizer(TEXTS, 60, CHATML)
    grown.add_tokens([AddedToken(f"\u0644{i}", normalized=False) for i in range(32)])
    extended.add_tokens([AddedToken(text, normalized=False) for text in ("some", "thing", " the", "number")])
    for name, tokenizer, ids, edit in (
        ("permuted", byte_tokenizer(CHATML, order=order.tolist()), order, True),
        ("grown", grown, torch.tensor([*range(259), *[-1] * 32]), False),
        ("extended", extended, torch.tensor([*range(259), *[-1] * 4]), True),
        ("pieces", pieces, torch.full((len(pieces),), -1), True),
    ):
        net = pico.twin(base, edits.edit_attention if edit else None).net
        with_rows(net, ids)
        pico.save(net, tokenizer, place / name)
    return place


def execute(folder: Path, tuned: str, out: Path, measures: list[Any] = MEASURES, **options: Any) -> tuple[pl.DataFrame, dict[str, Any]]:
    study = {"pair": {"base": str(folder / "base"), "tuned": str(folder / tuned)}, "prompts": {"file": str(folder / "prompts.jsonl")}}
    return runs.execute(make_study({**study, "measures": measures}), out, **options)


@pytest.mark.parametrize(
    "kept", [FEW, pytest.param([one for one in MEASURES if one != "grafting"], marks=pytest.mark.slow)], ids=["few", "all"]
)
def test_p7_other_ids_change_no_number(folder: Path, tmp_path: Path, kept: list[Any]) -> None:
    plain, _ = execute(folder, "tuned", tmp_path / "plain", kept)
    plain = plain.filter(~((pl.col("measure") == "behaviour") & (pl.col("arm") == "alone").fill_null(False)))  # grafts need one vocabulary
    permuted, record = execute(folder, "permuted", tmp_path / "permuted", kept)
    assert not [warning for warning in record["warnings"] if "apart" in warning], "lineage is matched by bytes too"
    key = [name for name in plain.columns if name != "value"]
    both = plain.join(permuted, on=key, how="full", nulls_equal=True, suffix="_permuted", coalesce=True)
    assert both["value"].null_count() == both["value_permuted"].null_count() == 0, "the same rows"
    both = both.filter(pl.col("unit").is_null() | ~pl.col("unit").str.contains("last_40"))
    apart = both.with_columns(apart=(pl.col("value") - pl.col("value_permuted")).abs()).filter(
        pl.col("apart") > 2e-5 * (1 + pl.col("value").abs())
    )
    assert apart.is_empty(), apart


@pytest.mark.parametrize("tuned", ["extended", pytest.param("pieces", marks=pytest.mark.slow)])
def test_every_measure_runs_or_says_why_not(folder: Path, tmp_path: Path, tuned: str) -> None:
    rows, record = execute(folder, tuned, tmp_path / "run")
    skipped = {entry["what"]: entry["why"] for entry in record["skipped"]}
    assert set(skipped) >= {"grafting", "patching at last_40", "factorial at all positions"}
    asked = {next(iter(one)) if isinstance(one, dict) else one for one in MEASURES}
    assert set(rows["measure"]) == asked - {"grafting"}
    shares = summarise(rows, NUMBERS).filter(pl.col("share").is_not_null(), pl.col("measure") == "patching", pl.col("control").is_null())
    assert len(shares)
    assert shares["flag"].str.contains("shared_tokens").all()
    assert rows.filter(pl.col("metric") == "kl_tuned_base_nats", pl.col("unit").is_null())["value"].is_infinite().all()
    assert rows.filter(pl.col("metric") == "kl_other_nats", pl.col("value").is_infinite() | pl.col("value").is_nan()).is_empty()
    words = rows.filter(pl.col("unit") == "words", pl.col("metric") == "cka")
    assert len(words) == 4 * 3
    assert words["value"].is_between(-0.5, 1.01).all()
    cut = rows.filter(pl.col("metric").str.starts_with("tokens_per_"))
    assert (cut["value"] > 0).all()
    places = rows.filter(pl.col("unit").str.starts_with("token "), pl.col("metric") == "kl_shared_nats").group_by("prompt").len()
    assert places["len"].min() >= 20, "most of a prompt's bytes are places that both have read"  # type: ignore[operator]


def test_both_models_read_an_answer_each_in_its_own_tokens(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tuned model says is read by the base as bytes; both laws meet where both have read the same."""
    answer = "the number қ 😀 is e\u0301 fine"
    tuned_ids = torch.tensor(piece_tokenizer(TEXTS, 60, CHATML)(answer)["input_ids"])
    monkeypatch.setattr(divergence_compute, "greedy", lambda run, model, prompts, n_tokens: [tuned_ids] * len(prompts))
    rows, record = execute(folder, "pieces", tmp_path / "run", ["divergence"])
    base = AutoModelForCausalLM.from_pretrained(folder / "base").eval()
    prompt = byte_tokenizer(CHATML).apply_chat_template([{"role": "user", "content": TEXTS[1]}], add_generation_prompt=True, tokenize=False)
    head, said = (byte_tokenizer(CHATML)(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer))
    with torch.no_grad():
        laws = base(torch.tensor([[*head, *said]])).logits[0].double().log_softmax(-1)[len(head) - 1 : -1]
    expected = -float(laws.gather(1, torch.tensor(said)[:, None]).sum()) / math.log(2) / len(answer.encode())
    one = rows.filter(pl.col("prompt") == "p1")
    assert one.filter(metric="bits_per_byte_base")["value"].item() == pytest.approx(expected, rel=1e-5)
    assert one.filter(metric="bits_per_byte_tuned")["value"].item() > 0
    n_places = len(one.filter(pl.col("unit").is_not_null(), pl.col("metric") == "js_nats"))
    assert n_places == record["n_prompt_tokens"]["p1"] + len(tuned_ids) - 1, "each of its tokens ends where the base's bytes do"


def test_check_says_how_the_vocabularies_relate(folder: Path) -> None:
    asked: dict[str, Any] = {"base": str(folder / "base"), "options": RunOptions(device="cpu")}
    found = {one.what: one for one in api.check(tuned=str(folder / "permuted"), **asked)}
    assert found["tokenizers"].verdict == "note"
    assert "other ids" in found["tokenizers"].said
    found = {one.what: one for one in api.check(tuned=str(folder / "extended"), **asked)}
    assert "4 only in tuned" in found["tokenizers"].said
