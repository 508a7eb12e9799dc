"""These verbs help to begin: which presets there are, and a study file of one."""

from mechdiff.cli.flags import AsJson, BaseModel, Preset, Prompts, TunedModel, as_typed, escaped, say


def presets(json: AsJson = False) -> None:
    """Which presets are there? What each measures, how long it takes, and what it cannot answer.

    Examples:
      mechdiff presets
      mechdiff presets --json
    """
    from mechdiff.measures.catalogue import MEASURES, OPTIONS
    from mechdiff.study.presets import PRESETS

    if json:
        from mechdiff.cli.json_output import print_json

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
        return print_json("presets", {"presets": told})
    for name, one in PRESETS.items():
        print(f"{name}: {one.purpose}; {one.time}")
        print(f"  measures: {', '.join(one.measures(OPTIONS))}")
        for what in one.cannot:
            print(f"  cannot answer: {what}")


def init(
    base: BaseModel,
    tuned: TunedModel,
    prompts: Prompts = None,
    preset: Preset = None,
) -> None:
    """A study file of BASE and TUNED, with every setting written out, on standard output.

    Examples:
      mechdiff init BASE TUNED > study.yaml
      mechdiff init BASE TUNED --preset audit --prompts mine.jsonl > study.yaml
    """
    from mechdiff.api import prompt_files
    from mechdiff.measures.catalogue import make_study
    from mechdiff.study.config import study_yaml

    with as_typed():
        asked = prompt_files(prompts, lambda line: say(escaped(line)))
        print(study_yaml(make_study({"pair": {"base": base, "tuned": tuned}, "prompts": asked, "preset": preset}, name="flags")), end="")
