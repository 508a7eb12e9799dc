"""The flags that verbs share are declared here, with what they say to a person."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mechdiff.study.presets import PRESETS

Asked = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="BASE TUNED | STUDY.yaml ...", help="Two models; or a study file (YAML); several files: a sweep.", show_default=False
    ),
]
Base = Annotated[str | None, typer.Option(help="Base model: a folder, a .gguf file or a Hub id.", show_default=False)]
Tuned = Annotated[str | None, typer.Option(help="Tuned model: the same, or a PEFT adapter's folder.", show_default=False)]
Prompts = Annotated[
    str | None,
    typer.Option(
        help="JSONL (text, prompt, messages, conversations, instruction), .txt, .csv, .parquet, a data set's folder or Hub id, or a text in quotes. "
        "Default: everyday questions that ship.",
        show_default=False,
    ),
]
Policy = Annotated[
    str,
    typer.Option(
        help="same_text (one rendered string for both), native (each its own template), raw (the bare text); auto: same_text, raw without template."
    ),
]
Template = Annotated[str, typer.Option(help="For same_text: tuned, base, tuned:NAME (one of several), or a Jinja file.")]
Measures = Annotated[str | None, typer.Option(help="Comma-separated names; default: all.", show_default=False)]
Panel = Annotated[
    str | None,
    typer.Option(
        help="Shipped texts that are read to see what else changed: quick (4 a group), standard (12), full (50).", show_default=False
    ),
]
Also = Annotated[
    Path | None, typer.Option(help="JSONL of prompts of your own that must not change, read beside the panel.", show_default=False)
]
Preset = Annotated[
    str | None,
    typer.Option(help=" ".join([*(f"{name}: {one.line}." for name, one in PRESETS.items()), "Flags beside it win."]), show_default=False),
]
Seed = Annotated[int, typer.Option(help="Splits, permutations, donors.")]
Dtype = Annotated[
    str, typer.Option(help="float32, bfloat16 or float16; int8 or nf4: matrices in 8 or 4 bits (bitsandbytes), the rest bfloat16.")
]
Out = Annotated[Path | None, typer.Option(help="The run's folder; default runs/NAME-HASH.", show_default=False)]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, split (over all GPUs, then memory, then disk), or auto.")]
Memory = Annotated[str, typer.Option(help="Models in memory: both, one at a time, or auto.")]
MaxRows = Annotated[int | None, typer.Option(help="Counterfactual rows of one pass; default 512.", show_default=False)]
Threads = Annotated[int | None, typer.Option(help="CPU threads.", show_default=False)]
Engine = Annotated[str, typer.Option(help="auto, or full: one whole forward pass for each counterfactual (slow; the oracle).")]
Quick = Annotated[bool, typer.Option("--quick", help="Only the first 8 prompts of each split.")]
OnRay = Annotated[
    str | None, typer.Option("--ray", help="auto, local, or a cluster's address: workers on Ray compute the cells.", show_default=False)
]
Workers = Annotated[int | None, typer.Option(help="On Ray; default: as many as fit.", show_default=False)]
Gpus = Annotated[float, typer.Option(help="On Ray; 0.5: two workers share one.")]
Cells = Annotated[
    str | None,
    typer.Option(help="A URL (s3://..., file:///shared/...) where finished cells lie, if not in the run's folder.", show_default=False),
]
AtOnce = Annotated[int, typer.Option(min=1, help="Of several studies, how many run at the same time.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Every line of log.txt on standard error too.")]
Trust = Annotated[
    list[str] | None, typer.Option("--trust-remote-code", help="Let this model, by name, run its own Python code.", show_default=False)
]
Folder = Annotated[Path, typer.Argument(help="A finished run's folder.", show_default=False)]


def escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def say(text: str) -> None:
    """A line for the person, on standard error: standard output is for results."""
    from rich.console import Console

    Console(stderr=True, soft_wrap=True, highlight=False).print(text)


def progress() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:34}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
    )
    return Progress(*columns, TimeRemainingColumn(elapsed_when_finished=False), console=Console(stderr=True))
