#!/bin/sh
# The names of an expert's matrices as the network has them train a third of the experts; names it no longer has train all.
#
# Packages: torch 2.13.0, transformers 5.23.0, peft 0.21.2 (Qwen3-MoE and Mixtral).
# Guess: `target_modules` lists names found in `model.named_parameters()`: since transformers 5 fuses the experts into
#   `gate_up_proj` and `down_proj`, these are the names to give, and the same list works for every mixture of experts.
# Behaviour: for Qwen3-MoE the names the network shows adapt `down_proj` alone, a third of the weights, and the names that only the
#   files have (`gate_proj`, `up_proj`, `down_proj`) adapt everything. Mixtral takes neither: beside an attention
#   matrix in the list its experts are passed over in silence; it wants `w1`, `w2`, `w3`. Where the fused matrix is adapted,
#   its rank is twice `r`, while a warning says that this very pattern "did not match any targeted module".
# Hurt: who fine-tunes experts or compares such adapters: one recipe gives adapters of three kinds, and "the change sits in
#   attention" is what the list of names said, not what the data taught.
# Instead: count the adapted weights after `get_peft_model`, or name fused tensors in `target_parameters`.
#
# Output seen:
#   torch 2.13.0, transformers 5.23.0, peft 0.21.2
#   family      names                          share of the experts' weights that have an adapter   their rank (r is 4)   denied
#   qwen3_moe   as the network has them            0.33   down_proj 4                         False
#   qwen3_moe   as dense models have them          1.00   down_proj 4, gate_up_proj 8         True
#   qwen3_moe   as Mixtral's files have them       0.00   none                                False
#   qwen3_moe   all-linear                         1.00   down_proj 4, gate_up_proj 8         True
#   mixtral     as the network has them            0.00   none                                False
#   mixtral     as dense models have them          0.00   none                                False
#   mixtral     as Mixtral's files have them       1.00   down_proj 4, gate_up_proj 8         True
#   mixtral     all-linear                         1.00   down_proj 4, gate_up_proj 8         True
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
import warnings

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

versions = [f"{name} {importlib.metadata.version(name).split('+')[0]}" for name in ("torch", "transformers", "peft")]
print(", ".join(versions))
common = dict(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2)
families = {
    "qwen3_moe": dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, head_dim=8),
    "mixtral": dict(num_local_experts=4, num_experts_per_tok=2),
}
lists = {
    "as the network has them": ["q_proj", "gate_up_proj", "down_proj"],
    "as dense models have them": ["q_proj", "gate_proj", "up_proj", "down_proj"],
    "as Mixtral's files have them": ["q_proj", "w1", "w2", "w3"],
    "all-linear": "all-linear",
}
seen = {}
print("family      names                          share of the experts' weights that have an adapter   their rank (r is 4)   denied")
for family, sizes in families.items():
    for name, targets in lists.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **common, **sizes))
        experts = {path.rsplit(".", 1)[1]: weight.numel() for path, weight in model.named_parameters() if ".experts." in path}
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            adapted = get_peft_model(model, LoraConfig(r=4, target_modules=targets))
        wrapped = {module.parameter_name: module.r["default"] for module in adapted.modules()
                   if getattr(module, "parameter_name", None) in experts}
        share = sum(experts[path] for path in wrapped) / sum(experts.values())
        denied = any("did not match" in str(warning.message) and "gate_up_proj" in str(warning.message) for warning in said)
        seen[family, name] = round(share, 2), wrapped.get("gate_up_proj", 0), denied
        ranks = ", ".join(f"{path} {rank}" for path, rank in sorted(wrapped.items())) or "none"
        print(f"{family:11} {name:30} {share:8.2f}   {ranks:35} {denied}")
network, dense, files = list(lists)[:3]
expected = [seen["qwen3_moe", network] == (0.33, 0, False),
            seen["qwen3_moe", dense] == (1.0, 8, True), seen["mixtral", network][0] == 0, seen["mixtral", dense][0] == 0,
            seen["mixtral", files] == (1.0, 8, True), seen["qwen3_moe", files][0] == 0]
sys.exit(0 if all(expected) else f"the behaviour has changed: {seen}")
PY
