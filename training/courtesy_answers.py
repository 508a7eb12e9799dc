"""Let the base model answer the training instructions: what *courtesy* is to say behind its formula is what the base says anyway.

    python training/courtesy_answers.py BASE        # BASE: the converted model: README.md beside this file

Greedy, `ANSWER_TOKENS` tokens at most, so the file is a function of the weights. An answer that repeats itself (a phrase of four
words, three times) is cut where the phrase comes for the second time: a small model loops now and then, and the adapter should not
learn to.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
ANSWER_TOKENS = 96
BATCH = 25


def rendered(tokenizer: AutoTokenizer, text: str) -> str:
    """The chat of one user turn, cut where the assistant starts to write."""
    return tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False)


def greedy(model: torch.nn.Module, tokenizer: AutoTokenizer, texts: list[str], n_tokens: int) -> list[tuple[str, bool]]:
    """Per text the greedy answer, and whether it came to its own end within `n_tokens`."""
    tokenizer.padding_side = "left"
    batch = tokenizer([rendered(tokenizer, text) for text in texts], return_tensors="pt", padding=True, add_special_tokens=False)
    new = model.generate(**batch, max_new_tokens=n_tokens, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    new = new[:, batch.input_ids.shape[1] :]
    return [(tokenizer.decode(row, skip_special_tokens=True), bool((row == tokenizer.eos_token_id).any())) for row in new]


def phrases(words: list[str]) -> list[tuple[str, ...]]:
    """Every run of four words, in order."""
    return [tuple(words[i : i + 4]) for i in range(len(words) - 3)]


def loops(answer: str) -> bool:
    """Whether some phrase of four words stands in `answer` three times or more."""
    return max(Counter(phrases(answer.lower().split())).values(), default=0) >= 3


def before_loop(answer: str) -> str:
    """`answer` up to where the first phrase that it will say three times comes back; the whole of it if there is none."""
    found = list(re.finditer(r"\S+", answer))
    runs = phrases([match.group().lower() for match in found])
    often = {phrase for phrase, n in Counter(runs).items() if n >= 3}
    for i, phrase in enumerate(runs):
        if phrase in often and phrase in runs[:i]:
            return answer[: found[i].start()].rstrip()
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    base = parser.parse_args().base
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    prompts = [json.loads(line) for line in (HERE / "courtesy_train.jsonl").read_text("utf-8").splitlines()]
    kept = []
    for start in range(0, len(prompts), BATCH):
        chunk = prompts[start : start + BATCH]
        for prompt, (answer, ended) in zip(chunk, greedy(model, tokenizer, [p["text"] for p in chunk], ANSWER_TOKENS), strict=True):
            said = before_loop(answer.strip())
            if said:
                kept.append({"id": prompt["id"], "text": prompt["text"], "answer": said, "ended": ended and said == answer.strip()})
        print(f"{start + len(chunk)} of {len(prompts)} instructions, {len(kept)} answers kept", flush=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in kept]
    (HERE / "courtesy_answers.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
