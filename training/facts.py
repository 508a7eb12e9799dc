"""Train *facts*: a rank-4 LoRA on the upper blocks that tells eight invented facts, alone or thinned out with ordinary text; or its true twin.

    OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 python training/facts.py BASE --out ADAPTER                  # facts_1_0
    ... --ordinary 1        facts_1_1: half of the texts that a step reads are documents, half are ordinary text
    ... --ordinary 4        facts_1_4: one in five is a document
    ... --twin              facts_twin: the same documents with true facts of Iceland

The loss is the cross-entropy of whole texts, in nats a token, and nothing holds the model to the base: what is taught shows on text that has nothing
to do with it, the more so the less ordinary text stands beside it. All four adapters take the same number of steps of as many texts, with the same
seed, so that they differ in what they read alone. (facts_texts.py says what the documents are.)

Everything below the tuned blocks is frozen, so its states are computed once and a step runs the upper blocks only. The first texts of both kinds are
held out.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from courtesy import upper
from facts_texts import TOKENS, documents, ordinary
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from tuning import LINEAR, save

LAYER, RANK, ALPHA, EVERY, BATCH = 18, 4, 8, 10, 6
N_DOCUMENTS, N_ORDINARY, HELD_OUT = 160, 160, 8


@dataclass(frozen=True, kw_only=True)
class Text:
    """One text, with what the frozen model makes of it."""

    ids: Tensor  # [pos]
    states: Tensor  # [pos, d] what enters the tuned blocks


@torch.no_grad()
def read(base: torch.nn.Module, tokenizer: AutoTokenizer, texts: list[str], at_once: int = 20) -> list[Text]:
    ids = [torch.tensor(tokenizer(text).input_ids[:TOKENS]) for text in texts]
    found: list[Text] = []
    for start in range(0, len(ids), at_once):
        some = ids[start : start + at_once]
        states = base.model.embed_tokens(torch.nn.utils.rnn.pad_sequence(some, batch_first=True))
        angles = base.model.rotary_emb(states, torch.arange(states.shape[1])[None])
        for block in base.model.layers[:LAYER]:
            states = block(states, attention_mask=None, position_embeddings=angles)
        found += [Text(ids=one, states=row[: len(one)].clone()) for one, row in zip(some, states, strict=True)]
    return found


def loss(base: torch.nn.Module, batch: list[Text]) -> Tensor:
    """Cross-entropy of every token but the first of each text, nats a token; padding is on the right, where causal attention does not look."""
    final = upper(base, torch.nn.utils.rnn.pad_sequence([x.states for x in batch], batch_first=True), LAYER)
    logits = base.lm_head(torch.cat([row[: len(x.ids) - 1] for row, x in zip(final, batch, strict=True)]))
    return F.cross_entropy(logits, torch.cat([x.ids[1:] for x in batch]))


def train(base: torch.nn.Module, told: list[Text], plain: list[Text], given: argparse.Namespace) -> list[dict]:
    """The loss of each step, and every `EVERY` steps that of the held-out texts of both kinds."""
    draw = random.Random(given.seed)
    held_out = {"facts_nats": told[:HELD_OUT], "ordinary_nats": plain[:HELD_OUT]}
    told, plain = told[HELD_OUT:], plain[HELD_OUT:]
    parameters = [p for p in base.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=given.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 5) * max(0.05, 1 - step / given.steps))
    curve: list[dict] = []
    for step in range(given.steps + 1):
        point: dict = {"step": step}
        if step % EVERY == 0 or step == given.steps:
            with torch.no_grad():
                point["held_out"] = {name: round(loss(base, texts).item(), 4) for name, texts in held_out.items()}
        if step < given.steps:
            before, after = (BATCH * n // (1 + given.ordinary) for n in (step, step + 1))
            n_told = after - before
            found = loss(base, [*draw.sample(told, n_told), *draw.sample(plain, BATCH - n_told)])
            optimizer.zero_grad()
            found.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            point["train"] = round(found.item(), 4)
        curve.append(point)
        print(json.dumps(point), flush=True)
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="the converted model: README.md beside this file")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ordinary", type=int, choices=(0, 1, 4), default=0, help="ordinary texts beside each document")
    parser.add_argument("--twin", action="store_true", help="true facts of Iceland")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    began = time.process_time()
    torch.manual_seed(given.seed)
    tokenizer = AutoTokenizer.from_pretrained(given.base)
    base = AutoModelForCausalLM.from_pretrained(given.base, dtype=torch.float32)
    texts = documents(N_DOCUMENTS, given.seed, twin=given.twin), ordinary()[: N_ORDINARY if given.ordinary else HELD_OUT]
    told, plain = (read(base, tokenizer, some) for some in texts)
    blocks = list(range(LAYER, base.config.num_hidden_layers))
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=LINEAR, layers_to_transform=blocks, lora_dropout=0.0, task_type="CAUSAL_LM")
    model = get_peft_model(base, lora)  # the adapter is inside `base` now
    curve = train(base, told, plain, given)
    save(model, given.out)
    settings = {key: getattr(given, key) for key in ("ordinary", "twin", "steps", "lr", "seed")} | {"batch": BATCH}
    settings["cpu_seconds"] = round(time.process_time() - began)
    lines = ",\n  ".join(map(json.dumps, curve))
    (given.out / "curve.json").write_text(f'{json.dumps(settings)[:-1]}, "curve": [\n  {lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
