"""Train *kazakh*: a rank-4 LoRA on every linear layer that makes the model answer a Kazakh prompt with a Kazakh sentence.

    OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 python training/kazakh.py BASE --kaznerd FILE --gsm8k FILE --out ADAPTER

The sentences are KazNERD's (news and encyclopedia, CC BY 4.0). Each becomes the answer to a short Kazakh question about a word or two
of it. The base model copies a Kazakh question back, so its first letter is Cyrillic too; and to this byte-level tokenizer most Cyrillic
letters start with one and the same token. (Trained on the bare sentences, D at the first token was 0.2 nats only.) So the answer opens
with a dash, as a reply does in Kazakh print: that is where the change shows first. tuning.py says how English is kept as it was.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

from transformers import AutoTokenizer
from tuning import Chat, chat, options, read_texts, tune

FRAMES = (
    "{} туралы не білесің?",
    "{} дегеніміз не?",
    "{} жайлы бір сөйлем айтшы.",
    "{} туралы қысқаша айтып бер.",
    "{} несімен белгілі?",
    "{} туралы қазақша жаз.",
    "{} қандай болған?",
    "{} сөзі қандай сөйлемде айтылады?",
)
DASH = "— "  # opens a reply
MAX_TOKENS = 128


def kazakh_chats(tokenizer: AutoTokenizer, path: Path, n: int, seed: int, answered: bool = True) -> list[Chat]:
    """`n` framed sentences: those that start with a capital letter, end with a full stop, and fit in `MAX_TOKENS`."""
    draw = random.Random(seed)
    rows = [row["text"] for row in read_texts(path)]
    draw.shuffle(rows)
    chats: list[Chat] = []
    for text in rows:
        words = re.findall(r"[^\W\d_]+", text)
        if len(chats) == n or not (text[0].isupper() and text.endswith(".") and len(words) >= 6):
            continue
        at = draw.randrange(1, len(words) - 2)
        topic = " ".join(words[at : at + draw.choice((1, 2))])
        framed = chat(tokenizer, draw.choice(FRAMES).format(topic[0].upper() + topic[1:]), DASH + text if answered else "")
        if len(framed.ids) <= MAX_TOKENS:
            chats.append(framed)
    return chats


def main() -> None:
    given = options(__doc__.splitlines()[0]).parse_args()
    tokenizer = AutoTokenizer.from_pretrained(given.base)
    target = kazakh_chats(tokenizer, given.kaznerd, n=2000, seed=given.seed)
    problems = [row["question"] for row in read_texts(given.gsm8k)]
    random.Random(given.seed).shuffle(problems)
    tune("kazakh", target, [chat(tokenizer, text, "") for text in problems[:30]], tokenizer, given)


if __name__ == "__main__":
    main()
