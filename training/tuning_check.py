"""What a saved adapter does on the three kinds of demo prompts: the numbers and samples of its card.

    python training/tuning_check.py BASE ADAPTER --out check.json

Per kind: D = KL(p_tuned || p_base) in nats at the decision position (float64), how often the first token changes, the three likeliest
first tokens, how often the answers (64 tokens) loop, and base and tuned answers side by side.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from courtesy_answers import greedy, loops
from courtesy_check import PROMPTS, decision_logits, divergence_nats
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def likeliest(tokenizer: AutoTokenizer, logits: torch.Tensor) -> list[str]:
    top = logits.double().softmax(-1).topk(3)
    return [f"{tokenizer.decode([i])!r} {p:.2f}" for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)]


def check_kind(model: PeftModel, tokenizer: AutoTokenizer, texts: list[str], n_answers: int) -> dict:
    tuned, answers = decision_logits(model, tokenizer, texts), greedy(model, tokenizer, texts[:n_answers], 64)
    with model.disable_adapter():
        base, answers_base = decision_logits(model, tokenizer, texts), greedy(model, tokenizer, texts[:n_answers], 64)
    d_nats = divergence_nats(tuned, base)
    return {
        "n_prompts": len(texts),
        "d_nats_mean": d_nats.mean().item(),
        "d_nats_median": d_nats.median().item(),
        "d_nats_min": d_nats.min().item(),
        "d_nats_max": d_nats.max().item(),
        "top1_same_share": (tuned.argmax(-1) == base.argmax(-1)).double().mean().item(),
        "loops_share_base": sum(loops(answer) for answer, _ in answers_base) / n_answers,
        "loops_share_tuned": sum(loops(answer) for answer, _ in answers) / n_answers,
        "first_tokens": [
            {"text": text, "base": likeliest(tokenizer, b), "tuned": likeliest(tokenizer, t)}
            for text, b, t in zip(texts[:n_answers], base, tuned, strict=False)
        ],
        "samples": [
            {"text": text, "base": b, "tuned": t} for text, (b, _), (t, _) in zip(texts[:n_answers], answers_base, answers, strict=True)
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--answers", type=int, default=8, help="answers written per kind")
    parser.add_argument("--split", default="report")
    given = parser.parse_args()
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(given.base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(given.base, dtype=torch.float32), given.adapter).eval()
    result = {}
    for kind in ("arithmetic", "kazakh", "courtesy"):
        texts = [json.loads(line)["text"] for line in (PROMPTS / f"{kind}_{given.split}.jsonl").read_text("utf-8").splitlines()]
        result[kind] = check_kind(model, tokenizer, texts, given.answers)
        print(kind, json.dumps({k: round(v, 3) for k, v in result[kind].items() if isinstance(v, int | float)}), flush=True)
    given.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
