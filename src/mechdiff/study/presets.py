"""A preset is a study that someone else has thought through: which measures, of how many prompts, how long an answer.

What a preset tells a measure stands with the measure's own options (`Options.presets`), so a new measure says itself where it belongs; one that
says nothing is in `paper`. What is given beside a preset wins, key by key. A preset's name is no part of a study's identity: what it fills in is.
No torch here, nor pydantic: the help of a command lists presets.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechdiff.study.options import Options


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings of a study by one name, with what they cost and what they cannot answer."""

    name: str
    purpose: str
    """What it is for, in a sentence without its full stop."""
    time: str
    """How long it takes for the embedded pair, where that was measured: docs/USAGE.md."""
    cannot: tuple[str, ...]
    """What nobody should ask of it."""
    tests_all: bool = False
    """Its measures fit nothing and choose nothing, so every prompt of one file is a test prompt."""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """`prompts` and `answers` of a study; its measures say themselves what it tells them."""

    def measures(self, options: "Mapping[str, type[Options]]") -> dict[str, dict[str, Any]]:
        """The measures that it asks for, in their order, and what it tells each. `options`: of every measure that there is."""
        return {name: dict(kind.presets[self.name]) for name, kind in options.items() if self.name in kind.presets}

    @property
    def line(self) -> str:
        """What a list of presets says of it."""
        return f"{self.purpose}; {self.time}; cannot answer {'; '.join(self.cannot)}"

    def record(self, asked: Collection[str], options: "Mapping[str, type[Options]]") -> dict[str, Any]:
        """What a run's record says of the preset; `asked`: the measures of the study, whose `added` and `left_out` are beside the preset's own."""
        own = self.measures(options)
        added, left_out = ([name for name in these if name not in those] for these, those in ((asked, own), (own, asked)))
        return {"name": self.name, "purpose": self.purpose, "cannot": list(self.cannot), "added": added, "left_out": left_out}


PRESETS: dict[str, Preset] = {
    one.name: one
    for one in (
        Preset(
            name="quick",
            purpose="a first look at answers, weights and what else changed",
            time="1 to 2 minutes",
            cannot=(
                "where in the network it matters, nor whether one vector or a few heads carry it",
                "small effects: it reads 12 prompts",
            ),
            tests_all=True,
            settings={"prompts": {"at_most": {"fit": 4, "select": 4, "report": 12}}, "answers": {"tokens": 0}},
        ),
        Preset(
            name="standard",
            purpose="quick, and where it matters: layers, modules, heads",
            time="about 4 minutes",
            cannot=("how many dimensions the change has, nor whether a vector or a map carries it", "what it was taught, in words"),
            settings={"prompts": {"at_most": {"fit": 16, "select": 6, "report": 12}}, "answers": {"tokens": 0}},
        ),
        Preset(
            name="paper",
            purpose="every measure on all prompts, for numbers that are quoted",
            time="not timed, mechdiff plan says",
            cannot=("anything with fewer than 100 prompts better than its intervals say", "what other prompts would have shown"),
        ),
        Preset(
            name="audit",
            purpose="what changed elsewhere: refusals, 600 texts of 12 kinds, what it was taught, lineage and weights",
            time="not timed, mechdiff plan says",
            cannot=(
                "where in the network it happens",
                "behaviour that no shipped text and none of yours calls forth: give those with `also`",
            ),
            settings={"answers": {"tokens": 0}},
        ),
    )
}
"""In the order of what they cost."""


def sentences(record: Mapping[str, Any] | None) -> list[str]:
    """What a page says of the preset in a run's record; nothing where there is none. A preset that was changed does not say what it cannot answer."""
    if not record:
        return []
    changed = [
        f"{what}: {', '.join(record[key])}" for key, what in (("added", "also measured"), ("left_out", "not measured")) if record[key]
    ]
    if changed:
        return [f"Preset {record['name']}, changed ({'; '.join(changed)})."]
    return [f"Preset {record['name']}: {record['purpose']}. It cannot answer {'; '.join(record['cannot'])}."]


def filled(data: Mapping[str, Any], options: "Mapping[str, type[Options]]") -> dict[str, Any]:
    """The study that `data` describes, with what its preset says of everything that it leaves open; what cannot be read is left as it is.

    Where `data` names measures, these are the study's: of each that the preset asks for too, the preset's options stand where none is given.
    """
    name = data.get("preset")
    if not isinstance(name, str) or name not in PRESETS:
        return dict(data)
    preset = PRESETS[name]
    found = {**data, "measures": _measures(data.get("measures"), preset.measures(options))}
    for section, settings in preset.settings.items():
        given = found.get(section, {})
        if isinstance(given, Mapping):
            found[section] = {**settings, **given}
    prompts = found.get("prompts")
    if preset.tests_all and data.get("measures") is None and isinstance(prompts, Mapping) and "file" in prompts:
        found["prompts"] = {"report" if key == "file" and "report" not in prompts else key: value for key, value in prompts.items()}
    return found


def _measures(given: Any, told: Mapping[str, Mapping[str, Any]]) -> Any:
    """A list of measures as a study has it."""
    if given is None:
        return [{name: options} for name, options in told.items()]
    return [_beneath(item, told) for item in given] if isinstance(given, list | tuple) else given


def _beneath(item: Any, told: Mapping[str, Mapping[str, Any]]) -> Any:
    """One entry of such a list with a preset's options under its own."""
    if isinstance(item, str):
        return {item: dict(told.get(item, {}))}
    if not isinstance(item, dict) or len(item) != 1:
        return item
    ((name, options),) = item.items()
    if not isinstance(name, str) or not isinstance(options, dict | None):
        return item
    return {name: {**told.get(name, {}), **(options or {})}}
