"""A run's steering vector is taken to where a model is served: llama.cpp's control vectors, and a PEFT adapter that adds it.

**Reads** RUN/steering/SITE.safetensors: the mean difference of the two models' activations at a site, over the training prompts.

**GGUF** (`write_control_vector`): `general.architecture` "controlvector" and one float32 tensor `direction.N` (maps/vectors.py has the form).
llama.cpp adds it to the residual stream behind block N at every position; so it holds `resid_post` above the first block alone.

**PEFT** (`write_adapter`): a LoRA of rank 1 whose matrices are 0 and whose bias (`lora_bias`, PEFT 0.14 and later) is the vector, on the linear layer
whose output is added to the residual stream at the site: `mlp.down_proj` for `mlp_out` and `resid_post`, `self_attn.o_proj` for `attn_out` and
`resid_mid`; `resid_pre` is the block below's. That layer is found by running the network, not by name: its output must be what arrives at the site.
A family that norms the output before adding it (Gemma, OLMo 2) has no such layer and is refused. What was written is read back and run beside the
engine's own steering; an adapter whose logits differ by more than rounding is an error. It is another way to serve the edit `add` at all positions.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mechdiff.architectures.network import quiet
from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import forward
from mechdiff.engine.distributions import ROUNDING_NATS, kl_nats
from mechdiff.engine.steered import steering
from mechdiff.errors import ModelError, RunError
from mechdiff.maps.vectors import load_vector, save_control_vector
from mechdiff.models.pair import Model, load_net, wrap
from mechdiff.models.sources import load_config, resolve
from mechdiff.store.tables import read_manifest

PROBE = 12
"""Tokens of the pass that finds the layer, and of those that compare logits."""


CARD = """---
base_model: {base}
library_name: peft
---

A steering vector that `mechdiff export --to peft` wrote: the bias of {module} adds it (length {norm:.4g}) to {site} at every position.
Its matrices are 0.
"""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written, and how it was checked."""

    path: Path
    site: Site
    norm: float
    """Length of what is added, strength included."""
    module: str | None = None
    """The linear layer that adds it; None of a control vector."""
    kl_nats: float | None = None
    """Largest KL(steered || adapter) of the next token over the probe's positions: rounding."""
    largest_logit_difference: float | None = None


def chosen(run: str | Path, site: str | None) -> tuple[Site, Tensor, dict[str, Any]]:
    """A saved vector (by default of the site that the run steered at all positions), float32 `[d]`, and the run's record. RunError without one."""
    manifest = read_manifest(run)
    saved = manifest.get("steering") or {}
    names = sorted({Path(name).stem for name in saved.get("files") or []}, key=lambda name: Site.parse(name))
    if not names:
        raise RunError(f"{run}: this run saved no steering vector. Add `steering` to the study's measures and run it again.")
    strongest = [f"L{layers[0]}.{kind}" for kind, layers in (saved.get("all_positions") or {}).items() if layers]
    asked = site or next((name for name in strongest if name in names), names[-1])
    if asked not in names:
        raise RunError(f"{run}: it saved no vector at {asked}. There are: {', '.join(names)}.")
    where, vector, _ = load_vector(Path(run) / "steering" / f"{asked}.safetensors")
    return where, vector, manifest


def write_control_vector(run: str | Path, out: Path, *, site: str | None = None, strength: float = 1.0) -> Written:
    """A GGUF control vector at `out`. Raises StudyError for a site that llama.cpp has no place for."""
    where, vector, manifest = chosen(run, site)
    out.parent.mkdir(parents=True, exist_ok=True)
    hint = str(manifest["pair"]["base"]["family"])
    save_control_vector(out, {where: strength * vector}, model_hint=hint)
    return Written(path=out, site=where, norm=abs(strength) * float(vector.norm()))


def write_adapter(run: str | Path, out: Path, *, site: str | None = None, strength: float = 1.0, base: str | None = None) -> Written:
    """A PEFT adapter's folder at `out`, for the run's base (or `base`: where that model now is). Raises ModelError where no layer can add the vector
    there, or where the adapter does not do what steering does."""
    where, vector, manifest = chosen(run, site)
    source = resolve(base or str(manifest["pair"]["base"]["ref"]))
    net = load_net(source, dtype="float32", device=torch.device("cpu"))
    model = wrap(net, side="base", ref=source.ref, config=load_config(source))
    if len(vector) != model.shape.d_model:
        raise ModelError(
            f"{source.ref}: its residual stream is {model.shape.d_model} wide, and the run's vector {len(vector)}. Give the run's base."
        )
    added = strength * vector
    return save_adapter(model, where, added, out)


def save_adapter(model: Model, site: Site, added: Tensor, out: Path) -> Written:
    """The adapter of one vector `[d]`, read back and compared with steering by the same vector on a probe. Raises ModelError as `write_adapter`."""
    from peft import LoraConfig, PeftModel, get_peft_model

    name, scale = adding_layer(model, site)
    ids = _probe(model)
    with torch.no_grad(), steering(model, {site: lambda states: added.to(states).expand_as(states)}):
        steered = model.net(input_ids=ids).logits[0].float()
    config = LoraConfig(r=1, lora_alpha=1, target_modules=[name], lora_bias=True, bias="none", task_type="CAUSAL_LM")
    with _without_peft_s_warnings():
        adapted: Any = get_peft_model(model.net, config)
        _fill(adapted.get_base_model().get_submodule(name), added / scale)
        adapted.peft_config["default"].base_model_name_or_path = model.ref
        adapted.save_pretrained(str(out))
        again: Any = PeftModel.from_pretrained(adapted.unload(), str(out)).eval()
    with torch.no_grad():
        found = again(input_ids=ids).logits[0].float()
    again.unload()
    (out / "README.md").write_text(CARD.format(base=model.ref, site=site, module=name, norm=float(added.norm())), encoding="utf-8")
    apart, largest = float(kl_nats(steered, found).max()), float((steered - found).abs().max())
    if not apart <= ROUNDING_NATS[model.dtype]:
        raise ModelError(
            f"{out}: the adapter at {name} does not do what adding the vector at {site} does (KL {apart:.2g} nats, largest difference of a logit "
            f"{largest:.2g}). This architecture reads the site in another way: take the safetensors file, or a control vector."
        )
    return Written(path=out, site=site, norm=float(added.norm()), module=name, kl_nats=apart, largest_logit_difference=largest)


@contextmanager
def _without_peft_s_warnings() -> Iterator[None]:
    """It warns that a bias cannot be merged into a layer without one, and takes the bias for a shard of a larger tensor: what is read back shows
    that it is whole."""
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _fill(layer: Any, bias: Tensor) -> None:
    """The adapter's numbers: nothing but the bias."""
    with torch.no_grad():
        layer.lora_A["default"].weight.zero_()
        layer.lora_B["default"].weight.zero_()
        layer.lora_B["default"].bias.copy_(bias)


def _probe(model: Model) -> Tensor:
    """Token ids of no text, the same every time."""
    return torch.randint(0, model.shape.vocab, (1, PROBE), generator=torch.Generator().manual_seed(0), device="cpu").to(model.device)


def adding_layer(model: Model, site: Site) -> tuple[str, float]:
    """The linear layer whose output, times a number, is added to the residual stream at a site: its name in the network, and the number."""
    below = Site(site.layer - 1, "mlp_out") if site.kind == "resid_pre" and site.layer else None
    half = {"mlp_out": site, "resid_post": Site(site.layer, "mlp_out"), "resid_pre": below, "attn_out": site, "attn_proj": site,
            "resid_mid": Site(site.layer, "attn_out")}.get(site.kind)  # fmt: skip
    if half is None or half.kind not in model.kinds():
        raise ModelError(f"{model.ref}: no linear layer adds to {site}. Take a vector of resid_post, resid_mid, mlp_out or attn_out.")
    arrives, seen = _outputs(model, half)
    same = [name for name, output in seen.items() if output.shape == arrives.shape and torch.equal(output, arrives)]
    if not same:
        raise ModelError(
            f"{model.ref}: what arrives at {half} is no linear layer's output: it is normed before it is added, or made of several experts, so no "
            "bias can stand for the vector. Take the safetensors file, or a control vector for llama.cpp."
        )
    return same[-1], model.scale(half)


def _outputs(model: Model, half: Site) -> tuple[Tensor, dict[str, Tensor]]:
    """The state of a site before its scale at the probe's last position, and the output there of every linear layer of the block, by name."""
    block, seen, handles = model.blocks[half.layer], dict[str, Tensor](), []
    names = {id(module): name for name, module in model.net.named_modules()}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            seen[name] = output.detach().reshape(-1, output.shape[-1])[-1].clone()

        return hook

    for module in block.modules():
        if _is_linear(module):
            handles.append(module.register_forward_hook(keep(names[id(module)])))
    place, end = model.place(half)
    assert end == "output"
    arrives: list[Tensor] = []
    handles.append(place.register_forward_hook(lambda module, args, output: arrives.append(_first(output))))
    try:
        forward(model, _probe(model))
    finally:
        for handle in handles:
            handle.remove()
    return arrives[0].detach().reshape(-1, arrives[0].shape[-1])[-1].clone(), seen


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)
