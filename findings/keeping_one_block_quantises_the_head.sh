#!/bin/sh
# Asking bitsandbytes to leave one block alone quantises the output head, and may not leave the block alone.
#
# Packages: torch 2.13.0, transformers 5.23.0, accelerate 1.15.0, bitsandbytes 0.50.2 (4 bits, on the CPU).
# Guess: `llm_int8_skip_modules` adds to what is left in full precision, and a name of a block covers the block wherever
#   it stands in the network.
# Behaviour: a list replaces the default, by which the output head stays in full precision: with any list that does not
#   name `lm_head`, the head is rounded too. An entry is a whole dotted path from the root, or an ending of one: `layers.1` is
#   neither for the matrices inside the block, so it leaves nothing in full precision, in silence.
# Hurt: who measures what 4 bits cost part by part: "block 1 in full precision" is a network with *more* rounding
#   than the default, so the block's effect comes out with the wrong sign.
# Instead: write `["lm_head", "model.layers.1"]`, and count the modules that were rounded.
#
# Output seen:
#   torch 2.13.0, transformers 5.23.0, bitsandbytes 0.50.2
#   left alone                 head rounded   of block 1's 7 matrices   of block 11's   of 84   KL to full precision (nats)
#   nothing given              False                           7                  7          84           0.0957
#   layers.1                   True                            7                  7          84           0.0993
#   model.layers.1             True                            0                  7          77           0.0811
#   lm_head, model.layers.1    False                           0                  7          77           0.0777
#   q_proj                     True                            6                  6          72           0.0953
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 bitsandbytes==0.50.2
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import importlib.metadata
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

transformers.utils.logging.disable_progress_bar()
versions = [f"{name} {importlib.metadata.version(name).split('+')[0]}" for name in ("torch", "transformers", "bitsandbytes")]
print(", ".join(versions))
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=12,
                                     num_attention_heads=4)).eval()
for weight in model.parameters():
    if weight.dim() > 1:
        torch.nn.init.normal_(weight, std=0.12)
model.save_pretrained("model")
ids = torch.randint(3, 256, (4, 24), generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    full = model(input_ids=ids).logits.log_softmax(-1)
skips = {"nothing given": None, "layers.1": ["layers.1"], "model.layers.1": ["model.layers.1"],
         "lm_head, model.layers.1": ["lm_head", "model.layers.1"], "q_proj": ["q_proj"]}
seen = {}
print("left alone                 head rounded   of block 1's 7 matrices   of block 11's   of 84   KL to full precision (nats)")
for name, skip in skips.items():
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32,
                             llm_int8_skip_modules=skip)
    rounded = AutoModelForCausalLM.from_pretrained("model", quantization_config=how, dtype=torch.float32).eval()
    names = [path for path, module in rounded.named_modules() if type(module).__name__ == "Linear4bit"]
    with torch.no_grad():
        law = rounded(input_ids=ids).logits.float().log_softmax(-1)
    kl = float((full.exp() * (full - law)).sum(-1).mean())
    blocks = [sum(path.startswith(f"model.layers.{i}.") for path in names) for i in (1, 11)]
    seen[name] = "lm_head" in names, *blocks, sum(path.startswith("model.layers.") for path in names)
    print(f"{name:26} {seen[name][0]!s:18} {blocks[0]:14} {blocks[1]:18} {seen[name][3]:11} {kl:16.4f}")
expected = {"nothing given": (False, 7, 7, 84), "layers.1": (True, 7, 7, 84), "model.layers.1": (True, 0, 7, 77),
            "lm_head, model.layers.1": (False, 0, 7, 77), "q_proj": (True, 6, 6, 72)}
sys.exit(0 if seen == expected else f"the behaviour has changed: {seen}")
PY
