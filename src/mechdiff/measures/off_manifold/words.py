"""The page's sentence says how many writes lie beyond the running model's own states, and whether that is more than own states do."""

from typing import Any

from mechdiff.measures.off_manifold import findings
from mechdiff.measures.off_manifold.findings import FEWEST_OWN, LEVEL, by_chance
from mechdiff.report.parts import Run
from mechdiff.report.phrasing import prompts, share, with_interval


def lead(run: Run) -> list[str]:
    """Of the other model's states, each written at its own place; nothing where too few own states are known."""
    found = findings.patches(run.prompt_rows, run.manifest)
    if found is None or found["beyond"] is None or found["own_clusters"] < FEWEST_OWN:
        return []
    chance = by_chance(found["own_clusters"])
    more = found["low"] is not None and found["low"] > chance
    size = with_interval(found["part"], found["low"], found["high"], digits=2)
    on = in_clusters(prompts(found["prompts"]), found)
    sentence = (
        f"Of {found['writes']} patches of the other model's activation ({on}, {found['sites']} sites and directions), "
        f"{found['beyond']} lie beyond {reach(found['own'], found['own_clusters'])}: a share of {size}, "
        f"where {share(chance, 3)} is expected of activations like its own"
    )
    if more:
        return [f"{sentence}; what such patches do may be no more than what an activation does that the model never has."]
    return [f"{sentence}; that these patches lie further out than own activations could not be shown."]


def in_clusters(prompts: str, found: dict[str, Any]) -> str:
    """ "32 prompts in 8 clusters" where prompts share them."""
    return prompts if found["clusters"] == found["prompts"] else f"{prompts} in {found['clusters']} clusters"


def reach(n: int, clusters: int) -> str:
    """What a write is beyond, of n own states of so many clusters."""
    kept = f"all {n}" if by_chance(clusters) > 1 - LEVEL else f"{100 * LEVEL:.0f} %"
    return f"{kept} of the running model's own activations"
