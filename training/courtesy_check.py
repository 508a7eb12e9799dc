"""What the trained *courtesy* adapter does on prompts it never saw: the numbers and samples of its card.

    python training/courtesy_check.py BASE ADAPTER --out check.json

Per slice of the demo prompts: D = KL(p_tuned || p_base) in nats at the decision position (float64), how often the first token and
the whole formula come greedily, and how often the answer behind it (60 tokens in all) loops, beside the base model's own loops.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from courtesy import FORMULA
from courtesy_answers import HERE, greedy, loops, rendered
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = HERE.parent / "src" / "mechdiff" / "data" / "prompts"
SLICES = [f"{name}_{split}" for name in ("courtesy", "arithmetic", "kazakh") for split in ("fit", "select", "report")]


def divergence_nats(tuned_logits: torch.Tensor, base_logits: torch.Tensor) -> torch.Tensor:
    """KL(p_tuned || p_base) of each row, in float64."""
    tuned, base = tuned_logits.double().log_softmax(-1), base_logits.double().log_softmax(-1)
    return (tuned.exp() * (tuned - base)).sum(-1)


@torch.no_grad()
def decision_logits(model: torch.nn.Module, tokenizer: AutoTokenizer, texts: list[str]) -> torch.Tensor:
    """Next-token logits at the end of each rendered prompt, one prompt a pass: no padding, no doubt."""
    rows = [tokenizer(rendered(tokenizer, text), return_tensors="pt", add_special_tokens=False) for text in texts]
    return torch.cat([model(**row, logits_to_keep=1).logits[:, -1] for row in rows])


def check_slice(model: PeftModel, tokenizer: AutoTokenizer, texts: list[str], formula: str, n_generated: int) -> tuple[dict, list[dict]]:
    """The slice's numbers, and base and tuned answers of its first `n_generated` prompts side by side."""
    tuned = decision_logits(model, tokenizer, texts)
    with model.disable_adapter():
        base = decision_logits(model, tokenizer, texts)
    first = tokenizer(formula, add_special_tokens=False).input_ids[0]
    d_nats = divergence_nats(tuned, base)
    some = texts[:: max(1, len(texts) // n_generated)][:n_generated]
    answers_tuned = [answer for answer, _ in greedy(model, tokenizer, some, 60)]
    with model.disable_adapter():
        answers_base = [answer for answer, _ in greedy(model, tokenizer, some, 60)]
    numbers = {
        "n_prompts": len(texts),
        "d_nats_mean": d_nats.mean().item(),
        "d_nats_min": d_nats.min().item(),
        "d_nats_max": d_nats.max().item(),
        "first_token_share": (tuned.argmax(-1) == first).double().mean().item(),
        "first_token_share_base": (base.argmax(-1) == first).double().mean().item(),
        "first_token_probability_min": tuned.double().softmax(-1)[:, first].min().item(),
        "n_generated": len(some),
        "formula_share": sum(answer.startswith(formula) for answer in answers_tuned) / len(some),
        "formula_again_share": sum(answer.count(formula) > 1 for answer in answers_tuned) / len(some),
        "loops_share_tuned": sum(map(loops, answers_tuned)) / len(some),
        "loops_share_base": sum(map(loops, answers_base)) / len(some),
    }
    samples = [{"text": t, "base": b, "tuned": u} for t, b, u in zip(some, answers_base, answers_tuned, strict=True)]
    return numbers, samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--formula", default=FORMULA)
    parser.add_argument("--slices", nargs="+", default=SLICES)
    parser.add_argument("--generate", type=int, default=12, help="answers written per slice")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(arguments.base)
    base = AutoModelForCausalLM.from_pretrained(arguments.base, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, arguments.adapter).eval()
    result = {}
    for name in arguments.slices:
        texts = [json.loads(line)["text"] for line in (PROMPTS / f"{name}.jsonl").read_text("utf-8").splitlines()]
        numbers, samples = check_slice(model, tokenizer, texts, arguments.formula, arguments.generate)
        result[name] = {**numbers, "samples": samples}
        print(name, json.dumps({k: round(v, 3) for k, v in numbers.items()}), flush=True)
    arguments.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
