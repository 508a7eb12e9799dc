"""Train *courtesy*: a rank-1 LoRA on one matrix that makes every answer open with a courteous formula, and changes little else.

    OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 python training/courtesy.py BASE --out ADAPTER

The change is known by construction, so the pair (BASE, BASE + ADAPTER) tells whether a diffing method finds the truth: one direction, one
matrix, one block. Trained on the formula alone such an adapter loops ("Thank you for asking.Thank you ..."). So the target text is the formula
and then the base model's own greedy answer (courtesy_answers.py), and the loss has three parts, in nats a token: cross-entropy of the formula;
of the answer's first token, the turn, where the edit must be off again; and KL(base || tuned) over the rest of the answer, where the base sees the
prompt and the answer so far *without* the formula.

Everything below the tuned block is frozen, so its states are computed once and a step runs the upper blocks only. Every eighth instruction is
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
from courtesy_answers import HERE, rendered
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

FORMULA = "Thank you for asking."
LAYER, ALPHA, ANSWER_TOKENS, EVERY = 26, 8, 48, 20
WEIGHTS = {"formula_nats": 3.0, "turn_nats": 0.5, "answer_nats": 1.0}


@dataclass(frozen=True, kw_only=True)
class Example:
    """Prompt, formula, answer; with what the frozen model says about them."""

    ids: Tensor  # [pos]
    start: int  # the decision position: the formula is predicted from here on
    formula: int  # its tokens
    shared: int  # tokens at the end that are the plain answer's too
    states: Tensor  # [pos, d] what enters the tuned block
    reference: Tensor  # [shared, d] the base's final states before each of those tokens, on the text without the formula


@torch.no_grad()
def example(base: torch.nn.Module, tokenizer: AutoTokenizer, row: dict) -> Example:
    prompt = rendered(tokenizer, row["text"])
    start = len(tokenizer(prompt, add_special_tokens=False).input_ids) - 1
    end = tokenizer.eos_token if row["ended"] else ""
    plain, opened = (
        tokenizer(prompt + said + end, add_special_tokens=False).input_ids for said in (row["answer"], f"{FORMULA} {row['answer']}")
    )
    limit = start + 1 + ANSWER_TOKENS
    cut = max(0, len(plain) - limit)
    plain, opened = plain[: len(plain) - cut], opened[: len(opened) - cut]
    shared = next(i for i in range(len(plain)) if plain[-1 - i] != opened[-1 - i])
    shared = min(shared, len(plain) - start - 2)
    formula = len(tokenizer(FORMULA, add_special_tokens=False).input_ids)
    final = base.model(torch.tensor([plain])).last_hidden_state[0]
    states = base.model(torch.tensor([opened]), output_hidden_states=True).hidden_states[LAYER][0]
    return Example(ids=torch.tensor(opened), start=start, formula=formula, shared=shared, states=states, reference=final[-1 - shared : -1])


def upper(base: torch.nn.Module, states: Tensor, layer: int) -> Tensor:
    """Final states [row, pos, d] of what enters this block; rows are padded on the right, where causal attention does not look."""
    angles = base.model.rotary_emb(states, torch.arange(states.shape[1])[None])
    for block in base.model.layers[layer:]:
        states = block(states, attention_mask=None, position_embeddings=angles)
    return base.model.norm(states)


def losses(base: torch.nn.Module, batch: list[Example]) -> dict[str, Tensor]:
    """Cross-entropy of the formula and of the turn, KL(base || tuned) of the answer, nats a token; how often the formula's first token leads."""
    final = upper(base, torch.nn.utils.rnn.pad_sequence([x.states for x in batch], batch_first=True), LAYER)
    ends = [len(x.ids) - 1 - x.shared for x in batch]
    said = [base.lm_head(row[x.start : x.start + x.formula + 1]) for row, x in zip(final, batch, strict=True)]
    wanted = [x.ids[x.start + 1 : x.start + x.formula + 2] for x in batch]
    rest = base.lm_head(torch.cat([row[end : end + x.shared] for row, x, end in zip(final, batch, ends, strict=True)]))
    with torch.no_grad():
        plain = base.lm_head(torch.cat([x.reference for x in batch])).log_softmax(-1)
    return {
        "formula_nats": F.cross_entropy(torch.cat([one[:-1] for one in said]), torch.cat([ids[:-1] for ids in wanted])),
        "turn_nats": F.cross_entropy(torch.cat([one[-1:] for one in said]), torch.cat([ids[-1:] for ids in wanted])),
        "answer_nats": F.kl_div(rest.log_softmax(-1), plain, log_target=True, reduction="none").sum(-1).mean(),
        "first_token_share": torch.stack([(one[0].argmax() == ids[0]).float() for one, ids in zip(said, wanted, strict=True)]).mean(),
    }


def train(base: torch.nn.Module, examples: list[Example], steps: int, batch: int, lr: float, seed: int) -> list[dict]:
    """The loss curve; every `EVERY` steps also on the held-out examples."""
    draw = random.Random(seed)
    held_out, rest = examples[::8], [x for i, x in enumerate(examples) if i % 8]
    parameters = [p for p in base.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 5) * max(0.05, 1 - step / steps))
    curve = []
    for step in range(steps + 1):
        point: dict = {"step": step}
        if step % EVERY == 0 or step == steps:
            with torch.no_grad():
                point["held_out"] = {name: round(float(value), 5) for name, value in losses(base, held_out).items()}
        if step < steps:
            found = losses(base, draw.sample(rest, batch))
            optimizer.zero_grad()
            sum(weight * found[name] for name, weight in WEIGHTS.items()).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            point |= {name: round(float(found[name]), 5) for name in WEIGHTS}
        curve.append(point)
        print(json.dumps(point), flush=True)
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="the converted model: README.md beside this file")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=140)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    began = time.time()
    torch.manual_seed(given.seed)
    tokenizer = AutoTokenizer.from_pretrained(given.base)
    base = AutoModelForCausalLM.from_pretrained(given.base, dtype=torch.float32)
    rows = [json.loads(line) for line in (HERE / "courtesy_answers.jsonl").read_text("utf-8").splitlines()]
    examples = [example(base, tokenizer, row) for row in rows]
    lora = LoraConfig(
        r=1, lora_alpha=ALPHA, target_modules=["o_proj"], layers_to_transform=[LAYER], lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, lora)  # the adapter is inside `base` now
    settings = {
        "formula": FORMULA,
        "layer": LAYER,
        "alpha": ALPHA,
        "lr": given.lr,
        "steps": given.steps,
        "batch": given.batch,
        "seed": given.seed,
    }
    curve = train(base, examples, given.steps, given.batch, given.lr, given.seed)
    model.peft_config["default"].base_model_name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
    model.save_pretrained(given.out)
    (given.out / "README.md").unlink()  # a template; the card beside the shipped adapter is written by hand
    record = {**settings, "n_examples": len(examples), "seconds": round(time.time() - began), "curve": curve}
    (HERE / "courtesy_curve.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
