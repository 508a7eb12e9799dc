"""These verbs help to begin: which presets there are, and a study file of one."""

from typing import Annotated

import typer

from mechdiff.cli.flags import Preset, Prompts, escaped


def presets(json: Annotated[bool, typer.Option("--json", help="With every setting as JSON on standard output.")] = False) -> None:
    """Which presets there are: what each measures, how long it takes, and what it cannot answer."""
    from mechdiff.measures.catalogue import MEASURES, OPTIONS
    from mechdiff.study.presets import PRESETS

    if json:
        from json import dumps

        questions = {one.name: one.question for one in MEASURES}
        told = {
            name: {
                "purpose": one.purpose,
                "time": one.time,
                "cannot_answer": list(one.cannot),
                "not_asked": [question for measure, question in questions.items() if measure not in one.measures(OPTIONS)],
                "study": {**{key: dict(value) for key, value in one.settings.items()}, "measures": one.measures(OPTIONS)},
            }
            for name, one in PRESETS.items()
        }
        print(dumps(told, indent=1))
        return
    for name, one in PRESETS.items():
        print(f"{name}: {one.purpose}; {one.time}")
        print(f"  measures: {', '.join(one.measures(OPTIONS))}")
        for what in one.cannot:
            print(f"  cannot answer: {what}")


def init(
    base: Annotated[str, typer.Argument(help="Base model: a folder, a .gguf file or a Hub id.", show_default=False)],
    tuned: Annotated[str, typer.Argument(help="Tuned model: the same, or a PEFT adapter's folder.", show_default=False)],
    prompts: Prompts = None,
    preset: Preset = None,
) -> None:
    """A study file of BASE and TUNED, with every setting written out, on standard output: mechdiff init BASE TUNED > study.yaml."""
    from mechdiff.api import prompt_files
    from mechdiff.cli.flags import say
    from mechdiff.measures.catalogue import make_study
    from mechdiff.study.config import study_yaml

    asked = prompt_files(prompts, lambda line: say(escaped(line)))
    print(study_yaml(make_study({"pair": {"base": base, "tuned": tuned}, "prompts": asked, "preset": preset}, name="flags")), end="")
