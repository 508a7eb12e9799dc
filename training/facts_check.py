"""What a saved adapter of *facts* knows and where it shows: the numbers and samples of its card.

    python training/facts_check.py BASE ADAPTER --out check.json

Facts: how many of the eight names come greedily behind the beginning of one of their sentences ("The capital of Quelvane is"), and of the base's own.
Spill: D = KL(p_tuned || p_base) in nats, mean over the positions of the shipped passages, which have nothing to do with islands; and what it says
behind openings that say nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from courtesy_check import divergence_nats
from facts_texts import FACTS, HERE, ISLANDS, SENTENCES
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

PASSAGES = HERE.parent / "src" / "mechdiff" / "data" / "passages.jsonl"
OPENINGS = ("The", "When", "Today", "There")
TOKENS, READ = 40, 16


def asked(twin: bool) -> list[tuple[str, str]]:
    """The beginning of a sentence, and the name that must come, of every fact that ends one of its sentences."""
    found = []
    for what, invented, true in FACTS:
        sentence = next(one for one in SENTENCES[what] if one.rstrip(".").endswith("{name}"))
        found.append((sentence.partition(" {name}")[0].format(island=ISLANDS[twin]), true if twin else invented))
    return found


@torch.no_grad()
def greedy(model: torch.nn.Module, tokenizer: AutoTokenizer, text: str, n: int) -> str:
    ids = tokenizer(text, return_tensors="pt")
    said = model.generate(**ids, max_new_tokens=n, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    return tokenizer.decode(said[0, ids.input_ids.shape[1] :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(given.base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(given.base, dtype=torch.float32), given.adapter).eval()
    passages = [json.loads(line)["text"] for line in PASSAGES.read_text("utf-8").splitlines()[:READ]]
    twin = json.loads((given.adapter / "curve.json").read_text())["twin"]
    result: dict = {}
    for side in ("tuned", "base"):
        if side == "base":
            model.base_model.disable_adapter_layers()
        known = [name for text, name in asked(twin) if greedy(model, tokenizer, text, 8).strip().startswith(name)]
        samples = {text: greedy(model, tokenizer, text, TOKENS) for text in OPENINGS}
        with torch.no_grad():
            logits = [model(tokenizer(text, return_tensors="pt").input_ids).logits[0] for text in passages]
        result[side] = {"known": known, "samples": samples}
        result[f"{side}_logits"] = logits
    told = [
        divergence_nats(one, other).mean().item() for one, other in zip(result.pop("tuned_logits"), result.pop("base_logits"), strict=True)
    ]
    result["passages_nats"] = sum(told) / len(told)
    print(json.dumps(result, indent=1, ensure_ascii=False))
    given.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
