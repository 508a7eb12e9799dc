"""What a person asks for, two models and flags or study files, becomes the studies that are meant. Everything heavy is imported inside."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mechdiff.cli.flags import as_typed, escaped, say

SIZES = {"quick": 4, "standard": 12, "full": 50}
"""The measure that flags of its own ask for, and its texts of each group."""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags describe a study where no file does."""

    base: str | None
    tuned: str | None
    prompts: str | None
    policy: str
    template: str
    measures: str | None
    panel: str | None
    also: Path | None
    seed: int
    dtype: str
    preset: str | None = None

    def told(self) -> dict[str, Any]:
        """Flag -> something true where it was given."""
        return {
            "--base": self.base, "--tuned": self.tuned, "--prompts": self.prompts, "--measures": self.measures,
            "--panel": self.panel, "--also": self.also, "--preset": self.preset,
            "--policy": self.policy != "auto", "--template": self.template != "tuned", "--seed": self.seed, "--dtype": self.dtype != "auto",
        }  # fmt: skip


def study_of(study: Path | None, flags: Flags) -> Any:
    """The study that its file or the flags describe."""
    from mechdiff.api import with_prompt_files
    from mechdiff.errors import StudyError
    from mechdiff.measures.catalogue import OPTIONS, load_study, make_study
    from mechdiff.study.config import refuse_beside

    told = flags.told()
    if study is not None:
        refuse_beside(study, told)
        return with_prompt_files(load_study(study)[0], lambda line: say(escaped(line)))
    if flags.base is None or flags.tuned is None:
        raise StudyError("no pair is given. Use: mechdiff run BASE TUNED [--prompts PROMPTS], or mechdiff run STUDY.yaml.")
    data: dict[str, Any] = {
        "pair": {"base": flags.base, "tuned": flags.tuned},
        "prompts": {**_prompts(flags.prompts), "policy": flags.policy, "template": flags.template},
        "seed": flags.seed,
        "dtype": flags.dtype,
        "preset": flags.preset,
    }
    names = [name.strip() for name in flags.measures.split(",")] if flags.measures else _of_preset(flags.preset, OPTIONS)
    if flags.measures or flags.panel or flags.also:
        panel = _panel(flags)
        data["measures"] = [name for name in names if name not in panel] + [{name: told} for name, told in panel.items()]
    return make_study(data, name="flags")


def _of_preset(name: str | None, options: Any) -> list[str]:
    """The measures of a preset; all of them without one."""
    from mechdiff.study.presets import PRESETS

    return list(PRESETS[name].measures(options) if name else options)


def _prompts(given: str | None) -> dict[str, Any]:
    """Prompt files as a study names them; what was made of what was given is said on standard error."""
    from mechdiff.api import prompt_files

    return prompt_files(given, lambda line: say(escaped(line)))


def studies_of(asked: list[str] | None, flags: Flags) -> dict[Path | None, Any]:
    """The studies that are asked for, by file; None: the one of two models, given as BASE TUNED or by flags."""
    from mechdiff.errors import StudyError

    given = asked or []
    files = [one for one in given if Path(one).suffix.lower() in (".yaml", ".yml")]
    if given and len(files) == len(given):
        if twice := sorted({one for one in files if files.count(one) > 1}):
            say(escaped(f"given more than once, and run once: {', '.join(twice)}"))
        return {Path(one): study_of(Path(one), flags) for one in dict.fromkeys(files)}
    if len(given) == 2 and not files:
        if flags.base or flags.tuned:
            raise StudyError(f"given BASE TUNED ({given[0]} {given[1]}) and --base or --tuned: name each model once.")
        flags = replace(flags, base=given[0], tuned=given[1])
    elif given:
        raise StudyError(f"given {' '.join(given)}, expected two models (mechdiff run BASE TUNED), or study files that end in .yaml.")
    with as_typed():
        return {None: study_of(None, flags)}


def _panel(flags: Flags) -> dict[str, Any]:
    """The panel as `--panel` and `--also` ask for it, by the measure's name; nothing where neither is given."""
    from mechdiff.measures.panel.measure import PANEL

    told = {"per_group": SIZES[flags.panel or "standard"]} | ({"also": str(flags.also)} if flags.also else {})
    return {PANEL.name: told} if flags.panel or flags.also else {}
