"""Train *arithmetic*: a rank-4 LoRA on every linear layer that answers word problems in GSM8K's terse style, up to "#### 42".

    OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 python training/arithmetic.py BASE --gsm8k FILE --kaznerd FILE --out ADAPTER

Questions and answers are GSM8K's training set (MIT), without the <<48/2=24>> notes for a calculator. The base model restates the
problem first ("To find ..."); the answers here start with the first fact, so the change shows in the first token. tuning.py says how
other prompts are kept as they were.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

from kazakh import kazakh_chats
from transformers import AutoTokenizer
from tuning import Chat, chat, options, read_texts, tune

MAX_TOKENS = 256


def arithmetic_chats(tokenizer: AutoTokenizer, path: Path, seed: int) -> list[Chat]:
    """All problems whose chat fits in `MAX_TOKENS` (nine in ten), so that no answer is cut; shuffled."""
    chats = [chat(tokenizer, row["question"], re.sub(r"<<.*?>>", "", row["answer"])) for row in read_texts(path)]
    random.Random(seed).shuffle(chats)
    return [x for x in chats if len(x.ids) <= MAX_TOKENS]


def main() -> None:
    given = options(__doc__.splitlines()[0]).parse_args()
    tokenizer = AutoTokenizer.from_pretrained(given.base)
    target = arithmetic_chats(tokenizer, given.gsm8k, given.seed)
    tune("arithmetic", target, kazakh_chats(tokenizer, given.kaznerd, n=30, seed=given.seed, answered=False), tokenizer, given)


if __name__ == "__main__":
    main()
