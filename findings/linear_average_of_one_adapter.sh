#!/bin/sh
# The "linear" average of an adapter with itself, written in another basis, is another adapter.
#
# Packages: torch 2.13.0, transformers 5.23.0, peft 0.21.2.
# Guess: `add_weighted_adapter(..., combination_type="linear")` adds the changes of the weights: halves of two equal changes are that
#   change, and weights 1 and -1 of them are nothing.
# Behaviour: "linear" (and "ties", "dare_linear", "dare_ties", "magnitude_prune") combines the factors A and B one by one, so that
#   cross terms B1 A2 come in. BA = (BR)(R'A) for every rotation R: two files of one and the same change give an average
#   that is far from it and depends on R. Adapters trained apart never share a basis. "cat" and "svd" are exact.
# Hurt: who averages fine-tunes or subtracts one from another: the merged adapter's worse scores are laid on
#   interference between tasks, where there is one task.
# Instead: "cat" (rank r1 + r2) or "svd" with `svd_rank=r1 + r2`, and compare `get_delta_weight` with the sum.
#
# Output seen:
#   torch 2.13.0, transformers 5.23.0, peft 0.21.2
#   distance of the two adapters' changes: 1.9e-07 of their size
#   combination       half and half: distance to the change, size   1 and -1: what is left of the change
#   cat                                        0.0000    1.0000                              0.0000
#   svd                                        0.0000    1.0000                              0.0000
#   linear                                     0.7163    0.9207                              1.3382
#   dare_linear                                0.7163    0.9207                              1.3382
#   magnitude_prune                            0.7163    0.9207                              1.3382
#   ties                                       0.8302    0.7614                              1.1025
#   dare_ties                                  0.8302    0.7614                              1.1025
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.23.0 peft==0.21.2
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import importlib.metadata
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

versions = [f"{name} {importlib.metadata.version(name).split('+')[0]}" for name in ("torch", "transformers", "peft")]
print(", ".join(versions))
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(vocab_size=99, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4))
config = LoraConfig(r=8, lora_alpha=8, target_modules=["q_proj"])
adapted = get_peft_model(model, config, adapter_name="first")
adapted.add_adapter("second", config)
layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
turn = torch.linalg.qr(torch.randn(8, 8))[0]
with torch.no_grad():
    a, b = torch.randn(8, 64), torch.randn(64, 8)
    layer.lora_A["first"].weight.copy_(a)
    layer.lora_B["first"].weight.copy_(b)
    layer.lora_A["second"].weight.copy_(turn.T @ a)
    layer.lora_B["second"].weight.copy_(b @ turn)
one = layer.get_delta_weight("first")
apart = float((layer.get_delta_weight("second") - one).norm() / one.norm())
print(f"distance of the two adapters' changes: {apart:.1e} of their size")
errors = {}
print("combination       half and half: distance to the change, size   1 and -1: what is left of the change")
for kind in ("cat", "svd", "linear", "dare_linear", "magnitude_prune", "ties", "dare_ties"):
    found = []
    for i, weights in enumerate(([0.5, 0.5], [1.0, -1.0])):
        name = f"{kind}_{i}"
        try:
            adapted.add_weighted_adapter(["first", "second"], weights, name, combination_type=kind, density=1.0,
                                         svd_rank=16 if kind == "svd" else None)
            found.append(layer.get_delta_weight(name))
        except ValueError:
            found.append(torch.full_like(one, torch.nan))
    error, size, left = (float(x.norm() / one.norm()) for x in (found[0] - one, found[0], found[1]))
    errors[kind] = error, left
    print(f"{kind:17} {error:31.4f} {size:9.4f} {left:35.4f}")
exact = all(max(errors[kind]) < 1e-4 for kind in ("cat", "svd"))
rest = all(min(errors[kind]) > 0.2 for kind in errors if kind not in ("cat", "svd"))
sys.exit(0 if apart < 1e-5 and exact and rest else f"the behaviour has changed: {errors}")
PY
