"""A transformers or TRL Trainer logs how far the model in training has moved from its base: at each evaluation and each save, in seconds.

    from mechdiff import MechdiffCallback
    trainer.add_callback(MechdiffCallback())                        # a PEFT model: its adapter is switched off for the base
    trainer.add_callback(MechdiffCallback(base="OWNER/BASE"))       # a full fine-tune: the base is loaded once, and held
    MechdiffCallback(prompts="mine.jsonl").attach(trainer)          # also to whatever the Trainer reports to (W&B, TensorBoard, trackio)

What is logged, by the definitions of a run (`divergence`, `panel`, `weights`):

    mechdiff_kl_prompts_nats      D: mean over your prompts of KL(tuned || base) of the next token after the prompt
    mechdiff_kl_panel_nats        mean over the shipped panel, texts and prompts that have nothing to do with training, of KL(tuned || base), of each
                                  text the mean over its tokens; grows where a fine-tune changes what it was not asked to
    mechdiff_top1_same_panel      share of the panel's tokens at which both have the same top-1 token, the mean over texts
    mechdiff_weight_change        norm of the change / norm of the base's weights, all weights together

0 nats and 1.0: nothing changed. They stand in `trainer.state.log_history`, in the metrics of the evaluation (so `metric_for_best_model` and early
stopping can use them), and go to `log(metrics, step)` where that is given. The model runs in evaluation mode without gradients, no random number is
drawn, and its mode is put back: training goes on as it would have.
"""

import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from mechdiff.architectures.lookup import shape_of
from mechdiff.curate.given import Prompts, prompt_file
from mechdiff.engine.distributions import kl_nats, top1_same
from mechdiff.errors import ModelError
from mechdiff.measures.catalogue import make_study
from mechdiff.measures.panel import plan
from mechdiff.models.pair import load_net
from mechdiff.models.sources import resolve
from mechdiff.prompts.rendering import Rendered, render
from mechdiff.prompts.sets import read_prompts
from mechdiff.prompts.templates import PromptPolicy, chosen
from mechdiff.study.experiment import Reading

PREFIX = "mechdiff_"
PASS_TOKENS = 1024
"""Tokens of one pass, padding included."""
Log = Callable[[dict[str, float], int], None]
"""Takes the numbers by name, and the step."""


class MechdiffCallback(TrainerCallback):
    """Logs the divergence from the base, on prompts and on the panel, and the change of the weights, at each evaluation and save.

    `prompts`: as `mechdiff run --prompts` takes them, or a list; none: the panel alone. `base`: a folder, a Hub id or a loaded model; needed where
    the model is no PEFT model. `panel`: texts of each of the panel's twelve groups, 0 for none. `log`: called with the numbers and the step.
    `tokenizer`: where the Trainer has none. Raises ModelError at the start of training for what cannot be measured.
    """

    def __init__(
        self, prompts: Prompts | None = None, *, base: str | Path | nn.Module | None = None, panel: int = 4, log: Log | None = None,
        tokenizer: Any = None,
    ) -> None:  # fmt: skip
        if prompts is None and not panel:
            raise ModelError(
                "MechdiffCallback: given no prompts and panel=0, so there is nothing to read. Give prompts, or leave the panel on."
            )
        self.prompts = [] if prompts is None else read_prompts(prompt_file(prompts).path)
        self.base, self.panel, self.tokenizer, self._log = base, panel, tokenizer, log
        self.left_out: list[str] = []
        """What could not be read or measured, in words; each is also a warning."""
        self._read: dict[str, list[Rendered]] = {}
        self._held: nn.Module | None = None
        self._size = math.nan
        self._last: tuple[int, dict[str, float]] | None = None
        self._trainer: Any = None

    def attach(self, trainer: Any) -> "MechdiffCallback":
        """Adds itself to a Trainer and logs by the Trainer's own `log`, so that all it reports to have the numbers."""
        self._trainer = trainer
        trainer.add_callback(self)
        return self

    # ---- the Trainer's events ------------------------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if not state.is_world_process_zero:
            return
        if getattr(args, "fsdp", None) or getattr(args, "deepspeed", None):
            raise ModelError(
                "MechdiffCallback: weights that FSDP or DeepSpeed spread over processes cannot be compared here. Compare checkpoints with "
                "`mechdiff run`."
            )
        self._open(given["model"], self.tokenizer or given.get("processing_class"))

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        found = self._profile(state, given["model"])
        if given.get("metrics") is not None:
            given["metrics"].update(found)

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._profile(state, given["model"])

    # ---- what is read --------------------------------------------------------------------------------------------------------------

    def _open(self, model: Any, tokenizer: Any) -> None:
        """Renders prompts and panel, and holds the base."""
        if tokenizer is None:
            raise ModelError("MechdiffCallback: the Trainer has no tokenizer. Give processing_class to the Trainer, or tokenizer=... here.")
        if not _is_peft(model) and self.base is None:
            raise ModelError(
                "MechdiffCallback: the model has no adapter to switch off, so its base is needed. Give base=... (a folder, a Hub id, a model)."
            )
        if not _is_peft(model) and self._held is None:
            self._held = self.base if isinstance(self.base, nn.Module) else _loaded(str(self.base), model)
        config = model.config
        context = shape_of(config).context
        name, template, _ = chosen("tuned", tokenizer, tokenizer)
        policy = PromptPolicy(policy=name, template=template)
        limits = {"max_base": context, "max_tuned": context}
        read = render(self.prompts, tokenizer, tokenizer, policy, **limits) if self.prompts else []
        self._read["prompts"] = [replace(one, positions=one.positions[-1:]) for one in read]
        if self.panel:
            both = {"base": tokenizer, "tuned": tokenizer}
            measures = [{"panel": {"per_group": self.panel}}]
            study = make_study({"pair": {"base": "base", "tuned": "tuned"}, "prompts": {"file": "prompts.jsonl"}, "measures": measures})
            shapes = dict.fromkeys(both, shape_of(config))
            reading = Reading(study=study, rendered={}, tokenizers=both, policy=policy, lengths=limits, shapes=shapes)
            plan.read(reading)
            self._read["panel"] = list(reading.rendered[plan.SPLIT].values())
            self._leave_out(*(f"{one['what']}: {one['why']}" for one in reading.left_out))
        self._size = _norm(one for one in _base_of(model, self._held).values())

    def _leave_out(self, *what: str) -> None:
        for one in what:
            if one not in self.left_out:
                self.left_out.append(one)
                warnings.warn(f"mechdiff: {one}", stacklevel=2)

    # ---- what is measured ----------------------------------------------------------------------------------------------------------

    def _profile(self, state: Any, model: Any) -> dict[str, float]:
        """The numbers of this step, measured and logged once."""
        if not state.is_world_process_zero:
            return {}
        if self._last is None or self._last[0] != state.global_step:
            found = {f"{PREFIX}{name}": value for name, value in self.measure(model).items()}
            self._last = (state.global_step, found)
            if self._trainer is not None:
                self._trainer.log(dict(found))
            else:
                state.log_history.append({**found, "epoch": state.epoch, "step": state.global_step})
            if self._log:
                self._log(dict(found), state.global_step)
        return self._last[1]

    def measure(self, model: Any) -> dict[str, float]:
        """The numbers as they are now, without the prefix, and the seconds that they took."""
        start, found = time.perf_counter(), dict[str, float]()
        with _at_rest(model):
            for what, ones in self._read.items():
                if ones:
                    pairs = [self._apart(model, batch) for batch in _batches(ones)]
                    kl, same = (torch.cat([pair[i] for pair in pairs]) for i in (0, 1))
                    found |= {f"kl_{what}_nats": float(kl.mean()), f"top1_same_{what}": float(same.mean())}
            change = self._change(model)
        if change is not None:
            found["weight_change"] = change
        return {**found, "seconds": time.perf_counter() - start}

    def _apart(self, model: Any, batch: Sequence[Rendered]) -> tuple[Tensor, Tensor]:
        """KL(tuned || base) and whether the top token is the same, each text's mean over the positions that are scored."""
        tuned = _logits(model, batch)
        if self._held is not None:
            base = _logits(self._held, batch)
        else:
            with model.disable_adapter():
                base = _logits(model, batch)
        kl = torch.stack([kl_nats(t, b).mean() for t, b in zip(tuned, base, strict=True)])
        return kl, torch.stack([top1_same(b, t).double().mean().cpu() for t, b in zip(tuned, base, strict=True)])

    def _change(self, model: Any) -> float | None:
        """The norm of all weights' change over the base's; None where the adapter's kind has no change of weights to be had."""
        if self._held is not None:
            base = _base_of(model, self._held)
            own = dict(model.named_parameters())
            return _norm(own[name] - one.to(own[name].device) for name, one in base.items() if name in own) / self._size
        changes = list(_adapter_changes(model))
        if any(one is None for one in changes):
            self._leave_out("weight_change is not logged: an adapter of this kind has no change of a matrix")
            return None
        return _norm(one for one in changes if one is not None) / self._size


# ---- models ------------------------------------------------------------------------------------------------------------------------


def _is_peft(model: Any) -> bool:
    peft = sys.modules.get("peft")  # a PEFT model is there only where peft is
    return peft is not None and isinstance(model, peft.PeftModel)


def _loaded(base: str, model: Any) -> nn.Module:
    """The base in float32 or the model's own dtype, on the model's device."""
    parameter = next(model.parameters())
    dtype = str(parameter.dtype).removeprefix("torch.")
    return load_net(resolve(base), dtype=dtype, device=parameter.device)


def _base_of(model: Any, held: nn.Module | None) -> dict[str, Tensor]:
    """The base's weights by name: those of the model that is held, or of the network under the adapter."""
    if held is not None:
        return dict(held.named_parameters())
    return {
        name: parameter for name, parameter in model.get_base_model().named_parameters()
        if not any(f".{part}" in name for part in ("lora_", "modules_to_save.", "ia3_", "adapter"))
    }  # fmt: skip


def _adapter_changes(model: Any) -> Iterator[Tensor | None]:
    """What an adapter changes of each matrix (and bias) that it touches; None of a kind that does not say."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            for adapter in module.active_adapters:
                if adapter not in getattr(module, module.adapter_layer_names[0]):
                    continue
                yield module.get_delta_weight(adapter) if hasattr(module, "get_delta_weight") else None
                if getattr(module, "lora_bias", {}).get(adapter):
                    yield module.lora_B[adapter].bias * module.scaling[adapter]
        elif isinstance(module, ModulesToSaveWrapper):
            for adapter in module.active_adapters:
                own = dict(module.original_module.named_parameters())
                yield from (one - own[name] for name, one in module.modules_to_save[adapter].named_parameters())


def _norm(tensors: Iterator[Tensor]) -> float:
    return math.sqrt(sum(float(one.detach().float().norm()) ** 2 for one in tensors))


@contextmanager
def _at_rest(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode is put back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _batches(ones: Sequence[Rendered]) -> Iterator[list[Rendered]]:
    """Texts of about one length, PASS_TOKENS at a time."""
    batch: list[Rendered] = []
    for one in sorted(ones, key=lambda one: len(one.ids_tuned)):
        if batch and (len(batch) + 1) * len(one.ids_tuned) > PASS_TOKENS:
            yield batch
            batch = []
        batch.append(one)
    yield batch


def _logits(model: Any, batch: Sequence[Rendered]) -> list[Tensor]:
    """Of each text the logits at its scored positions, `[pos, vocab]`, float32; texts are padded on the right, where no token sees it."""
    device, longest = next(model.parameters()).device, max(len(one.ids_tuned) for one in batch)
    ids = torch.tensor([[*one.ids_tuned, *[0] * (longest - len(one.ids_tuned))] for one in batch], device=device)
    mask = torch.tensor([[1] * len(one.ids_tuned) + [0] * (longest - len(one.ids_tuned)) for one in batch], device=device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    scored = ([tuned for _, tuned in one.positions] for one in batch)
    return [row[places].float() for row, places in zip(logits, scored, strict=True)]
