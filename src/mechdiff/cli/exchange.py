"""These verbs take a run to other programs, and take in what those wrote. Everything heavy is imported inside the verb."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mechdiff.cli.flags import AsJson, Folder, escaped, say
from mechdiff.cli.json_output import print_json

To = Literal["paper", "lm-eval", "inspect", "every-eval", "control-vector", "peft"]


def export(
    run: Folder,
    to: Annotated[
        To,
        typer.Option(
            help="paper: figures and a summary. Both models' answers: lm-eval (samples), inspect (logs), every-eval (Every Eval Ever). A steering "
            "vector: control-vector (GGUF, for llama.cpp), peft (an adapter)."
        ),
    ] = "paper",
    out: Annotated[
        Path | None, typer.Option(help="The folder, or a control vector's file; default: the form's name.", show_default=False)
    ] = None,
    formats: Annotated[str, typer.Option("--format", help="Of a paper, comma-separated: pdf, svg, png.")] = "pdf,svg,png",
    columns: Annotated[str, typer.Option(help="Of a paper, comma-separated widths: single (3.3 inches), double (6.9).")] = "single,double",
    figures: Annotated[
        str | None,
        typer.Option(help="Of a paper: these figures alone, comma-separated, at --width; `none`: no figure.", show_default=False),
    ] = None,
    width: Annotated[float, typer.Option(help="Of --figures, in inches.")] = 3.3,
    latex: Annotated[
        bool,
        typer.Option("--latex", help="Beside --figures: numbers.tex, tables.tex, figures.tex, methods.tex, references.bib, paper.tex."),
    ] = False,
    site: Annotated[
        str | None, typer.Option(help="Of a vector: L27.resid_post; default: where the run steered at all positions.", show_default=False)
    ] = None,
    strength: Annotated[float, typer.Option(help="Of a vector: how many times it is added.")] = 1.0,
    base: Annotated[str | None, typer.Option(help="Of a vector for peft: where the run's base now is.", show_default=False)] = None,
) -> None:
    """A run for a paper (figures at column widths, tables, a summary), its answers as evaluation harnesses log them, or a steering vector to serve.

    Prints the path of what was written.

    Examples:
      mechdiff export runs/mine --out paper --format pdf
      mechdiff export runs/mine --figures causal_map,d_by_prompt --width 3.25 --format pdf --latex
      mechdiff export runs/mine --to lm-eval --out logs
      mechdiff export runs/mine --to peft --site L27.resid_post --out steer
    """
    if to == "paper" and (figures or latex):
        _paper(run, out or Path(to), figures, width, formats, latex)
    elif to == "paper":
        from mechdiff.api import open_run

        asked = {"formats": formats.split(","), "columns": columns.split(",")}
        print(open_run(run).export(out or "paper", **{name: [one.strip() for one in given] for name, given in asked.items()}))
    elif to in ("control-vector", "peft"):
        _vector(run, to, out, site, strength, base)
    else:
        _answers(run, to, out or Path(to))


def _paper(run: Path, out: Path, figures: str | None, width: float, formats: str, latex: bool) -> None:
    from mechdiff.exchange import paper
    from mechdiff.report.parts import load

    names = [name.strip() for name in (figures or "none").split(",") if name.strip() not in ("", "none")]
    kinds = [name.strip() for name in formats.split(",")]
    made = paper.write(load(run), out, figures=names, width=width, formats=kinds, latex=latex)
    for sentence in made.said:
        say(escaped(sentence))
    print(made.folder)


def _vector(run: Path, to: str, out: Path | None, site: str | None, strength: float, base: str | None) -> None:
    from mechdiff.exchange import vectors

    if to == "peft":
        made = vectors.write_adapter(run, out or Path("peft"), site=site, strength=strength, base=base)
        say(
            f"{made.site}: a bias of {made.module}; its logits are those of steering to {made.largest_logit_difference:.1g} "
            f"(KL {made.kl_nats:.1g} nats)"
        )
    else:
        made = vectors.write_control_vector(run, out or Path("control-vector.gguf"), site=site, strength=strength)
        say(f"{made.site}: llama.cpp adds it behind block {made.site.layer} (--control-vector {made.path.name})")
    print(made.path)


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
    json: AsJson = False,
) -> None:
    """Two evaluation logs, item by item: paired tests (McNemar, Holm over tasks), intervals, and the items that flipped.

    Items must be the same on both sides: what is not is named. With --run, or --base and --tuned: do flipped items diverge more?

    Examples:
      mechdiff compare-evals base/samples_gsm8k_2026.jsonl tuned/samples_gsm8k_2026.jsonl
      mechdiff compare-evals logs/base logs/tuned --run runs/mine --out flips.md
    """
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
        print_json("compare-evals", found.data())
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
