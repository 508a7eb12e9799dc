"""A study file may set these options of divergence; its cells are planned from them."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from mechdiff.measures.attribution.plan import AttributionOptions
from mechdiff.measures.heads.plan import HeadsOptions
from mechdiff.measures.patching.plan import PatchingOptions
from mechdiff.measures.rank.plan import RankOptions
from mechdiff.measures.steering.plan import SteeringOptions
from mechdiff.measures.transport.plan import TransportOptions
from mechdiff.prompts.rendering import PromptPolicy, Rendered, render
from mechdiff.prompts.sets import SPLITS
from mechdiff.study.cells import Cell
from mechdiff.study.config import StudyConfig
from mechdiff.study.options import Options
from mechdiff.study.planner import Planner


class DivergenceOptions(Options):
    over_text: bool = True  # beside the decision position: every position of the prompts and of a continuation
    continuation: Annotated[int, Field(ge=0, le=4096)] = 16  # tokens of the tuned model's own greedy answer that both models read
    native: bool = True  # with policy same_text: D once more with each model's own template, and what the template alone does to each


TEXTS_AT_A_TIME = 8
"""Prompts whose laws at every position are in memory together."""


def divergence_cells(planner: Planner) -> Iterator[Cell]:
    asking = (
        DivergenceOptions, PatchingOptions, TransportOptions, RankOptions, SteeringOptions, HeadsOptions, AttributionOptions,
    )  # fmt: skip
    for split in SPLITS if any(planner.study.asked(kind) for kind in asking) else ():
        if split in planner.splits:
            items = planner.whole(split)
            yield Cell(stage="divergence", key=planner.key(items, stage="divergence", split=split), items=items, side=None, flops=0)
    if "native" in planner.splits:
        items = planner.whole("native")
        yield Cell(stage="native", key=planner.key(items, stage="native", split="report"), items=items, side=None, flops=0)


def texts_cells(planner: Planner) -> Iterator[Cell]:
    options = planner.study.asked(DivergenceOptions)
    if not options or not options.over_text:
        return
    if "report" not in planner.splits:
        planner.skip("divergence over text", "the study has no report prompts")
        return
    items = planner.whole("report")
    for start in range(0, len(items), TEXTS_AT_A_TIME):
        shard = items[start : start + TEXTS_AT_A_TIME]
        tokens = sum(item.tokens for item in shard) + options.continuation * len(shard)
        key = planner.key(shard, stage="texts", split="report", continuation=options.continuation)
        yield Cell(stage="texts", key=key, items=shard, side=None, flops=planner.flops(2 * tokens, 2 * tokens), steps=options.continuation)


def add_native(
    study: StudyConfig,
    rendered: dict[str, dict[str, Rendered]],
    tokenizers: Mapping[str, Any],
    policy: PromptPolicy,
    lengths: Mapping[str, int],
) -> list[dict[str, str]]:
    """Adds the report prompts by each model's own template, as the split `native`, where that is another text; what is left out, and why."""
    divergence = study.asked(DivergenceOptions)
    if not (divergence and divergence.native and policy.policy == "same_text" and "report" in rendered):
        return []
    bare = [side for side, tokenizer in tokenizers.items() if not tokenizer.chat_template]
    if bare:
        return [{"what": "divergence: native templates", "why": f"the tokenizer of {' and '.join(bare)} has no chat template of its own"}]
    prompts = [one.prompt for one in rendered["report"].values()]
    own = render(prompts, tokenizers["base"], tokenizers["tuned"], replace(policy, policy="native", position="decision"), **lengths)
    if any(one.sha256 != rendered["report"][one.prompt.id].sha256 for one in own):
        rendered["native"] = {one.prompt.id: one for one in own}
    return []
