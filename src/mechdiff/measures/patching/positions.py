"""At which positions of the prompt does the difference matter? The other model's residual stream is patched into one part of a prompt at a time.

A patch at an earlier position acts on the next token through attention alone, by the layers above it. So the map by layer and position shows from
which layer on the change has arrived at the decision position, and where it was before: in the template, in the user's first words, in the last.

A prompt is read up to the part once; each layer's patch is a copy of the rest of it, on that prefix's keys and values.
"""

from collections.abc import Sequence

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from mechdiff import labels
from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import capture
from mechdiff.engine.continued import RUNS
from mechdiff.engine.counterfactuals import LOCATING, chunks, labelled, score_rows
from mechdiff.engine.outcome import CleanLogits, outcomes
from mechdiff.engine.overlap import overlap_nats
from mechdiff.engine.prefix import Prefix
from mechdiff.engine.reading import read
from mechdiff.engine.replay import Engine, Variant, Write, parallel, replay
from mechdiff.models.pair import Model
from mechdiff.prompts.parts import parts
from mechdiff.rows import OVERLAP
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution
from mechdiff.study.experiment import Result


def position_map(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of patches at the parts of one prompt, and token by token where asked for."""
    assert model
    key, (name,) = cell.key, cell.key["ids"]
    other = "base" if model.side == "tuned" else "tuned"
    held = {side: run.states(side, key["split"], "all", key["ids"]) for side in ("base", "tuned")}
    states = dict(zip(held[other].layers, held[other].kinds["resid_post"][:, 0].to(model.device), strict=True))
    ids = run.ids(cell, name)
    everyone = [run.prompt(key["split"], one) for shard in run.captures(model.side, key["split"], "decision") for one in shard.key["ids"]]
    read_by = [one.ids_base if model.side == "base" else one.ids_tuned for one in everyone]
    asked: list[tuple[str | int, range]] = [*parts(read_by, ids).items()]
    if key["tokens"]:
        asked += [(place, range(place, place + 1)) for place in range(len(ids))]
    n_shared = run.prepared.tokens.n_shared
    clean = CleanLogits(**{side: of.logits.to(model.device) for side, of in held.items()}, n_shared=n_shared)
    engine = run.engine(model, "decision")
    frames = []
    for part, places in asked:
        variants = [{Site(layer, "resid_post"): Write(value=states[layer][None, places.start : places.stop])} for layer in key["layers"]]
        logits = run.prepared.tokens.place(behind(model, engine, ids, places.start, variants, max_rows=run.max_rows), model.side)
        found = outcomes(logits[None], clean, model.side, metrics=LOCATING)
        if OVERLAP not in found:
            found[OVERLAP] = overlap_nats(logits[None], clean.of(model.side), clean.beside(model.side), n_shared)
        named = labelled(
            len(variants), measure="patching", direction=key["direction"], split=key["split"], arm="identity", layer=list(key["layers"]),
            site="resid_post", unit=labels.position_unit(part),
        )  # fmt: skip
        frames.append(score_rows(found, named, [name]))
    return pl.concat(frames), {}


def behind(
    model: Model, engine: Engine, ids: Sequence[int], start: int, variants: Sequence[Variant], *, max_rows: int
) -> Float[Tensor, "run vocab"]:
    """Logits after the last token of an unedited run and of each variant, which writes at the positions from `start` on."""
    found: list[Tensor] = []
    if engine is replay:
        prefix = Prefix.of(read(model, [ids[: start + 1]]), 1, torch.tensor([ids[start:]], device=model.device))
    else:
        clean = capture(model, ids[: start + 1], [], [0])
    for part in chunks(len(variants), max(1, max_rows // (len(ids) - start) - 1)):
        if engine is replay:
            logits = parallel(model, prefix, variants[part])[0]
        else:
            logits = RUNS[engine](model, [clean], [[*ids[start + 1 :], 0]], variants[part])[-1]
        found.append(logits if not found else logits[1:])
    return torch.cat(found)
