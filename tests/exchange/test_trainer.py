"""The callback in real Trainers: what it logs are the definitions' numbers, and training goes on as it would have."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import mechdiff
from mechdiff.errors import ModelError
from mechdiff.measures.panel.plan import GROUPS, shipped

LONG = "2 of 12 prompts of the panel: they are longer than a model's context"
"""The pico model's context is 128 bytes."""
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft asks for it
    pytest.mark.filterwarnings("ignore:mechdiff. 2 of 12 prompts of the panel"),
]

TEXTS = ["Say 4", "What is 2 + 2?", "Name a colour, please."]


class Rows(torch.utils.data.Dataset):
    """Eight sequences of random tokens."""

    def __init__(self) -> None:
        self.ids = torch.randint(0, 250, (8, 12), generator=torch.Generator().manual_seed(3))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[i], "labels": self.ids[i]}


def made(pair: Path, *, lora: bool, dropout: float = 0.1) -> Any:
    from peft import LoraConfig, get_peft_model

    net = AutoModelForCausalLM.from_pretrained(pair / "base", dtype=torch.float32)
    if not lora:
        return net
    torch.manual_seed(1)
    return get_peft_model(net, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], lora_dropout=dropout, task_type="CAUSAL_LM"))


def trained(model: Any, pair: Path, out: Path, callback: Any = None, *, attach: bool = False, steps: int = 4) -> Trainer:
    args = TrainingArguments(
        output_dir=str(out), max_steps=steps, per_device_train_batch_size=2, learning_rate=0.05, eval_strategy="steps", eval_steps=2,
        save_strategy="steps", save_steps=2, logging_steps=1, report_to=[], disable_tqdm=True, use_cpu=True, save_only_model=True, seed=7,
        dataloader_pin_memory=False,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(pair / "base")
    trainer = Trainer(model=model, args=args, train_dataset=Rows(), eval_dataset=Rows(), processing_class=tokenizer)
    if callback is not None:
        callback.attach(trainer) if attach else trainer.add_callback(callback)
    trainer.train()
    return trainer


def logged(trainer: Trainer) -> list[dict[str, float]]:
    return [one for one in trainer.state.log_history if "mechdiff_kl_panel_nats" in one and "eval_loss" not in one]


def mean_kl(tuned: nn.Module, base: nn.Module, ids: list[int], last_only: bool) -> float:
    """From the definition, one text, in float64."""
    with torch.no_grad():
        p, q = (net(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1) for net in (tuned, base))
    kl = (p.exp() * (p - q)).sum(-1)
    return float(kl[-1] if last_only else kl.mean())


@pytest.mark.ci
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_what_is_logged_is_what_the_definitions_give(pair: Path, tmp_path: Path, lora: bool) -> None:
    sent: list[tuple[int, dict[str, float]]] = []
    sends, base_of = (lambda found, step: sent.append((step, found))), None if lora else str(pair / "base")
    callback = mechdiff.MechdiffCallback(TEXTS, base=base_of, panel=1, log=sends)
    model = made(pair, lora=lora)
    trainer = trained(model, pair, tmp_path, callback)
    history = logged(trainer)
    assert [one["step"] for one in history] == [2, 4], "once a step that is evaluated and saved"
    assert [step for step, _ in sent] == [2, 4]
    assert sent[1][1].items() <= history[1].items()
    assert history[1]["mechdiff_kl_prompts_nats"] > 0

    base = AutoModelForCausalLM.from_pretrained(pair / "base", dtype=torch.float32).eval()
    tuned = copy.deepcopy(model).eval()
    tokenizer = AutoTokenizer.from_pretrained(pair / "base")
    turns = [[{"role": "user", "content": text}] for text in TEXTS]
    asked = [tokenizer.apply_chat_template(one, tokenize=False, add_generation_prompt=True) for one in turns]
    d = [mean_kl(tuned, base, tokenizer(text, add_special_tokens=False)["input_ids"], last_only=True) for text in asked]
    assert history[1]["mechdiff_kl_prompts_nats"] == pytest.approx(sum(d) / 3, rel=1e-4)
    texts = [one.prompt.text for group, form in GROUPS.items() if form == "text" for one in shipped(group)[:1]]
    texts = [text for text in texts if text.isascii()]  # of others, no position inside a letter is scored
    assert len(texts) >= 2
    read = {one.prompt.text: one for one in callback._read["panel"]}
    for text in texts:
        found, _ = callback._apart(model.eval(), [read[text]])
        ids = tokenizer(text)["input_ids"][:128]  # as far as the pico model's context goes
        assert float(found[0]) == pytest.approx(mean_kl(tuned, base, ids, last_only=False), rel=1e-4), text

    merged = copy.deepcopy(model).merge_and_unload() if lora else model
    own, before = dict(merged.named_parameters()), dict(base.named_parameters())
    change = math.sqrt(sum(float((own[name] - one).detach().double().norm()) ** 2 for name, one in before.items()))
    size = math.sqrt(sum(float(one.detach().double().norm()) ** 2 for one in before.values()))
    assert history[1]["mechdiff_weight_change"] == pytest.approx(change / size, rel=1e-4)
    assert callback.left_out == [LONG]


@pytest.mark.ci
def test_training_goes_on_as_it_would_have(pair: Path, tmp_path: Path) -> None:
    """Dropout is on, so one random number drawn or one mode changed would show in the weights."""
    plain, watched = made(pair, lora=True), made(pair, lora=True)
    trained(plain, pair, tmp_path / "plain")
    trained(watched, pair, tmp_path / "watched", mechdiff.MechdiffCallback(panel=1))
    for (name, one), other in zip(plain.named_parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.ci
def test_a_trainer_s_own_log_has_it_and_an_evaluation_s_metrics(pair: Path, tmp_path: Path) -> None:
    callback = mechdiff.MechdiffCallback(panel=1)
    trainer = trained(made(pair, lora=True), pair, tmp_path, callback, attach=True, steps=2)
    (entry,) = logged(trainer)
    assert entry["step"] == 2
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    assert any("mechdiff_kl_panel_nats" in one for one in state["log_history"]), "also in the checkpoint"
    metrics = trainer.evaluate()
    assert metrics["mechdiff_kl_panel_nats"] == entry["mechdiff_kl_panel_nats"], "early stopping can use it"


def test_before_training_nothing_has_changed(pair: Path) -> None:
    model = made(pair, lora=True)
    callback = mechdiff.MechdiffCallback(TEXTS, panel=1)
    callback._open(model, AutoTokenizer.from_pretrained(pair / "base"))
    modes = [module.training for module in model.modules()]
    found = callback.measure(model)
    del found["seconds"]
    assert found == {"kl_prompts_nats": 0, "top1_same_prompts": 1, "kl_panel_nats": 0, "top1_same_panel": 1, "weight_change": 0}
    assert [module.training for module in model.modules()] == modes


def test_what_cannot_be_measured_is_said_at_once(pair: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(pair / "base")
    net = made(pair, lora=False)
    with pytest.raises(ModelError, match="no adapter to switch off, so its base is needed"):
        mechdiff.MechdiffCallback()._open(net, tokenizer)
    with pytest.raises(ModelError, match="the Trainer has no tokenizer"):
        mechdiff.MechdiffCallback(base=net)._open(net, None)
    with pytest.raises(ModelError, match="there is nothing to read"):
        mechdiff.MechdiffCallback(panel=0)
    with pytest.warns(UserWarning, match=f"mechdiff: {LONG}"):
        mechdiff.MechdiffCallback(base=net, panel=1)._open(net, tokenizer)


def test_an_adapter_without_a_change_of_weights_is_said(pair: Path) -> None:
    from peft import IA3Config, get_peft_model

    net = get_peft_model(made(pair, lora=False), IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM"))
    callback = mechdiff.MechdiffCallback(TEXTS, panel=0)
    callback._open(net, AutoTokenizer.from_pretrained(pair / "base"))
    with pytest.warns(UserWarning, match="weight_change is not logged"):
        found = callback.measure(net)
    assert "weight_change" not in found
    assert found["kl_prompts_nats"] == 0
