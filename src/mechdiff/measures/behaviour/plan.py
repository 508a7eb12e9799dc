"""A study file may set these options of behaviour; its cells are planned from them."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from mechdiff import labels
from mechdiff.measures.behaviour.phrases import read_phrases
from mechdiff.measures.patching.selection import N_CLOSER, choice
from mechdiff.measures.steering.plan import SteeringOptions
from mechdiff.measures.transport.plan import TransportOptions
from mechdiff.spacing import evenly_spaced
from mechdiff.study.cells import Cell, Item
from mechdiff.study.document import Count, listed, some_of, wrong
from mechdiff.study.experiment import Needs, PromptSet
from mechdiff.study.options import CloserOptions, Kinds
from mechdiff.study.planner import Planner, possible, prompt_hashes

SPLITS = "report", "probes"

AT_A_TIME = 64
"""Prompts that are answered side by side."""

AROUND = 6
"""Edits that are open around whole runs, as far as the plan can know."""

DIRECTIONS = "base<-tuned", "tuned<-base", "base<-base", "tuned<-tuned"


PROBES = Path(__file__).parents[2] / "data" / "behaviour" / "probes.jsonl"
"""Requests, questions and sums on which behaviour is looked at beside the study's own prompts."""


def behaviour_cells(planner: Planner) -> Iterator[Cell]:
    """Clean answers of both models, then the edits of each direction."""
    options = planner.study.asked(BehaviourOptions)
    if not options:
        return
    if not any(planner.splits.get(split) for split in SPLITS):
        planner.skip("behaviour", "the study has neither test prompts nor probes")
        return
    on = _settings(planner, options)
    for side in ("base", "tuned"):
        for split in SPLITS:
            items = _by_length(planner, split)
            n_cells = -(-len(items) // AT_A_TIME)
            for number in range(n_cells):
                shard = items[number * len(items) // n_cells : (number + 1) * len(items) // n_cells]
                yield _clean(planner, shard, {"side": side, "split": split, "shard": number, **on}, options)
    yield from _edited(planner, options, on)


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
    presets: ClassVar = {
        "quick": {"probes": False, "max_tokens": 24, "openings": 1, "scored_prompts": 0},
        "standard": {"n_probes": 4, "max_tokens": 40, "openings": 1, "scored_prompts": 0},
        "paper": {},
        "audit": {"scored_prompts": 0},
    }

    n_probes: Count | None = None  # of the probes: so many, of every kind; none: all
    probes: Annotated[bool | str, BeforeValidator(_probes)] = True  # beside the test prompts: those that come with mechdiff, or a file
    patterns: str | None = None  # lists of refusals and styles beside those that come with mechdiff: LANGUAGE.yaml, or a folder of some
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 48  # of an answer
    edited_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None  # of an answer under an edit; none: as many
    stop: Annotated[tuple[str, ...], BeforeValidator(_ends)] = ()  # texts that end an answer, beside the models' own end tokens
    samples: Annotated[int, Field(ge=0, le=1000)] = 0  # drawn answers to each prompt beside the greedy one
    temperature: Annotated[float, Field(gt=0, le=100)] = 0.7  # of drawn answers
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95  # of these draws: the likeliest tokens that have so much probability
    openings: Count = 3  # refusals, and as many neutral openings, whose log-probability margin is the refusal score
    exact_match: Literal["auto"] | bool = (
        "auto"  # labels of prompts without options are final answers; auto: those that are numbers or formulas
    )
    masked: Literal["auto"] | bool = "auto"  # also distributions cut to the tokens that both models have; auto: where these are not all
    sites: Kinds = ("resid_post",)  # where states are written while texts are scored and answers given
    maps: Annotated[tuple[str, ...], BeforeValidator(some_of(labels.MAPS))] = ("anchored_ridge",)  # of those that transport fits
    scored_layers: Count = 10  # of the layers: so many, evenly spaced, beside the closer ones
    scored_prompts: Annotated[int, Field(ge=0, le=100_000)] = 16  # on which texts are scored under edits: test prompts and probes
    spoken_prompts: Annotated[int, Field(ge=0, le=100_000)] = 6  # of these: so many are answered under edits at the selected layers

    def scored(self, n_layers: int) -> tuple[int, ...]:
        """The evenly spaced layers."""
        return evenly_spaced(self.scored_layers, self.layer_numbers(n_layers))


def prompts(options: BehaviourOptions) -> tuple[PromptSet, ...]:
    """Probes, of every kind: kinds stand together in a file."""
    if not options.probes:
        return ()
    shipped = options.probes is True
    file = options.probes if isinstance(options.probes, str) else PROBES
    return (PromptSet(split="probes", file=file, n=options.n_probes, spread=True, any_length=shipped),)


def needs(planner: Planner, options: BehaviourOptions) -> Needs:
    return Needs(sites=options.sites)


def _settings(planner: Planner, options: BehaviourOptions) -> dict[str, Any]:
    """What decides the numbers beside models and prompts."""
    lists = {
        name: [
            [one.pattern for one in lists.refusal], lists.refusal_openings, lists.neutral_openings,
            {style: [one.pattern for one in patterns] for style, patterns in lists.style.items()},
        ]
        for name, lists in read_phrases(options.patterns).items()
    }  # fmt: skip
    asked = options.model_dump(include={"max_tokens", "samples", "temperature", "top_p", "openings", "masked", "exact_match", "stop"})
    return {"settings": asked, "phrases": lists, "seed": planner.study.seed}


def _by_length(planner: Planner, split: str) -> tuple[Item, ...]:
    return tuple(sorted((item for item in planner.splits.get(split, ()) if item.room), key=lambda item: (item.tokens, item.id)))


def _clean(planner: Planner, items: Sequence[Item], what: dict[str, Any], options: BehaviourOptions) -> Cell:
    key = planner.key(items, stage="behaviour", told=[item.told for item in items], **what)
    said = len(items) * options.max_tokens * (1 + options.samples)
    scored = sum(_texts(item, options, what["split"]) * item.text_tokens for item in items)
    tokens = sum(item.tokens for item in items) * (2 + options.samples)
    flops = planner.flops(tokens + said + scored, said + scored)
    steps = options.max_tokens * (1 + options.samples)
    return Cell(stage="behaviour", key=key, items=tuple(items), side=what["side"], flops=flops, steps=steps)


def _texts(item: Item, options: BehaviourOptions, split: str) -> int:
    """Texts that are scored behind a prompt."""
    return item.options + (2 * options.openings if asks_openings(split, item.options > 0, item.label) else 0)


def asks_openings(split: str, has_options: bool, has_label: bool) -> bool:
    """Whether a prompt is one where a soft refusal says something: not a probe that has a right answer."""
    return split == "report" or not (has_options or has_label)


# ---- under edits -------------------------------------------------------------------------------------------------------------------


def _edited(planner: Planner, options: BehaviourOptions, on: dict[str, Any]) -> Iterator[Cell]:
    """The chosen probes' states in both models, then a cell for each direction and split."""
    what = "behaviour under edits"
    if not options.scored_prompts or not possible(planner, what, options, splits=()):
        return
    kinds = [kind for kind in options.sites if kind in planner.wanted]
    chosen = chosen_prompts(planner, options)
    probes, every = chosen["probes"][0], tuple(range(planner.shape.n_layers))
    for side in ("base", "tuned") if probes else ():
        key = planner.key(probes, stage="capture", side=side, split="probes", position="decision", kinds=kinds, layers=every)
        yield Cell(stage="capture", key=key, items=probes, side=side, flops=planner.flops(sum(item.tokens for item in probes), len(probes)))
    if options.edited_tokens is not None:
        on = {**on, "settings": {**on["settings"], "max_tokens": options.edited_tokens}}
    on = {**on, "kinds": kinds, "layers": options.scored(planner.shape.n_layers), **choice(planner, options), **_made_of(planner, options)}
    for direction in _directions(planner, options):
        for split in SPLITS:
            scored, spoken = chosen[split]
            if scored:
                yield _cell(planner, scored, spoken, {"direction": direction, "split": split, **on}, options)


def chosen_prompts(planner: Planner, options: BehaviourOptions) -> dict[str, tuple[tuple[Item, ...], tuple[Item, ...]]]:
    """Split -> (prompts that are scored under edits, those among them that are answered): half of them report prompts, half probes."""
    report, probes = (_by_length(planner, split) for split in SPLITS)
    n_probes = min(len(probes), max(options.scored_prompts // 2, options.scored_prompts - len(report)))
    n_answered = min(n_probes, max(options.spoken_prompts // 2, options.spoken_prompts - len(report)))
    taken = _of_every_kind(probes, n_probes)
    asked = sorted(taken, key=lambda item: not asks_openings("probes", item.options > 0, item.label))  # those with right answers last
    scored = evenly_spaced(options.scored_prompts - n_probes, report)
    return {
        "report": (scored, evenly_spaced(options.spoken_prompts - n_answered, scored)),
        "probes": (tuple(taken), tuple(asked[:n_answered])),
    }


def _of_every_kind(probes: Sequence[Item], n: int) -> list[Item]:
    """So many probes, the kinds in turn, two at a time where there is something to choose; sums alone only where nothing else is left."""
    hands: dict[tuple[bool, str, int], list[Item]] = {}
    for number, item in enumerate(sorted(probes, key=lambda item: item.id)):
        hands.setdefault((item.label and not item.options, str(item.kind), number % 2 if item.options else 0), []).append(item)
    found = []
    for late in (False, True):
        rounds = zip_longest(*(_shuffled(hand) for key, hand in sorted(hands.items()) if key[0] == late))
        found += [item for item in chain.from_iterable(rounds) if item]
    return found[:n]


def _shuffled(items: Sequence[Item]) -> list[Item]:
    """From both ends and the middle at once, so that the first few are of all languages, which stand one after the other."""
    thirds = [items[i * len(items) // 3 : (i + 1) * len(items) // 3] for i in range(3)]
    return [item for item in chain.from_iterable(zip_longest(*thirds)) if item]


def _directions(planner: Planner, options: BehaviourOptions) -> list[str]:
    """Those in which something is written: a model's own states only mapped or moved."""
    maps = bool(_mapped(planner, options))
    steered = planner.study.asked(SteeringOptions)
    steering = steered is not None and possible(planner, "steering", steered)
    own = {"base<-base": maps or steering, "tuned<-tuned": maps or steering}
    return [direction for direction in DIRECTIONS if own.get(direction, True)]


def _mapped(planner: Planner, options: BehaviourOptions) -> tuple[str, ...]:
    transport = planner.study.asked(TransportOptions)
    if not transport or "fit" not in planner.splits or "report" not in planner.splits:
        return ()
    if not set(transport.sites) & set(options.sites):
        planner.skip(
            "mapped patches while texts are scored", f"transport fits no maps at the sites of behaviour ({', '.join(options.sites)})"
        )
        return ()
    return tuple(arm for arm in options.maps if arm in transport.maps)


def _made_of(planner: Planner, options: BehaviourOptions) -> dict[str, Any]:
    """What maps and steering vectors are made of."""
    transport, steering = planner.study.asked(TransportOptions), planner.study.asked(SteeringOptions)
    fits = planner.shapes["base"] == planner.shapes["tuned"] and planner.one_vocabulary
    why = planner.ungraftable if fits else "the two models' tensors or tokens differ: weights of one do not fit into the other"
    if why:
        planner.skip("grafts while texts are scored", why)
    return {
        "maps": _mapped(planner, options),
        "transport": transport and transport.model_dump(),
        "steering": steering and steering.model_dump(),
        "fitted_on": prompt_hashes(planner, "fit"),
        "chosen_on": prompt_hashes(planner, "select"),
        "neutral": [item.sha256 for item in planner.splits.get("neutral", ())],
        "grafts": not why,
    }


def _cell(planner: Planner, scored: Sequence[Item], spoken: Sequence[Item], what: dict[str, Any], options: BehaviourOptions) -> Cell:
    own = what["direction"] in labels.WITHIN
    layers = [planner.shape.n_layers // 2] * N_CLOSER * len(what["maps"]) if own else [*what["layers"]] + [planner.shape.n_layers // 2] * 2
    n_closer = N_CLOSER * len(what["kinds"])
    tokens = sum(_texts(item, options, what["split"]) * item.text_tokens for item in scored)
    rows = 1 + sum(planner.shape.n_layers - layer for layer in layers) / planner.shape.n_layers * len(what["kinds"])
    around = (AROUND - 2) if what["direction"] == labels.TUNED_INTO_BASE and what["grafts"] else own * 1
    read = sum(item.tokens for item in scored) + tokens
    said = len(spoken) * what["settings"]["max_tokens"] * (1 + n_closer + around)
    runs = len(layers) * len(what["kinds"])
    key = planner.key(scored, stage="behaviour_edits", told=[item.told for item in scored], spoken=[item.id for item in spoken], **what)
    return Cell(
        stage="behaviour_edits",
        key={**key, "position": "decision", "n_variants": runs},
        items=tuple(scored),
        side=labels.runner(what["direction"]),
        flops=planner.flops(tokens * rows + read * (1 + around) + said, tokens * (1 + runs + around) + said),
        steps=what["settings"]["max_tokens"] * (1 + around) * bool(spoken),
    )
