"""The engine proves itself on the very model that a run is about to study, before any number is computed.

1. *A site holds what its name says*: in one forward pass, `resid_pre` and `attn_out` add up to `resid_mid`, `resid_mid` and `mlp_out` to
   `resid_post`, one block's `resid_post` is the next one's `resid_pre`, and `attn_proj` goes through the post-norm to `attn_out`. A row of the
   family table that names a wrong module fails here.
2. *What is read is what is written*: the states of a site, read in one forward pass and written back in a second one, change no bit of the
   logits, site by site.
3. *Variants are forward passes*: states of other tokens, written by the engine that the run uses and once more by whole hooked forward passes (each
   sequence of a batch patched at another block), give the same next-token law. Two prompts of different lengths always run in one pass. Every kind
   of site is tried at every block on a prompt's first tokens; one kind at every sixth block on a whole prompt, in windows of several positions, by
   relay, and by steering behind a shared opening. The unedited rows of each pass give the model's own law. Models whose cache is no plain list of
   keys and values run through replay without a complaint and are silently wrong; this is what finds them.

How far apart two laws may be is measured on the model (`rounding.py`): ten times what rounding each block's outputs once more does to the unedited
law or, where a written state makes the law more sensitive than that, to the law under this very state.

A failure raises SelfCheckError that names the site: no number from this model would be worth anything.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import Clean, Edit, capture, edited, forward, writer
from mechdiff.engine.replay import Engine, Write, full, relay, replay
from mechdiff.engine.rounding import allowed_nats, nats_between, rounding_nats
from mechdiff.engine.steered import Change, apply, steered
from mechdiff.errors import SelfCheckError
from mechdiff.models.pair import Model

FEW = 5
"""Tokens of a prompt's opening."""
FEWER = 2
"""Tokens on which every kind is tried at every block, beside those: what is wrong with a place is wrong on any of them."""
WINDOW = 3
"""Positions that are written at once, where windows are tried."""
ROWS = 128
"""Sites whose foreign states run in one pass."""
APART = 6
"""On a whole prompt, where masks and positions could go wrong: every sixth block and the last."""


@dataclass(frozen=True, kw_only=True)
class SelfCheck:
    """What the check found on one model."""

    sites: int
    """Sites whose states were written back, each on its own, without changing a bit."""
    worst_site: str
    replay_nats: float
    """Largest KL(full || engine) of a foreign state at any site."""
    floor_nats: float
    """Largest KL of an unedited row of any pass against the model's own forward pass."""
    rounding_nats: float
    """What rounding once more does to the model's own law."""

    def record(self) -> dict[str, Any]:
        return asdict(self)


def self_check(model: Model, prompts: Sequence[Sequence[int]], *, kinds: Sequence[str] | None = None, engine: Engine = replay) -> SelfCheck:
    """Check `model` at the site `kinds` (default: all that it has) on the shortest of `prompts`, and on the longest too where some
    blocks attend to a sliding window that it outgrows. Raises SelfCheckError that names the site."""
    ids, longest = min(prompts, key=len), max(prompts, key=len)
    kinds = model.kinds() if kinds is None else kinds
    every = [Site(layer, kind) for layer in range(model.shape.n_layers) for kind in model.kinds()]
    clean = capture(model, ids, every, [len(ids) - 1, len(ids) // 2], keep_cache=engine is replay)
    _adds_up(model, clean.states)
    _writes_back(model, clean.ids[:FEWER], kinds)
    few, fewer = (capture(model, ids[:n], [], [0], keep_cache=engine is replay) for n in (FEW, max(1, min(FEW, len(ids)) - FEW + FEWER)))
    rounding = max(rounding_nats(model, few.ids), rounding_nats(model, clean.ids, draws=2))
    if model.family.by_layer:
        allowed = allowed_nats(model, rounding_nats(model, clean.ids, draws=3, alone=True))
        _is_causal(model, clean.ids, allowed)
        _is_alone(model, clean.ids, allowed)
    together = max(1, ROWS // model.shape.n_layers)
    groups = [kinds[start : start + together] for start in range(0, len(kinds), together)]
    foreign = [{site: clean.states[site] for site in every if site.kind in group} for group in groups]
    last = {site: clean.states[site] for site in every if site.kind == kinds[-1]}
    tried = {*range(0, model.shape.n_layers, APART), model.shape.n_layers - 1}
    sparse = {site: state for site, state in last.items() if site.layer in tried}
    width = max(1, min(WINDOW, len(few.ids) - 1))
    ways = _Ways(model=model, engine=engine, rounding=rounding)
    found = [ways.agree([fewer, few], states) for states in foreign]
    found += [ways.agree([clean, few], sparse), ways.agree([few, clean], sparse, width)]
    if engine is replay:
        found.append(replace(ways, engine=relay).agree([few], sparse, width))
    if engine is not full:  # whoever asks for whole passes alone knows of a state that a shared opening lacks
        found.append(ways.steered_agree(few, sparse))
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    if window and len(longest) > window:
        found.append(ways.agree([capture(model, longest, [], [0], keep_cache=engine is replay), few], last))
    nats, site, _ = max(found)
    floor = max(floor for _, _, floor in found)
    return SelfCheck(
        sites=len(kinds) * model.shape.n_layers, worst_site=str(site), replay_nats=nats, floor_nats=floor, rounding_nats=rounding
    )


def _adds_up(model: Model, states: dict[Site, Tensor]) -> None:
    """Raises unless the states of every block are the parts and sums that their names say."""
    slack = 8 * torch.finfo(model.dtype).eps
    for site, state in states.items():
        if state.shape[-1] != model.shape.width(site.kind):
            raise SelfCheckError(
                f"{model.ref}: what is read at {site} is {state.shape[-1]} wide, not {model.shape.width(site.kind)}. {_misfit(model)}"
            )
    for site, expected, words in _claims(model, states):
        apart, size = float((states[site] - expected).float().norm()), float(expected.float().norm() + states[site].float().norm())
        if not apart <= slack * size:
            raise SelfCheckError(f"{model.ref}: what is read at {site} is not {words} ({apart:.1e} apart, of {size:.1e}). {_misfit(model)}")


def _claims(model: Model, states: dict[Site, Tensor]) -> Iterator[tuple[Site, Tensor, str]]:
    """A site, what its state must be by the other sites' states, and this in words."""
    for layer, block in enumerate(model.blocks):
        at = {kind: states[Site(layer, kind)] for kind in model.kinds()}
        if layer:
            yield Site(layer, "resid_pre"), states[Site(layer - 1, "resid_post")], "resid_post of the block before"
        if norm := model.family.norm_behind(layer) if {"attn_out", "attn_proj"} <= at.keys() else None:
            with torch.inference_mode():
                normed = block.get_submodule(norm)(at["attn_proj"])
            yield Site(layer, "attn_out"), normed * model.scale(Site(layer, "attn_out")), "attn_proj after the post-norm"
        if {"resid_mid", "attn_out"} <= at.keys():
            yield Site(layer, "resid_mid"), at["resid_pre"] + at["attn_out"], "resid_pre + attn_out"
        added = model.family.adds(layer)
        if added is not None and at.keys() >= set(added):
            yield Site(layer, "resid_post"), sum((at[kind] for kind in added), at["resid_pre"]), " + ".join(["resid_pre", *added])
        if model.family.by_layer and "z" in at:
            yield Site(layer, "attn_proj"), _by_head(model, layer, at["z"]), "the sum of what its heads add through the projection"


def _by_head(model: Model, layer: int, z: Tensor) -> Tensor:
    """What each head's part of z adds through the output projection, summed: the projection of the whole where it is a linear map of its input."""
    projection = model.place(Site(layer, "z"))[0]
    width = model.family.head_width(layer) or model.shape.d_head
    z = z.unflatten(-1, (model.shape.n_heads, -1))[..., :width].flatten(-2)
    parts = torch.block_diag(*z.new_ones(model.shape.n_heads, 1, width))
    with torch.inference_mode():
        nothing = projection(torch.zeros_like(z))
        return sum((projection(z * mask) - nothing for mask in parts), nothing)


def _is_causal(model: Model, ids: Tensor, allowed: float) -> None:
    """Raises where what a model says at a position depends on the tokens behind it: every engine counts on it that it does not."""
    other = ids.clone()
    other[-1] = ids[0] if ids[-1] != ids[0] else ids[0] + 1
    said, again = (forward(model, one[None], use_cache=False, logits_to_keep=0).logits[0, :-1].float() for one in (ids, other))
    nats = float(nats_between(said, again).max()) if len(ids) > 1 else 0.0
    if not nats <= allowed:
        raise SelfCheckError(
            f"{model.ref}: another last token changes what it says before it (by {nats:.1e} nats), so its attention is not causal: it is no decoder, "
            "or its config does not say that it is one (is_decoder)."
        )


def _is_alone(model: Model, ids: Tensor, allowed: float) -> None:
    """Raises where what a model says of a text depends on the texts beside it: every engine puts prompts and variants side by side."""
    beside = torch.stack([ids, ids.flip(0), ids.roll(1)])
    said, again = (forward(model, texts, use_cache=False).logits[:1, -1].float() for texts in (ids[None], beside))
    nats = float(nats_between(said, again).max())
    if not nats <= allowed:
        raise SelfCheckError(
            f"{model.ref}: other texts beside one change what it says of it (by {nats:.1e} nats, of which rounding explains {allowed:.1e}): its code "
            "mixes the texts of a batch, so no text has a next-token distribution of its own."
        )


def _misfit(model: Model) -> str:
    if model.family.by_layer:
        return (
            f"The row that was proposed for the architecture {model.config.model_type!r} does not hold: it has the blocks in {model.family.blocks}, "
            f"and in the first {dict(model.family.places(model.config))}. docs/FAMILIES.md says how to write a row by hand."
        )
    return f"The row {model.config.model_type!r} of mechdiff/architectures/families.py does not fit this model."


def _writes_back(model: Model, ids: Tensor, kinds: Sequence[str]) -> None:
    """Raises unless writing back what was read at a site, at all positions, leaves the logits as they were, bit for bit.

    A batch of copies of the prompt, one a block, so that each kind takes one pass. One site a copy: a later site that is written too would
    hide what the first one did.
    """
    states: dict[Site, Tensor] = {}

    def reader(site: Site) -> Edit:
        def read(tensor: Tensor) -> None:
            states[site] = tensor[site.layer].clone()

        return read

    def logits(edits: dict[Site, Edit]) -> Tensor:
        with edited(model, edits):
            return forward(model, ids.expand(model.shape.n_layers, -1), use_cache=False).logits[:, -1]

    sites = {kind: [Site(layer, kind) for layer in range(model.shape.n_layers)] for kind in kinds}
    plain = logits({site: reader(site) for kind in kinds for site in sites[kind]})
    for kind in kinds:
        changed = (logits({site: _row_writer(site.layer, states[site]) for site in sites[kind]}) != plain).any(-1)
        if changed.any() and not torch.equal(logits({}), logits({})):
            raise SelfCheckError(
                f"{model.ref}: two forward passes of the same tokens give different logits. Is the model in training mode?"
            )
        if changed.any():
            site = sites[kind][int(changed.int().argmax())]
            raise SelfCheckError(f"{model.ref}: writing a state that was just read at {site} changes the model's output. {_misfit(model)}")


def _row_writer(row: int, value: Tensor) -> Edit:
    """An edit that writes `value` `[pos, d]` over the last positions of one sequence of the batch."""

    def write(tensor: Tensor) -> None:
        tensor[row, -len(value) :] = value

    return write


@dataclass(frozen=True, kw_only=True)
class _Ways:
    """A way of running variants, held against whole hooked forward passes."""

    model: Model
    engine: Engine
    rounding: float

    def agree(self, cleans: Sequence[Clean], states: dict[Site, Tensor], width: int = 1) -> tuple[float, Site, float]:
        """Largest KL(full || engine) in nats over states of other tokens (`[2, d]`, one site each) written into the first of some prompts
        that run in one pass, its site, and the largest floor of their unedited rows. SelfCheckError where one is more than rounding."""
        orders = ([1, 0, 1][:width], [0, 1, 0][:width])  # the second prompt's states are others, so that a mix-up shows
        written = {site: torch.stack([state[order] for order, _ in zip(orders, cleans, strict=False)]) for site, state in states.items()}
        found = self.engine(self.model, cleans, [{site: Write(value=value)} for site, value in written.items()])
        edits = {site: writer(value[0]) for site, value in written.items()}
        floors = [nats_between(clean.logits, rows[0]) for clean, rows in zip(cleans, found, strict=True)]
        return self._close(_NAMES.get(self.engine, "the engine"), cleans[0].ids, edits, found[0, 1:], floors)

    def steered_agree(self, few: Clean, states: dict[Site, Tensor]) -> tuple[float, Site, float]:
        """The same of a constant that is added at every position, on the second of two prompts that open with the same tokens."""
        other = torch.cat([few.ids[:-1], few.ids[:1]])
        added = {site: (state[1] - state[0]).double() for site, state in states.items()}

        def change(by: Tensor) -> Change:
            return lambda rows: by.to(rows).expand_as(rows)

        def adding(by: Tensor) -> Edit:
            return lambda tensor: apply(tensor, change(by))

        first, second = steered(self.model, [few.ids, other], [{site: change(by)} for site, by in added.items()], whole=False)
        own = forward(self.model, other[None], use_cache=False).logits[0, -1].float()
        floors = [nats_between(few.logits, first[0, -1]), nats_between(own, second[0, -1])]
        return self._close("a steered pass", other, {site: adding(by) for site, by in added.items()}, second[1:, -1], floors)

    def _close(self, way: str, ids: Tensor, edits: dict[Site, Edit], found: Tensor, floors: Sequence[Tensor]) -> tuple[float, Site, float]:
        model, sites = self.model, list(edits)
        with edited(model, {site: _in_row(row, edit) for row, (site, edit) in enumerate(edits.items())}):
            expected = forward(model, ids.expand(len(edits), -1), use_cache=False).logits[:, -1].float()
        apart = nats_between(expected, found)
        for row in apart.argsort(descending=True, stable=True).tolist():
            nats, site = float(apart[row]), sites[row]
            if nats <= allowed_nats(model, self.rounding):
                break
            if not nats <= (allowed := allowed_nats(model, rounding_nats(model, ids, {site: edits[site]}))):
                raise SelfCheckError(
                    f"{model.ref}: {way} and a whole forward pass disagree at {site} by {nats:.1e} nats, of which rounding explains {allowed:.1e}. "
                    'This model keeps state that parallel tokens share; run it with engine="full" (--engine full).'
                )
        floor, worst = float(torch.stack(list(floors)).max()), int(apart.argmax())
        if not floor <= (allowed := allowed_nats(model, self.rounding)):
            raise SelfCheckError(
                f"{model.ref}: where nothing is written, {way} strays by {floor:.1e} nats from the model's own forward pass, of which rounding "
                f'explains {allowed:.1e}. Run it with engine="full" (--engine full), and please report this model.'
            )
        return float(apart[worst]), sites[worst], floor


_NAMES: dict[Engine, str] = {replay: "replay", relay: "relay", full: "the full engine"}


def _in_row(row: int, edit: Edit) -> Edit:
    """The same edit in one sequence of the batch."""
    return lambda tensor: edit(tensor[row : row + 1])
