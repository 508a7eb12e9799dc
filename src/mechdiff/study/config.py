"""What a study asks (`StudyConfig`) is hashed into the result's identity; how it is run (`RunOptions`) never is.

A study file is YAML: a pair, prompts, a seed, a dtype and a list of measures, each with a few options that all have
defaults. It is checked once, here, at the boundary: inside mechdiff a `StudyConfig` is known to be right. Which measures
there are is handed in, as their names and what each can be told (`MeasureOptions`). No torch here.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_serializer,
    model_validator,
)

from mechdiff.errors import StudyError
from mechdiff.prompts.templates import of_a_model
from mechdiff.store.disk import canonical, sha256
from mechdiff.study.document import Count, Known, Section, Text, explained, listed, nearest, read_yaml, short, wrong
from mechdiff.study.options import Options
from mechdiff.study.presets import PRESETS, filled

Split = Literal["fit", "select", "report"]
MeasureOptions = Mapping[str, type[Options]]
"""Every measure that a study may ask for, by name, in the order in which they run: the class of its options."""

Asked = TypeVar("Asked", bound=Options)


def _of_each(given: object) -> object:
    return given if isinstance(given, Mapping) else dict.fromkeys(("fit", "select", "report"), given)


Names = Annotated[tuple[str, ...], BeforeValidator(lambda given: tuple(listed(given)))]


def _known(preset: str | None) -> str | None:
    if preset is not None and preset not in PRESETS:
        raise wrong(preset, f"one of {', '.join(PRESETS)}", PRESETS)
    return preset


class Shape(Section):
    """What `plan` uses when the model is not on this machine; it decides no result and is not hashed."""

    n_layers: Count  # blocks
    d_model: Count  # width of the residual stream
    n_heads: Count  # attention heads of a block
    n_kv_heads: Count  # key-value heads of a block
    d_mlp: Count  # of one expert, where there are several
    vocab: Count  # tokens
    vocab_tuned: Count | None = None  # where the tuned model's vocabulary is larger or smaller
    experts: Count = 1  # in each block
    experts_used: Count = 1  # by one token


def _one(given: object) -> object:
    """A list of adapters is refused in words: peft has several ways to combine them, and each is another model."""
    if isinstance(given, (list, tuple)):
        raise wrong(
            given,
            "one model or adapter. Several adapters are combined into one before: with peft's add_weighted_adapter (combination_type cat is their "
            "sum), or, where one was trained on top of another, that one merged into the base (merge_and_unload) and given as base",
        )
    return given


class Pair(Section):
    """The two models: each a Hub id, a local folder or a GGUF file; tuned may be a PEFT adapter on base."""

    base: Text = Field(description="a Hub id, a model folder or a GGUF file")
    tuned: Annotated[Text, BeforeValidator(_one)] = Field(description="a Hub id, a model folder, a GGUF file or an adapter")
    same_rows: bool = False  # a token that has another name in the tuned model's tokenizer, at the same row, is one token
    alternatives: Names = ()  # other models that may be nearer to tuned than base is: lineage is compared with them too
    shape: Shape | None = None  # of a model that is not on this machine, for `plan` alone


class Prompts(Section):
    """Where the prompts are (one file, split by the seed, or a file a split) and how both models see them."""

    file: Text | None = None  # one file, split by the seed
    fit: Text | None = None  # training prompts
    select: Text | None = None  # validation prompts
    report: Text | None = None  # test prompts
    at_most: Annotated[dict[Split, Count], BeforeValidator(_of_each)] | None = (
        None  # prompts of each split, from the top; one number is for all
    )
    policy: Literal["auto", "same_text", "native", "raw"] = "auto"  # auto: same_text where a model has a chat template, else raw
    template: Text = "tuned"  # "tuned", "base", "tuned:NAME" (one of several), or a jinja file
    position: Literal["decision", "last_user"] = "decision"  # the last prompt token, or the last one of the user's own text
    system: str | None = None  # a system message; none: what the template prints by itself
    date: Text | None = None  # the day that a template prints; none: a fixed one where it would look at the clock
    answer: Text | None = None  # what the answer is made to begin with

    @model_validator(mode="after")
    def _fits_together(self) -> "Prompts":
        if self.file and (self.fit or self.select or self.report):
            raise wrong(sorted(self.sources()), "either file (split by the seed) or fit, select and report, not both")
        if not self.sources():
            raise wrong("no prompts", "file: prompts.jsonl, or any of fit, select and report")
        if self.policy in ("native", "raw") and self.template != "tuned":
            raise wrong(self.template, f"no template: policy {self.policy} renders with none of its own choice; only same_text has one")
        if self.policy == "raw" and (self.system is not None or self.date is not None):
            raise wrong(self.system or self.date, "no system and no date: policy raw renders no template that could print them")
        if self.answer is not None and self.position == "last_user":
            raise wrong(self.answer, "no answer: position last_user cuts each prompt where the user's own text ends, before it")
        return self

    def sources(self) -> dict[str, str]:
        """The prompt files that are given, by name: {"file": path}, or some of fit, select and report."""
        given = {"file": self.file, "fit": self.fit, "select": self.select, "report": self.report}
        return {name: path for name, path in given.items() if path}


class Answers(Section):
    """Whole answers are looked at too, beside the last prompt token: what one model says after some test prompts, read by both."""

    tokens: Annotated[int, Field(ge=0, le=512)] = 16  # of each answer; 0: no answers
    prompts: Count = 8  # test prompts
    of: Literal["tuned", "base", "both"] = "tuned"  # the model that says it; both: each, and effects over either's answers


def _by_name(given: object, info: ValidationInfo) -> dict[str, tuple[type[Options], object]]:
    """A file's list (names, or one-key mappings from a name to its options), in the order of the measures: name -> class, what it is told."""
    assert info.context is not None, "a study is made by make_study, which says what measures there are"
    known: MeasureOptions = info.context
    if not isinstance(given, (list, tuple)) or not given:
        raise wrong(given, f"a list of some of {', '.join(known)}, each a name or `name: {{option: value}}`")
    asked: dict[str, object] = {}
    for item in given:
        entry = {item: None} if isinstance(item, str) else item
        if not isinstance(entry, dict) or len(entry) != 1:
            raise wrong(item, "a measure's name, or one `name: {option: value}` an item")
        ((name, options),) = entry.items()
        if name not in known:
            raise wrong(name, f"some of {', '.join(known)}", known)
        if name in asked:
            raise wrong(name, "each measure once")
        asked[name] = {} if options is None else options
    return {name: (kind, asked[name]) for name, kind in known.items() if name in asked}


def _told(given: tuple[type[Options], object]) -> Options:
    kind, options = given
    return kind.model_validate(options)


class StudyConfig(Section):
    """A study: everything that decides its numbers, and nothing else. It is made by `make_study`."""

    pair: Pair = Field(description="{base: ..., tuned: ...}")
    prompts: Prompts = Field(description="{file: prompts.jsonl}, or {fit: ..., select: ..., report: ...}")
    preset: Annotated[str | None, AfterValidator(_known)] = None  # what is not given is as this preset has it
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0  # of splits, permutations and draws
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8", "nf4"] = (
        "float32"  # in which both networks run; auto: float32 on a CPU, as the models are stored on a GPU
    )
    answers: Answers = Answers()  # what is looked at of whole answers
    measures: Annotated[dict[str, Annotated[SerializeAsAny[Options], BeforeValidator(_told)]], BeforeValidator(_by_name)]
    """Names of measures, each alone or with its options (`name: {option: value}`); left out: all."""

    def asked(self, kind: type[Asked]) -> Asked | None:
        """The options of the measure whose options are of this class; None where the study does not ask for it."""
        return next((options for options in self.measures.values() if isinstance(options, kind)), None)

    @field_serializer("measures", mode="wrap")
    def _as_in_a_file(self, measures: dict[str, Options], dump: SerializerFunctionWrapHandler) -> list[dict[str, Any]]:
        return [{name: options} for name, options in dump(measures).items()]


# --- from a file -------------------------------------------------------------------------------------------------------


def load_study(path: str | Path, options: MeasureOptions) -> tuple[StudyConfig, str]:
    """The study in the file `path`, and the file's text. Paths in it count from its folder; `~` is the home folder."""
    path = Path(path)
    data, text = read_yaml(path)
    return make_study(data, options, name=str(path), folder=path.parent), text


def make_study(data: object, options: MeasureOptions, *, name: str = "study", folder: Path | None = None) -> StudyConfig:
    """The study that `data` describes (a mapping as in a file); paths count from `folder`. `name` opens error messages.

    Where `data` names no measures, the study asks for those of its preset, or without one for all.
    """
    if data is None or data == {}:
        raise StudyError(f"{name}: empty. A study needs at least pair: {{base: ..., tuned: ...}} and prompts: {{file: ...}}.")
    if not isinstance(data, dict):
        raise StudyError(f"{name}: given {short(data)}, expected a mapping with pair and prompts.")
    try:
        study = StudyConfig.model_validate({"measures": list(options), **filled(data, options)}, context=options)
    except ValidationError as error:
        known: Known = {("measures", measure): kind for measure, kind in options.items()}
        said = [explained(detail, StudyConfig, known) for detail in error.errors(include_url=False)]
        raise StudyError(f"{name}: {said[0]}" if len(said) == 1 else "\n  ".join([f"{name}: {len(said)} faults", *said])) from error
    return _located(study, Path() if folder is None else folder)


def _located(study: StudyConfig, folder: Path) -> StudyConfig:
    """The study with absolute paths; a model that is no path and no folder beside the study stays a Hub id."""

    def place(path: str) -> str:
        return os.path.abspath(folder / os.path.expanduser(path))

    def model(reference: str) -> str:
        return place(reference) if reference.startswith(("~", "/", "./", "../")) or os.path.exists(place(reference)) else reference

    pair, prompts = study.pair, study.prompts
    files = {name: place(path) for name, path in prompts.sources().items()}
    template = prompts.template if of_a_model(prompts.template) else place(prompts.template)
    models = {"base": model(pair.base), "tuned": model(pair.tuned), "alternatives": tuple(map(model, pair.alternatives))}
    located = {
        "pair": pair.model_copy(update=models),
        "prompts": prompts.model_copy(update={**files, "template": template}),
        "measures": {
            name: options.model_copy(update={option: place(path) for option, path in options.files().items()})
            for name, options in study.measures.items()
        },
    }
    return study.model_copy(update=located)


def of_this_version(config: dict[str, Any], options: MeasureOptions) -> dict[str, Any]:
    """The study that a run of an earlier version recorded, without the options that are gone."""
    if not isinstance(config.get("measures"), list):
        return config
    gone = {name: kind.gone for name, kind in options.items()}
    measures = [
        {name: {key: value for key, value in told.items() if key not in gone.get(name, ())} if isinstance(told, dict) else told
         for name, told in one.items()} if isinstance(one, dict) else one
        for one in config["measures"]
    ]  # fmt: skip
    return config | {"measures": measures}


# --- identity ----------------------------------------------------------------------------------------------------------


def content_hashes(study: StudyConfig) -> dict[str, str]:
    """SHA-256 of every prompt, template and pattern file that the study names, by path."""
    named = {f"prompts.{name}": (path, "") for name, path in study.prompts.sources().items()}
    if not of_a_model(study.prompts.template):
        named["prompts.template"] = (study.prompts.template, "")
    for measure, options in study.measures.items():
        named |= {f"measures.{measure}.{option}": (path, options.paths[option]) for option, path in options.files().items()}
    found = {}
    for where, (path, inside) in named.items():
        try:
            files = sorted(Path(path).glob(inside)) if inside and Path(path).is_dir() else [Path(path)]
            found[path] = sha256(b"".join(one.read_bytes() for one in files))
        except (OSError, ValueError) as error:
            hint = nearest(Path(path).name, ("tuned", "base")) if where.endswith("template") else ""
            raise StudyError(f"{where}: given {path!r}, expected a file that can be read ({error}).{hint}") from error
    return found


def config_hash(study: StudyConfig, contents: Mapping[str, str]) -> str:
    """The study's identity: SHA-256 of what it asks, in which each path (or model) named in `contents` counts as its content.

    `contents` is `content_hashes(study)`, to which a caller who has hashed a model's files may add that model. So a study
    keeps its identity when its files move, and loses it when they change. `pair.shape` is no part of it, nor is a preset's name: what it fills in is.
    """
    what = study.model_dump(mode="json", exclude={"pair": {"shape"}, "preset": True})
    for section, names in (("pair", ("base", "tuned")), ("prompts", ("file", "fit", "select", "report", "template"))):
        for name in names:
            if (given := what[section][name]) in contents:
                what[section][name] = f"sha256:{contents[given]}"
    for (measure, options), asked in zip(study.measures.items(), what["measures"], strict=True):
        for option, path in options.files().items():
            if path in contents:
                asked[measure][option] = f"sha256:{contents[path]}"
    return sha256(canonical(what).encode())


def refuse_beside(study: object, told: Mapping[str, object]) -> None:
    """Raises StudyError where, beside a whole study, something is given (name -> what is true) that a study says itself."""
    if also := [name for name, given in told.items() if given]:
        raise StudyError(f"given the study {study} and also {', '.join(also)}. A study says all of that: change it there, or give none.")


def study_yaml(study: StudyConfig) -> str:
    """The study as the text of a study file, with every default written out."""
    return yaml.safe_dump(study.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)


# --- how ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a study is run. Nothing here changes what its numbers mean, so nothing here is hashed."""

    out: Path | None = None  # the run's folder; None: chosen from the study's name
    device: str = "auto"
    memory: Literal["auto", "both", "one"] = "auto"  # models in memory at a time
    max_rows: int | None = None  # rows a replayed pass; part of packing, so it is written into the record
    threads: int | None = None
    engine: Literal["auto", "full"] = "auto"  # full: the slow twin, one hooked forward a variant
    quick: bool = False
    trust_remote_code: tuple[str, ...] = ()  # names of the models whose own code may run
    ray: str | None = None  # "auto", or a cluster's address; None: this process
    workers: int | None = None  # on Ray; None: as many as fit
    gpus_per_worker: float = 0.0
    cells: str | None = None  # a URL under which finished cells lie; None: in the run's folder

    def __post_init__(self) -> None:
        for name, given, allowed in (("memory", self.memory, ("auto", "both", "one")), ("engine", self.engine, ("auto", "full"))):
            if given not in allowed:
                raise StudyError(f"{name}: given {given!r}, expected one of {', '.join(allowed)}.{nearest(given, allowed)}")
        if self.ray is None and (self.workers or self.gpus_per_worker):
            raise StudyError(
                "workers and gpus_per_worker are of a Ray cluster: give --ray auto, local or an address too, or leave them out."
            )
        for name, count in (("max_rows", self.max_rows), ("threads", self.threads), ("workers", self.workers)):
            if count is not None and count < 1:
                raise StudyError(f"{name}: given {count}, expected a whole number from 1.")
