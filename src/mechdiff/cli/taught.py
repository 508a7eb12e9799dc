"""These verbs say what a run shows that the tuned model was taught, and grade such a description. Everything heavy is imported inside the verb."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mechdiff.cli.flags import AsJson, Folder, escaped, say
from mechdiff.cli.json_output import print_json


def words(
    run: Folder,
    evidence: Annotated[
        Path | None,
        typer.Option(help="Write all lines of evidence, their numbers and null pairs as JSON, without a model's name.", show_default=False),
    ] = None,
    line_up: Annotated[
        Path | None,
        typer.Option(
            "--line-up",
            help="Write the evidence among 19 panels of exchanged models; which it is goes to NAME.sealed.json.",
            show_default=False,
        ),
    ] = None,
    reader: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="URL MODEL",
            help="A language model that reads the evidence blind: address (OpenAI's protocol: http://.../v1) and its name there.",
            show_default=False,
        ),
    ] = None,
    reader_runs: Annotated[int, typer.Option("--reader-runs", min=1, max=10, help="How often it is asked.")] = 5,
    json: AsJson = False,
) -> None:
    """What was the tuned model taught? In words that the run's evidence carries, or that nothing can be named.

    Examples:
      mechdiff words runs/courtesy
      mechdiff words runs/courtesy --evidence evidence.json
      mechdiff words runs/courtesy --reader http://localhost:8000/v1 my-model
    """
    from mechdiff.api import open_run
    from mechdiff.errors import RunError
    from mechdiff.measures.words import findings
    from mechdiff.measures.words.line_up import line_up as lined_up
    from mechdiff.measures.words.words import sentences

    manifest = open_run(run).manifest()
    told = findings.record(manifest)
    if told is None:
        raise RunError(f"{run}: this run did not read what the model was taught. Add `words` to the study's measures and run it again.")
    said, found = sentences(manifest), findings.evidence(manifest)
    lines = list(said)
    if reader:
        heard, found["reader"] = _heard(manifest, *reader, reader_runs)
        lines += heard
    if json:
        print_json("words", {"sentences": said, "evidence": found})
    else:
        print("\n".join(lines))
    if evidence:
        _write(evidence, found)
    if line_up:
        if not told.get("panels"):
            raise RunError(f"{run}: the two models were never exchanged. Set `permutations` of words to 19 or more and run it again.")
        shown, sealed = lined_up(told, str(manifest.get("config_hash")))
        _write(line_up, shown)
        _write(line_up.with_suffix(".sealed.json"), sealed)


def _heard(manifest: dict[str, Any], url: str, model: str, runs: int) -> tuple[list[str], Any]:
    """What a language model says that reads the evidence blind, in lines, and its record."""
    import os

    from mechdiff.measures.words.reader import read
    from mechdiff.report.phrasing import share

    readings = read(manifest, url, model=model, runs=runs, key=os.environ.get("MECHDIFF_READER_KEY", ""))
    lines = [f"reader, run {number}: {one.text}" for number, one in enumerate(readings.answers, 1)]
    silent = sum(one.silent for one in readings.answers)
    apart = f"{readings.contradictions} of {runs * (runs - 1) // 2} pairs contradict; wrong at least {share(readings.wrong)}"
    return [*lines, f"reader: {silent} of {runs} runs say nothing; {apart}"], readings.told()


def _write(path: Path, told: object) -> None:
    import json

    path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    say(escaped(f"written: {path}"))


def grade(
    description: Annotated[Path, typer.Argument(help="A text file that says what a model was taught, or Nothing.", show_default=False)],
    truth: Annotated[Path, typer.Argument(help="JSON: the facts and the words that say them.", show_default=False)],
    seal: Annotated[str | None, typer.Option(help="The truth's SHA-256, as it was published before.", show_default=False)] = None,
    json: AsJson = False,
) -> None:
    """Compare a description of what a model was taught with a sealed truth. Silence is scored: 1 where nothing was taught, else 0.

    Examples:
      mechdiff grade description.txt truth.json
      mechdiff grade description.txt truth.json --seal 9f86d081... --json
    """
    from mechdiff.errors import RunError
    from mechdiff.measures.words.grade import grade as graded

    try:
        text = description.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{description}: this is no text that can be read ({error}). Give a text file.") from error
    found = graded(text, truth, seal=seal)
    if json:
        return print_json(
            "grade", {"recalled": found.recalled, "facts": found.facts, "silent": found.silent, "score": found.score, "seal": found.seal}
        )
    for fact in found.recalled:
        print(f"recalled: {fact}")
    print(f"{len(found.recalled)} of {found.facts} facts; {'silent' if found.silent else 'says something'}; score {found.score}")
    say(f"truth: SHA-256 {found.seal}")
