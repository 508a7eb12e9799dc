"""What the two LoRA fine-tunes *arithmetic* and *kazakh* share: chats, the loss, training and saving.

A small model tuned on one kind of text changes everywhere. So each step has two parts. On *target* chats the loss is the
cross-entropy of the answer. On *neutral* chats (English instructions with the base's own greedy answers, and prompts of the other
fine-tune's kind without an answer) it is KL(base || tuned): per token of the answer, and once more where the answer is about to
start, the decision position, which is the one that a study of the pair looks at.
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
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
N_HELD_OUT, EVERY = 24, 20
ENGLISH, GROUP = 3, 4  # a step has a group of neutral chats: so many English instructions, and one prompt of the other fine-tune's kind
ANSWER_TOKENS = 40  # of a neutral answer


@dataclass(frozen=True, kw_only=True)
class Chat:
    """One user turn with its answer ("" if only the prompt matters), as token ids."""

    ids: Tensor  # [pos]
    start: int  # the decision position: what is predicted from here on is the answer
    reference: Tensor | None = None  # [pos, d] the base's final states from `start` on


def read_texts(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def chat(tokenizer: AutoTokenizer, user: str, answer: str, ended: bool = True) -> Chat:
    prompt = tokenizer(rendered(tokenizer, user), add_special_tokens=False).input_ids
    said = tokenizer(answer, add_special_tokens=False).input_ids if answer else []
    end = [tokenizer.eos_token_id] if answer and ended else []
    return Chat(ids=torch.tensor(prompt + said + end), start=len(prompt) - 1)


@torch.no_grad()
def neutral_chats(base: torch.nn.Module, tokenizer: AutoTokenizer, others: list[Chat], seed: int) -> list[Chat]:
    """Groups of `ENGLISH` instructions with the start of the base's answer (courtesy_answers.py wrote it) and one of `others`."""
    rows = read_texts(HERE / "courtesy_answers.jsonl")
    random.Random(seed).shuffle(rows)
    english = [chat(tokenizer, row["text"], row["answer"], row["ended"]) for row in rows[: ENGLISH * len(others)]]
    english = [Chat(ids=x.ids[: x.start + 1 + ANSWER_TOKENS], start=x.start) for x in english]
    mixed = [x for i, other in enumerate(others) for x in (*english[ENGLISH * i :][:ENGLISH], other)]
    finals = [base.model(x.ids[None]).last_hidden_state[0, x.start :] for x in mixed]
    return [Chat(ids=x.ids, start=x.start, reference=final[: n_scored(x)]) for x, final in zip(mixed, finals, strict=True)]


def n_scored(x: Chat) -> int:
    """Positions from the decision position up to the last but one (the decision position alone if there is no answer)."""
    return max(1, len(x.ids) - 1 - x.start)


def answer_logits(base: torch.nn.Module, batch: list[Chat]) -> Tensor:
    """[pos, vocab] logits at the scored positions of all chats; padding is on the right, where causal attention cannot see it."""
    states = base.model(torch.nn.utils.rnn.pad_sequence([x.ids for x in batch], batch_first=True)).last_hidden_state
    return base.lm_head(torch.cat([row[x.start : x.start + n_scored(x)] for row, x in zip(states, batch, strict=True)]))


def losses(base: torch.nn.Module, target: list[Chat], neutral: list[Chat]) -> dict[str, Tensor]:
    """In nats: cross-entropy of the target's answers (mean over tokens); KL(base || tuned) over the neutral chats' scored positions,
    and over their decision positions alone."""
    with torch.no_grad():
        reference = base.lm_head(torch.cat([x.reference for x in neutral])).log_softmax(-1)
    kl = F.kl_div(answer_logits(base, neutral).log_softmax(-1), reference, log_target=True, reduction="none").sum(-1)
    return {
        "target_nats": F.cross_entropy(answer_logits(base, target), torch.cat([x.ids[x.start + 1 :] for x in target])),
        "neutral_nats": kl.mean(),
        "neutral_decision_nats": torch.stack([row[0] for row in kl.split([n_scored(x) for x in neutral])]).mean(),
    }


def train(base: torch.nn.Module, target: list[Chat], neutral: list[Chat], given: argparse.Namespace) -> list[dict]:
    """The curve: the losses of each step, and every `EVERY` steps those of the first `N_HELD_OUT` chats, which are held out.

    A batch of the target is a run of chats of about the same length: little padding.
    """
    draw = random.Random(given.seed)
    held_out, by_length = (target[:N_HELD_OUT], neutral[:N_HELD_OUT]), sorted(target[N_HELD_OUT:], key=lambda x: len(x.ids))
    parameters = [p for p in base.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=given.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, (s + 1) / 6) * max(0.05, 1 - s / given.steps))
    curve: list[dict] = []
    for step in range(given.steps + 1):
        point: dict = {"step": step}
        if step % EVERY == 0 or step == given.steps:
            with torch.no_grad():
                point["held_out"] = {key: round(value.item(), 4) for key, value in losses(base, *held_out).items()}
        if step < given.steps:
            i, j = draw.randrange(len(by_length) - given.batch), GROUP * draw.randrange(N_HELD_OUT // GROUP, len(neutral) // GROUP)
            measured = losses(base, by_length[i : i + given.batch], neutral[j : j + GROUP])
            optimizer.zero_grad()
            sum(measured.values()).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            point["train"] = {key: round(value.item(), 4) for key, value in measured.items()}
        curve.append(point)
        print(json.dumps(point), flush=True)
    return curve


def options(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("base", type=Path, help="the converted model: README.md beside this file")
    parser.add_argument("--gsm8k", type=Path, required=True, help="JSONL with question and answer")
    parser.add_argument("--kaznerd", type=Path, required=True, help="JSONL with text")
    parser.add_argument("--out", type=Path, required=True, help="the adapter's directory")
    for name, value in (("lr", 2e-3), ("steps", 60), ("batch", 6), ("seed", 0)):  # batch: target chats a step
        parser.add_argument(f"--{name}", type=type(value), default=value)
    return parser


def tune(name: str, target: list[Chat], others: list[Chat], tokenizer: AutoTokenizer, given: argparse.Namespace) -> None:
    """Train, save in float16, and write the curve beside the scripts."""
    torch.set_num_threads(2)
    torch.manual_seed(given.seed)
    base = AutoModelForCausalLM.from_pretrained(given.base, dtype=torch.float32)
    neutral = neutral_chats(base, tokenizer, others, given.seed)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=LINEAR, lora_dropout=0.0, task_type="CAUSAL_LM"))
    curve = train(base, target, neutral, given)  # the adapter is inside `base` now
    save(model, given.out)
    settings = {key: getattr(given, key) for key in ("lr", "steps", "batch", "seed")} | {"cpu_seconds": round(time.process_time())}
    lines = ",\n  ".join(map(json.dumps, curve))
    (HERE / f"{name}_curve.json").write_text(f'{json.dumps(settings)[:-1]}, "curve": [\n  {lines}\n]}}\n', encoding="utf-8")


def save(model: torch.nn.Module, out: Path) -> None:
    """The adapter in float16, with the published name of its base and its modules in this order, not a set's."""
    out.mkdir(parents=True, exist_ok=True)
    state = {key: value.half().contiguous() for key, value in get_peft_model_state_dict(model).items()}
    save_file(state, out / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.inference_mode = "HuggingFaceTB/SmolLM2-135M-Instruct", True
    config.target_modules = LINEAR
    config.save_pretrained(out)
