#!/bin/sh
# The rotary base in its old place is read by nobody, while rotary scaling in its old place wins.
#
# Packages: torch 2.13.0, transformers 5.23.0 (Llama).
# Guess: a key that config.json has understood for years either works or is refused; `rope_theta` and `rope_scaling`,
#   which move together into `rope_parameters` in version 5, are treated alike.
# Behaviour: beside `rope_parameters` in config.json, `rope_theta` is ignored and `rope_scaling` replaces what
#   `rope_parameters` says. `config.rope_theta = x` is kept, saved and ignored. A loaded config has no attribute
#   `rope_theta`, so the usual `getattr(config, "rope_theta", 10000.0)` answers 10000 for a model of base 500000.
# Hurt: who extends contexts by editing config.json (half of the edit is lost without a word, the other half works), and
#   who compares two models' rotary bases by `getattr`: all bases are equal then.
# Instead: read and write `config.rope_parameters["rope_theta"]`, and check the inverse frequencies of the loaded network.
#
# Output seen:
#   torch 2.13.0, transformers 5.23.0
#   config.json edited                              logits moved by (SD)
#   rope_theta: 777                                 0.0000
#   rope_scaling: linear by 4                       5.0019
#   rope_parameters: rope_theta: 777                4.4607
#   getattr(config, 'rope_theta', 10000.0)          10000.0 (the model's is 500000.0)
#   config.rope_theta = 777 before loading          0.0000 (saved as 777.0)
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.23.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import json
import pathlib
import sys

import torch
import transformers
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

transformers.utils.logging.disable_progress_bar()
print(f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}")
torch.manual_seed(0)
sizes = dict(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4)
model = LlamaForCausalLM(LlamaConfig(**sizes, rope_parameters={"rope_type": "default", "rope_theta": 500000.0})).eval()
for weight in model.parameters():
    if weight.dim() > 1:
        torch.nn.init.normal_(weight, std=0.3)
folder = pathlib.Path("model")
model.save_pretrained(folder)
written = json.loads((folder / "config.json").read_text())
ids = torch.randint(3, 99, (1, 20))


@torch.no_grad()
def moved(loaded):
    before = model(input_ids=ids).logits
    return float((loaded.eval()(input_ids=ids).logits - before).abs().max() / before.std())


def with_config(**edits):
    (folder / "config.json").write_text(json.dumps(written | edits))
    loaded = LlamaForCausalLM.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(written))
    return loaded


scaling = {"rope_type": "linear", "factor": 4.0}
new = {"rope_type": "default", "rope_theta": 777.0}
seen = {}
print("config.json edited                              logits moved by (SD)")
for name, edits in {"rope_theta: 777": {"rope_theta": 777.0}, "rope_scaling: linear by 4": {"rope_scaling": scaling},
                    "rope_parameters: rope_theta: 777": {"rope_parameters": new}}.items():
    seen[name] = moved(with_config(**edits))
    print(f"{name:47} {seen[name]:.4f}")
config = AutoConfig.from_pretrained(folder)
read = getattr(config, "rope_theta", 10000.0)
print(f"getattr(config, 'rope_theta', 10000.0)          {read} (the model's is {config.rope_parameters['rope_theta']})")
config.rope_theta = 777.0
set_later = moved(LlamaForCausalLM.from_pretrained(folder, config=config))
print(f"config.rope_theta = 777 before loading          {set_later:.4f} (saved as {config.to_dict()['rope_theta']})")
old, scaled, right = seen.values()
same = old < 0.001 and set_later < 0.001 and scaled > 0.5 and right > 0.5 and read == 10000.0
sys.exit(0 if same else "the behaviour has changed")
PY
