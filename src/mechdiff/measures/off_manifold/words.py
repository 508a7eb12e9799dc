"""The page's sentence says how many writes lie beyond the running model's own states, and whether that is more than own states do."""

from mechdiff.measures.off_manifold import findings
from mechdiff.measures.off_manifold.findings import FEWEST_OWN, LEVEL
from mechdiff.report.parts import Run
from mechdiff.report.phrasing import prompts, share, with_interval


def lead(run: Run) -> list[str]:
    """Of the other model's states, each written at its own place; nothing where too few own states are known."""
    found = findings.patches(run.rows)
    if found is None or found["beyond"] is None or found["own"] < FEWEST_OWN:
        return []
    chance = by_chance(found["own"])
    more = found["low"] is not None and found["low"] > chance
    size = with_interval(found["part"], found["low"], found["high"], digits=2)
    sentence = (
        f"Of {found['writes']} writes of the other model's activation ({prompts(found['prompts'])}, {found['sites']} sites and directions), "
        f"{found['beyond']} lie beyond {reach(found['own'])}: a share of {size}, where {share(chance, 3)} is expected of states like its own"
    )
    if more:
        return [f"{sentence}; what such writes do may be no more than what a state does that the model never has."]
    return [f"{sentence}; that these writes lie further out than own states could not be shown."]


def by_chance(n: int) -> float:
    """The share of states like n own ones that are called beyond, at most."""
    return max(1 - LEVEL, 1 / (n + 1))


def reach(n: int) -> str:
    """What a write is beyond, of n own states."""
    return (
        f"{100 * LEVEL:.0f} % of the running model's own activations"
        if n >= LEVEL / (1 - LEVEL) - 1e-9
        else f"all {n} of the running model's own activations"
    )
