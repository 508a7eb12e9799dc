#!/bin/sh
# A LoRA adapter whose `alpha_pattern` has two patterns for one layer is another adapter once it has been saved and loaded.
#
# Packages: torch 2.13.0, transformers 5.23.0, peft 0.21.2.
# Guess: an adapter that is saved and loaded gives the logits that it gave in training; and of two patterns that fit a layer the
#   more particular one counts, as in most tools that match names.
# Behaviour: the first pattern that fits counts, in the order of the dictionary, however particular. `save_pretrained` writes
#   adapter_config.json with sorted keys, so after loading another pattern is the first. The scale of the change is another one, by
#   any factor, without a message: factors and ranks fit, for the alpha stands in no tensor. The same goes for a checkpoint that
#   training goes on from, and for every tool that reads the file. (With two patterns in `rank_pattern` loading fails.)
# Hurt: who gives some layers another alpha: what is evaluated in the training script is not what is published, and a published
#   score cannot be had again from the files.
# Instead: write patterns of which one alone fits each layer (a list of layers in one regular expression), and compare the logits
#   before saving and after loading.
#
# Output seen:
#   torch 2.13.0, transformers 5.23.0, peft 0.21.2
#   alpha_pattern as it was trained with               scale trained   scale loaded   size of the change, loaded / trained
#   {'self_attn.q_proj': 64, 'q_proj': 8}                  8.00           1.00                    0.125
#   {'q_proj': 8, 'layers.0.self_attn.q_proj': 64}         1.00           8.00                    8.000
#   {'layers.0.self_attn.q_proj': 64, 'q_proj': 8}         8.00           8.00                    1.000
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
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

versions = [f"{name} {importlib.metadata.version(name).split('+')[0]}" for name in ("torch", "transformers", "peft")]
print(", ".join(versions))
print("alpha_pattern as it was trained with               scale trained   scale loaded   size of the change, loaded / trained")
sizes = dict(vocab_size=99, hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=1)


def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**sizes)).eval()


def found(adapted):
    layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
    return layer.scaling["default"], float(layer.get_delta_weight("default").norm())


ratios = []
for number, patterns in enumerate((
    {"self_attn.q_proj": 64, "q_proj": 8},
    {"q_proj": 8, "layers.0.self_attn.q_proj": 64},
    {"layers.0.self_attn.q_proj": 64, "q_proj": 8},
)):
    trained = get_peft_model(base(), LoraConfig(r=8, lora_alpha=8, target_modules=["q_proj"], alpha_pattern=patterns))
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    trained.save_pretrained(f"adapter-{number}")
    loaded = PeftModel.from_pretrained(base(), f"adapter-{number}")
    (scale, size), (scale_loaded, size_loaded) = found(trained), found(loaded)
    ratios.append(round(size_loaded / size, 3))
    print(f"{str(patterns):50} {scale:8.2f} {scale_loaded:14.2f} {size_loaded / size:24.3f}")
sys.exit(0 if ratios == [0.125, 8.0, 1.0] else f"the behaviour has changed: {ratios}")
PY
