"""Where the difference matters is compared between runs."""

from collections.abc import Iterator

from mechdiff.compare import additive, effects
from mechdiff.compare.comparable import Loaded
from mechdiff.compare.effects import WRITES
from mechdiff.compare.quantity import Quantity, by_divergence, crossing, number
from mechdiff.measures.heads.findings import WORDS
from mechdiff.report.difference import BREAKAGE


def quantities(run: Loaded) -> Iterator[Quantity]:
    """Sites and layers that carry it, by shares that add; the same by divergences, at this D; and where half of D is passed."""
    sites, back = additive.patched(run, WRITES), additive.patched(run, WRITES, BREAKAGE)
    if sites is not None:
        yield number("where", "effective sites", sites, null=True)
        yield number("where", "effective layers", additive.summed(sites, lambda name: name[0]), null=True)
    if back is not None:
        yield number("where", "effective sites, where the tuned model runs", back)
    for direction, word in WORDS.items():
        if (alone := effects.patched(run, direction, WRITES)) is not None:
            yield by_divergence("where", f"effective sites by KL, {word}", alone)
        stream = effects.patched(run, direction, ("resid_post",))
        if stream is not None and stream.total.mean() > 0:
            layers = [float(layer) for layer, _ in stream.names]
            yield crossing("where", f"half of D passed, {word}", stream, [*layers, layers[-1] + 1], "layer", threshold=0.5)
