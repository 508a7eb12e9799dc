"""These verbs take a run to other programs, and take in what those wrote. Everything heavy is imported inside the verb."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mechdiff.cli.flags import Folder, escaped, say

To = Literal["paper", "lm-eval", "inspect", "every-eval"]


def export(
    run: Folder,
    to: Annotated[
        To,
        typer.Option(
            help="paper: figures and a summary. The answers of both models: lm-eval (samples), inspect (logs), every-eval (Every Eval Ever)."
        ),
    ] = "paper",
    out: Annotated[Path | None, typer.Option(help="The folder; default: the form's name.", show_default=False)] = None,
    formats: Annotated[str, typer.Option("--format", help="Of a paper, comma-separated: pdf, svg, png.")] = "pdf,svg,png",
    columns: Annotated[str, typer.Option(help="Of a paper, comma-separated widths: single (3.3 inches), double (6.9).")] = "single,double",
) -> None:
    """A run for a paper (figures at column widths, tables, a summary), or its answers in the form of an evaluation harness.

    Prints the summary's path, or the folder's.

    Examples:
    mechdiff export runs/mine --out paper --format pdf
    mechdiff export runs/mine --to lm-eval --out logs
    """
    out = out or Path(to)
    if to == "paper":
        from mechdiff.api import open_run

        asked = {"formats": formats.split(","), "columns": columns.split(",")}
        print(open_run(run).export(out, **{name: [one.strip() for one in given] for name, given in asked.items()}))
    else:
        _answers(run, to, out)


def _answers(run: Path, to: str, out: Path) -> None:
    from mechdiff.exchange import every_eval, inspect_logs, lm_eval
    from mechdiff.exchange.answered import read_answers

    of = read_answers(run)
    left_out = list(of.left_out)
    if to == "every-eval":
        _, left_out = every_eval.write(of, out)
    else:
        (lm_eval if to == "lm-eval" else inspect_logs).write(of, out)
    for what in left_out:
        say(escaped(f"left out: {what}"))
    print(out)


def compare_evals(
    a: Annotated[
        Path, typer.Argument(help="The first model's samples_*.jsonl (lm-eval), log (Inspect), or a folder of them.", show_default=False)
    ],
    b: Annotated[Path, typer.Argument(help="The second model's.", show_default=False)],
    metric: Annotated[
        str | None, typer.Option(help="The score to compare; default: the first that says right or wrong.", show_default=False)
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="A finished run of the two models: the divergence of items whose prompts it read.", show_default=False),
    ] = None,
    base: Annotated[str | None, typer.Option(help="With --tuned: measure the divergence of every item.", show_default=False)] = None,
    tuned: Annotated[str | None, typer.Option(help="The tuned model, or a PEFT adapter's folder.", show_default=False)] = None,
    device: Annotated[str, typer.Option(help="With --base: cpu, cuda or auto.")] = "auto",
    dtype: Annotated[str, typer.Option(help="With --base: float32, bfloat16 or float16.")] = "float32",
    out: Annotated[Path | None, typer.Option(help="Write everything as Markdown, with every flip.", show_default=False)] = None,
    json: Annotated[bool, typer.Option("--json", help="Everything as JSON on standard output.")] = False,
) -> None:
    """Two evaluation logs, item by item: paired tests (McNemar, Holm over tasks), intervals, and the items that flipped.

    Items must be the same on both sides: what is not is named. With --run, or --base and --tuned: do flipped items diverge more?

    Examples:
    mechdiff compare-evals base/samples_gsm8k_2026.jsonl tuned/samples_gsm8k_2026.jsonl
    mechdiff compare-evals logs/base logs/tuned --run runs/mine --out flips.md
    """
    from json import dumps

    from mechdiff.errors import StudyError
    from mechdiff.exchange import divergences, logs, paired, said

    if (base is None) != (tuned is None):
        raise StudyError(f"given --{'base' if base else 'tuned'} alone. Give --base and --tuned, the two models of A and B.")
    if run and base:
        raise StudyError("given --run and --base. Give one: what a run measured, or two models to measure it with.")
    first, second = logs.read_logs(a), logs.read_logs(b)
    kl = None
    if run:
        kl = divergences.of_run(run, first)
    elif base and tuned:
        kl = divergences.measured(base, tuned, first, dtype=dtype, device=device)
    found = paired.compare(first, second, names=(a.name, b.name), metric=metric, kl=kl)
    if out:
        out.write_text(said.markdown(found), encoding="utf-8")
    if json:
        print(dumps(found.data(), ensure_ascii=False, indent=1, allow_nan=False))
        return
    _show(found)
    if out:
        say(escaped(f"every flip: {out}"))


def _show(found: Any) -> None:
    """Sentences on standard error, tables on standard output."""
    from rich.console import Console
    from rich.table import Table

    from mechdiff.exchange import said

    for sentence in said.sentences(found):
        say(f"- {escaped(sentence)}")
    console = Console(width=None)
    _print(console, Table(box=None, header_style="dim", pad_edge=False), said.COLUMNS, said.table(found))
    for one in found.tasks:
        if lines := said.flips(one):
            more = f", {said.FLIPS} of {len(lines)} (all: --out FILE.md or --json)" if len(lines) > said.FLIPS else ""
            title = f"flips of {escaped(one.task)}{more}"
            _print(console, Table(title=title, title_justify="left", box=None, header_style="dim", pad_edge=False),
                   ("item", "", "KL, nats", "prompt"), lines[: said.FLIPS])  # fmt: skip


def _print(console: Any, into: Any, columns: tuple[str, ...], lines: list[list[str]]) -> None:
    for name in columns:
        into.add_column(name, overflow="fold")
    for cells in lines:
        into.add_row(*(escaped(cell) for cell in cells))
    console.print(into)
