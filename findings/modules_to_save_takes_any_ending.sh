#!/bin/sh
# `modules_to_save=["norm"]` trains every normalisation of the network, not the last one that bears that name.
#
# Packages: torch 2.13.0, transformers 5.23.0, peft 0.21.2 (Qwen3 and Llama).
# Guess: names in `modules_to_save` are matched like those in `target_modules` beside it, where "norm" is the one
#   module of that whole name and "head" matches nothing (an error).
# Behaviour: `modules_to_save` takes every module whose path merely *ends* in the letters given. "norm" is the final norm and every
#   `input_layernorm`, `post_attention_layernorm`, `q_norm` and `k_norm`; "head" is `lm_head`. Nothing is said.
# Hurt: who wants one module trained beside LoRA and reports "LoRA with the final norm": the fine-tune moved 113 vectors in
#   all blocks, and what is found in the blocks is laid on LoRA.
# Instead: give the path down from the root ("model.norm") and print the names of what requires a gradient.
#
# Output seen:
#   torch 2.13.0, transformers 5.23.0, peft 0.21.2
#   family   modules_to_save   modules trained in full   share of all weights   as target_modules (of LN tuning, LoRA)
#   qwen3    model.norm                              1                  0.000   1
#   qwen3    norm                                  113                  0.009   1
#   qwen3    layernorm                              56                  0.007   NoMatchingPeftModuleError
#   qwen3    lm_head                                 1                  0.012   1
#   qwen3    head                                    1                  0.012   NoMatchingPeftModuleError
#   llama    model.norm                              1                  0.000   1
#   llama    norm                                   57                  0.007   1
#   llama    layernorm                              56                  0.007   NoMatchingPeftModuleError
#   llama    lm_head                                 1                  0.012   1
#   llama    head                                    1                  0.012   NoMatchingPeftModuleError
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
from peft import LNTuningConfig, LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

versions = [f"{name} {importlib.metadata.version(name).split('+')[0]}" for name in ("torch", "transformers", "peft")]
print(", ".join(versions))
sizes = dict(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=28, num_attention_heads=4, num_key_value_heads=2,
             head_dim=8)


def network(family):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes))


seen = {}
print("family   modules_to_save   modules trained in full   share of all weights   as target_modules (of LN tuning, LoRA)")
for family in ("qwen3", "llama"):
    for name in ("model.norm", "norm", "layernorm", "lm_head", "head"):
        model = network(family)
        total = sum(weight.numel() for weight in model.parameters())
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=[name]))
        trained = [weight.numel() for path, weight in adapted.named_parameters() if "modules_to_save" in path and weight.requires_grad]
        try:
            kind = LoraConfig(r=2, target_modules=[name]) if "head" in name else LNTuningConfig(target_modules=[name])
            as_targets = len(get_peft_model(network(family), kind).targeted_module_names)
        except ValueError as error:
            as_targets = type(error).__name__
        seen[family, name] = len(trained), as_targets if isinstance(as_targets, int) else 0
        print(f"{family:8} {name:17} {len(trained):23} {sum(trained) / total:22.3f}   {as_targets}")
expected = {("qwen3", "model.norm"): (1, 1), ("qwen3", "norm"): (113, 1), ("qwen3", "layernorm"): (56, 0),
            ("qwen3", "lm_head"): (1, 1), ("qwen3", "head"): (1, 0), ("llama", "model.norm"): (1, 1), ("llama", "norm"): (57, 1),
            ("llama", "layernorm"): (56, 0), ("llama", "lm_head"): (1, 1), ("llama", "head"): (1, 0)}
sys.exit(0 if seen == expected else f"the behaviour has changed: {seen}")
PY
