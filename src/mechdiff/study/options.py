"""What each measure can be told in a study file: one class of options a measure, all with defaults. No torch here.

Lists come back sorted (sites and arms in their own order, numbers ascending): the order in a file changes no result,
so it must not change a study's identity either.
"""

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from mechdiff.engine.sites import KINDS
from mechdiff.errors import StudyError
from mechdiff.spacing import evenly_spaced
from mechdiff.study.document import Count, Section, listed, some_of, whole_numbers, wrong

ARMS = ("identity", "shift", "mean", "resample", "oracle")
"""How a written state can be made: see measures/patching.py."""

MAPS = ("diag_affine", "anchored_ridge", "anchored_procrustes", "rrr", "ridge", "pca", "procrustes", "whitened_procrustes", "logit_subspace",
        "logit_subspace_joint", "per_cluster", "rank_truncated", "rescaled", "norm_matched")  # fmt: skip
"""Maps that are learned: see measures/maps.py. The first four are the default; unanchored ones run by name only."""

DIRECTIONS = ("tuned<-base", "base<-tuned")
"""The first model runs, a state of the second is written into it."""


def _layers(given: object) -> Literal["all"] | tuple[int, ...]:
    if given == "all":
        return "all"
    if not isinstance(given, (list, tuple)) or not given:
        raise wrong(given, "all, or a list of layer numbers such as [0, 12, 24]", ["all"])
    return whole_numbers(given, 0)


def _closer(given: object) -> Literal["hot"] | tuple[int, ...]:
    if given == "hot":
        return "hot"
    if not isinstance(given, (list, tuple)) or not given:
        raise wrong(given, "hot (chosen on the select prompts), or a list of layer numbers such as [12, 24]", ["hot"])
    return whole_numbers(given, 0)


def _directions(given: object) -> tuple[str, ...]:
    if given == "both":
        return DIRECTIONS
    if isinstance(given, str):
        if given not in DIRECTIONS:
            raise wrong(given, f"both, {' or '.join(DIRECTIONS)}", ["both", *DIRECTIONS])
        return (given,)
    return some_of(DIRECTIONS)(given)


def _positions(given: object) -> tuple[str, ...]:
    for item in (items := listed(given)):
        if item not in ("decision", "all") and not (isinstance(item, str) and re.fullmatch(r"last_([2-9]|[1-9][0-9]{1,5})", item)):
            raise wrong(item, "decision, last_2, last_3, ... or all", ["decision", "last_2", "all"])
    if not items:
        raise wrong(given, "at least one of decision, last_2, last_3, ... or all")
    return tuple(sorted(items, key=lambda name: 1 if name == "decision" else float("inf") if name == "all" else int(name[5:])))


Kinds = Annotated[tuple[str, ...], BeforeValidator(some_of(KINDS))]


class Options(Section):
    """What a measure can be told."""

    paths: ClassVar[Mapping[str, str]] = {}
    """Options that name a file -> which files count where a folder is named; empty: it may be none."""

    def files(self) -> dict[str, str]:
        """The files and folders that are named, by option."""
        given = {option: getattr(self, option) for option in self.paths}
        return {option: path for option, path in given.items() if isinstance(path, str) and path}


class DivergenceOptions(Options):
    over_text: bool = True  # beside the decision position: every position of the prompts and of a continuation
    continuation: Annotated[int, Field(ge=0, le=4096)] = 16  # tokens of the tuned model's own greedy answer that both models read
    native: bool = True  # with policy same_text: D once more with each model's own template, and what the template alone does to each


class LayeredOptions(Options):
    layers: Annotated[Literal["all"] | tuple[int, ...], BeforeValidator(_layers)] = "all"
    stride: Count = 1  # with layers: all, every stride-th layer from 0

    @model_validator(mode="after")
    def _one_choice(self) -> "LayeredOptions":
        if self.layers != "all" and self.stride != 1:
            raise wrong(self.stride, "stride only with layers: all")
        return self

    def layer_numbers(self, n_layers: int) -> tuple[int, ...]:
        """The layers meant, in a model that has `n_layers`."""
        if self.layers == "all":
            return tuple(range(0, n_layers, self.stride))
        if missing := [layer for layer in self.layers if layer >= n_layers]:
            raise StudyError(f"layers {missing} are asked for; the model has {n_layers}, numbered 0 to {n_layers - 1}.")
        return self.layers


class SimilarityOptions(LayeredOptions):
    sites: Kinds = ("attn_out", "mlp_out", "resid_post")
    permutations: Annotated[int, Field(ge=0, le=1_000_000)] = 500  # null draws a site; 0: none
    words: bool | None = None  # also states averaged over each prompt's words; none: where the two models cut the prompts differently


class PatchingOptions(LayeredOptions):
    sites: Kinds = ("attn_out", "resid_mid", "mlp_out", "resid_post")  # resid_pre is the resid_post of the block before
    arms: Annotated[tuple[str, ...], BeforeValidator(some_of(ARMS))] = ("identity", "shift", "mean", "resample")
    directions: Annotated[tuple[str, ...], BeforeValidator(_directions)] = DIRECTIONS
    positions: Annotated[tuple[str, ...], BeforeValidator(_positions)] = ("decision",)
    windows: Annotated[tuple[int, ...], BeforeValidator(lambda given: whole_numbers(given, 2))] = ()  # widths, in layers


class WeightsOptions(Options):
    heads: bool = True  # each head's OV and QK products
    exact_up_to: Count = 1024  # matrices with both sides above this get the top of their spectrum, with its error
    input_prompts: Annotated[int, Field(ge=0, le=4096)] = 16  # report prompts whose states weigh each change; 0: none


class GraftingOptions(Options):
    curves: bool = True  # each changed unit alone, and both cumulative curves
    points: Count | None = None  # of each cumulative curve: so many units, evenly spaced; none: every changed one
    report_prompts: Count | None = None  # report prompts on which weights are grafted; none: all
    greedy: bool = True  # nested sets, chosen on the select split
    candidates: Count = 12  # units that the greedy search tries, and that are cut to a rank: the best alone
    picks: Count = 8  # units that the greedy search picks
    select_prompts: Count = 8  # prompts that it looks at
    truncate: bool = True  # the change cut to a rank


class FactorialOptions(LayeredOptions):
    gone: ClassVar[Mapping[str, str]] = {
        "swaps": "this option is gone, the p of a factorial draws no label swaps any more (docs/STATISTICS.md); leave it out."
    }

    positions: Annotated[tuple[Literal["decision", "all"], ...], BeforeValidator(_positions)] = ("decision", "all")
    all_positions_layers: Count = 6  # at all positions: so many splits, evenly spaced (their states are kept on disk)

    def layers_at(self, position: str, n_layers: int) -> tuple[int, ...]:
        """The split points meant: all at the decision position, few where whole sequences are crossed."""
        layers = self.layer_numbers(n_layers)
        return layers if position == "decision" else evenly_spaced(self.all_positions_layers, layers)


class CloserOptions(LayeredOptions):
    closer: Annotated[Literal["hot"] | tuple[int, ...], BeforeValidator(_closer)] = "hot"  # layers looked at more closely


def _strengths(given: object) -> tuple[float, ...]:
    for item in (items := listed(given)):
        if isinstance(item, bool) or not isinstance(item, (int, float)) or not 0 <= item <= 100:
            raise wrong(item, "numbers from 0 to 100, such as [0, 0.25, 0.5, 0.75, 1.5]")
    return tuple(sorted({float(item) for item in items} - {1.0}))


def _from_nothing(given: object) -> tuple[float, ...]:
    """With 0 where there are any: a curve of strengths shows what writing nothing does."""
    return tuple(sorted({0.0, *found})) if (found := _strengths(given)) else ()


class TransportOptions(CloserOptions):
    sites: Kinds = ("attn_out", "mlp_out", "resid_post")
    maps: Annotated[tuple[str, ...], BeforeValidator(some_of(MAPS))] = MAPS[:4]  # beside identity, shift, mean and resample
    strengths: Annotated[tuple[float, ...], BeforeValidator(_from_nothing)] = (
        0.0,
        0.25,
        0.5,
        0.75,
        1.5,
    )  # at the closer layers, beside 0 and 1
    rows_per_prompt: Count = 1  # aligned positions of each fit prompt that maps are fitted on; the decision position is one
    permutations: Annotated[int, Field(ge=0, le=100_000)] = 200  # refits on permuted pairs; a tenth for Procrustes
    dimensions: Count = 64  # of pca and the logit subspaces
    clusters: Count = 4  # of per_cluster


def _blend(given: object) -> tuple[float, ...]:
    return tuple(sorted({*_strengths(given), *({1.0} if 1 in listed(given) else ())}))


class RankOptions(CloserOptions):
    sites: Kinds = ("attn_out", "mlp_out", "resid_post")
    strengths: Annotated[tuple[float, ...], BeforeValidator(_strengths)] = (0.5, 1.5)  # beside 1, at each rank
    fisher_samples: Annotated[int, Field(ge=0, le=1024)] = 4  # gradients a fit prompt for the Fisher-weighted variant; 0: none
    draws: Annotated[int, Field(ge=0, le=1000)] = 3  # random subspaces at each rank


class SteeringOptions(CloserOptions):
    paths: ClassVar[Mapping[str, str]] = {"neutral": ""}

    sites: Kinds = ("resid_post",)
    strengths: Annotated[tuple[float, ...], BeforeValidator(_strengths)] = (0.5, 1.5, 2.0)  # of add and amplify, beside 1
    windows: Annotated[tuple[int, ...], BeforeValidator(lambda given: whole_numbers(given, 2))] = ()  # widths, in layers
    draws: Annotated[int, Field(ge=0, le=1000)] = 5  # random vectors and subspaces, and label swaps
    contrast: bool = False  # take off the mean difference on neutral prompts
    neutral: str | None = None  # prompts whose side effects are measured, as a file; none: those that come with mechdiff
    all_positions_layers: Count = 1  # of the closer layers: so many are steered at every position, where the mean difference is largest
    side_prompts: Annotated[int, Field(ge=0, le=100_000)] = 32  # how many of them, from the top; 0: no side effects
    texts: Annotated[int, Field(ge=0, le=64)] = 3  # report prompts that the steered base answers
    continuation: Count = 24  # tokens of each answer
    test_draws: Annotated[int, Field(ge=0, le=10_000)] = 39  # random directions that the largest harmless dose is held against; 0: no test
    max_side_kl_nats: Annotated[float, Field(ge=0)] = 0.05  # the most that a direction of use may move neutral prompts
    max_perplexity_ratio: Annotated[float, Field(ge=1)] = 1.05  # and worsen their perplexity


class HeadsOptions(CloserOptions):
    hot: Count = 2  # closer layers that the select prompts choose: where all heads together do most
    select_prompts: Count = 16  # on which closer layers, orders of heads and top heads are chosen
    draws: Annotated[int, Field(ge=0, le=10_000)] = 200  # random sets of each size at a closer layer (all, where there are fewer)
    permutations: Annotated[int, Field(ge=2, multiple_of=2)] = 64  # sampled for Shapley values where there are more heads than exact_up_to
    exact_up_to: Annotated[int, Field(ge=1, le=16)] = 12  # heads of a block up to which every set of them is run
    picks: Count = 8  # heads that the greedy search picks
    top: Annotated[int, Field(ge=2, le=64)] = 6  # heads whose pairs are run, and whose attention is looked at
    null_edits: Annotated[int, Field(ge=0, le=1000)] = 10  # random edits that the effective number of heads is held against
    network_draws: Annotated[int, Field(ge=0, le=10_000)] = 20  # random sets of each size across the network
    z_swap: Annotated[tuple[float, ...], BeforeValidator(_blend)] = ()  # strengths at which z alone is swapped, as others do it
    attention_prompts: Annotated[int, Field(ge=0, le=100_000)] = 8  # report prompts on which attention is looked at; 0: none


class AttributionOptions(LayeredOptions):
    metric: Literal["law", "divergent", "label"] = "law"  # what is attributed, linear in the logits: see measures/attribution.py
    sites: Kinds = ("attn_out", "mlp_out", "resid_post")  # whole sites beside heads and MLPs
    steps: Count = 3  # midpoints of the path of integrated gradients
    validated: Annotated[int, Field(ge=2, le=1000)] = 20  # top heads, and as many random ones, whose effect is measured by true patches
    threshold: Annotated[float | None, Field(gt=0)] = None  # attribution (in logits) from which a head counts in the churn; none: |z| >= 2
    select_prompts: Count = 16  # on which heads are ranked


def _probes(given: object) -> object:
    if not isinstance(given, (bool, str)) or given == "":
        raise wrong(given, "true (those that come with mechdiff), false (none), or a file of prompts", ["true", "false"])
    return given


def _ends(given: object) -> tuple[str, ...]:
    for item in (items := listed(given)):
        if not isinstance(item, str) or not item:
            raise wrong(item, "texts that end an answer, such as ['\\n\\nQuestion:']")
    return tuple(items)


class BehaviourOptions(CloserOptions):
    paths: ClassVar[Mapping[str, str]] = {"probes": "", "patterns": "*.yaml"}

    n_probes: Count | None = None  # of the probes: so many, of every kind; none: all
    probes: Annotated[bool | str, BeforeValidator(_probes)] = True  # beside the report prompts: those that come with mechdiff, or a file
    patterns: str | None = None  # lists of refusals and styles beside those that come with mechdiff: LANGUAGE.yaml, or a folder of some
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 48  # of an answer
    stop: Annotated[tuple[str, ...], BeforeValidator(_ends)] = ()  # texts that end an answer, beside the models' own end tokens
    samples: Annotated[int, Field(ge=0, le=1000)] = 0  # drawn answers to each prompt beside the greedy one
    temperature: Annotated[float, Field(gt=0, le=100)] = 0.7  # of drawn answers
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    openings: Count = 3  # refusals, and as many neutral openings, whose probability is the soft refusal
    exact_match: Literal["auto"] | bool = (
        "auto"  # labels of prompts without options are final answers; auto: those that are numbers or formulas
    )
    masked: Literal["auto"] | bool = "auto"  # also laws cut to the tokens that both models have; auto: where these are not all
    sites: Kinds = ("resid_post",)  # where states are written while texts are scored and answers given
    maps: Annotated[tuple[str, ...], BeforeValidator(some_of(MAPS))] = ("anchored_ridge",)  # of those that transport fits
    scored_layers: Count = 10  # of the layers: so many, evenly spaced, beside the closer ones
    scored_prompts: Annotated[int, Field(ge=0, le=100_000)] = 16  # on which texts are scored under edits: report prompts and probes
    spoken_prompts: Annotated[int, Field(ge=0, le=100_000)] = 6  # of these: so many are answered under edits at the closer layers

    def scored(self, n_layers: int) -> tuple[int, ...]:
        """The evenly spaced layers."""
        return evenly_spaced(self.scored_layers, self.layer_numbers(n_layers))
