"""The flags that verbs share are declared here, with what they say to a person."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mechdiff.study.presets import PRESETS

if TYPE_CHECKING:
    from rich.console import Console

INPUT, WHAT, COMPUTE, CLUSTER, OUTPUT = PANELS = ("Input", "What to measure", "Compute", "Cluster", "Output")
"""Headings under which --help lists options, in this order."""

Policies = Literal["auto", "same_text", "native", "raw"]
Dtypes = Literal["auto", "float32", "bfloat16", "float16", "int8", "nf4"]
Memories = Literal["auto", "both", "one"]
Engines = Literal["auto", "full"]
Sizes = Literal["quick", "standard", "full"]
Presets = Literal["quick", "standard", "paper", "audit"]

Asked = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="BASE TUNED | STUDY.yaml ...", help="Two models; or a study file (YAML); several files: a sweep.", show_default=False
    ),
]
BaseModel = Annotated[str, typer.Argument(help="Base model: a folder, a .gguf file or a Hub id.", show_default=False)]
TunedModel = Annotated[str, typer.Argument(help="Tuned model: the same, or a PEFT adapter's folder.", show_default=False)]
Base = Annotated[
    str | None, typer.Option(help="Base model: a folder, a .gguf file or a Hub id.", show_default=False, rich_help_panel=INPUT)
]
Tuned = Annotated[
    str | None, typer.Option(help="Tuned model: the same, or a PEFT adapter's folder.", show_default=False, rich_help_panel=INPUT)
]
Prompts = Annotated[
    str | None,
    typer.Option(
        help="JSONL (text, prompt, messages, conversations, instruction), .txt, .csv, .parquet, a data set's folder or Hub id, or a text in quotes. "
        "Default: everyday questions that ship.",
        show_default=False,
        rich_help_panel=INPUT,
    ),
]
Policy = Annotated[
    Policies,
    typer.Option(
        help="same_text: one rendered string for both; native: each its own template; raw: the bare text; auto: same_text, raw without template.",
        rich_help_panel=INPUT,
    ),
]
Template = Annotated[
    str, typer.Option(help="For same_text: tuned, base, tuned:NAME (one of several), or a Jinja file.", rich_help_panel=INPUT)
]
Measures = Annotated[
    str | None, typer.Option(help="Comma-separated names; default: all.", show_default=False, rich_help_panel=WHAT, metavar="NAMES")
]
Panel = Annotated[
    Sizes | None,
    typer.Option(
        help="Shipped texts that are read to see what else changed: quick (4 a group), standard (12), full (50).",
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
Also = Annotated[
    Path | None,
    typer.Option(
        help="JSONL of prompts of your own that must not change, read beside the panel.", show_default=False, rich_help_panel=WHAT
    ),
]
Preset = Annotated[
    Presets | None,
    typer.Option(
        help=" ".join([*(f"{name}: {one.line}." for name, one in PRESETS.items()), "Flags beside it win."]),
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
Seed = Annotated[int, typer.Option(help="Splits, permutations, donors.", rich_help_panel=WHAT)]
Quick = Annotated[bool, typer.Option("--quick", help="Only the first 6 prompts of each split.", rich_help_panel=WHAT)]
Dtype = Annotated[
    Dtypes,
    typer.Option(
        help="auto: float32 on a CPU, as the models are stored on a GPU; int8, nf4: matrices in 8 or 4 bits (bitsandbytes), the rest bfloat16.",
        rich_help_panel=COMPUTE,
    ),
]
Device = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1, split (over all GPUs, then memory, then disk), or auto.", rich_help_panel=COMPUTE)
]
Memory = Annotated[Memories, typer.Option(help="Models in memory: both, one at a time, or auto.", rich_help_panel=COMPUTE)]
MaxRows = Annotated[
    int | None,
    typer.Option(min=1, help="Counterfactual rows of one pass; default 512.", show_default=False, rich_help_panel=COMPUTE),
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default=False, rich_help_panel=COMPUTE)]
Engine = Annotated[
    Engines, typer.Option(help="full: one whole forward pass for each counterfactual (slow; the oracle).", rich_help_panel=COMPUTE)
]
Trust = Annotated[
    list[str] | None,
    typer.Option(
        "--trust-remote-code", help="Let this model, by name, run its own Python code.", show_default=False, rich_help_panel=COMPUTE
    ),
]
OnRay = Annotated[
    str | None,
    typer.Option(
        "--ray",
        help="auto, local, or a cluster's address: workers on Ray compute the cells.",
        show_default=False,
        rich_help_panel=CLUSTER,
    ),
]
Workers = Annotated[int | None, typer.Option(min=1, help="On Ray; default: as many as fit.", show_default=False, rich_help_panel=CLUSTER)]
Gpus = Annotated[float, typer.Option(min=0, help="On Ray; 0.5: two workers share one.", rich_help_panel=CLUSTER)]
Cells = Annotated[
    str | None,
    typer.Option(
        help="A URL (s3://..., file:///shared/...) where finished cells lie, if not in the run's folder.",
        show_default=False,
        rich_help_panel=CLUSTER,
    ),
]
AtOnce = Annotated[int, typer.Option(min=1, help="Of several studies, how many run at the same time.", rich_help_panel=CLUSTER)]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="The run's folder; default runs/NAME-HASH.", show_default=False, rich_help_panel=OUTPUT)
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Every line of log.txt on standard error too.", rich_help_panel=OUTPUT)]
AsJson = Annotated[bool, typer.Option("--json", help="The result as one JSON object on standard output.", rich_help_panel=OUTPUT)]
FailOn = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-on",
        help='Exit code 1 where this holds: "panel.everyday.kl>0.05". Compared is the end of the 95 % interval nearer to the failure '
        "(.value, .low, .high at the name's end choose another); may be given again.",
        show_default=False,
        rich_help_panel=OUTPUT,
        metavar="CONDITION",
    ),
]
Folder = Annotated[Path, typer.Argument(help="A finished run's folder.", show_default=False)]

KEYS = {
    "pair.base": "BASE", "pair.tuned": "TUNED", "prompts.policy": "--policy", "prompts.template": "--template", "prompts.file": "--prompts",
    "prompts": "--prompts", "measures.panel.also": "--also", "measures.panel.per_group": "--panel", "measures": "--measures", "seed": "--seed",
    "dtype": "--dtype", "max_rows": "--max-rows", "threads": "--threads", "workers": "--workers",
}  # fmt: skip
"""Key of a study file, or of the options of a run -> the flag that says it."""
_KEY = re.compile(rf"^(\s*)(?:flags: )?({'|'.join(map(re.escape, sorted(KEYS, key=len, reverse=True)))})(?=: |\[| \w+: )", re.MULTILINE)

_quiet = False


def silence(value: bool) -> None:
    """Whether notes and progress are left out from here on."""
    global _quiet
    _quiet = value


Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        help="Results and errors only: no progress, no notes.",
        callback=silence,
        expose_value=False,
        rich_help_panel=OUTPUT,
    ),
]


@contextmanager
def as_typed(flags: bool = True) -> Iterator[None]:
    """Names the flag that was typed where an error names the key of a study file; `flags`: whether flags, and no file, describe the study."""
    from mechdiff.errors import MechdiffError, PromptError

    try:
        yield
    except MechdiffError as error:
        if flags:
            text = str(error).removeprefix("flags: ") if "\n" not in str(error) else str(error)
            ours = isinstance(error, PromptError)  # of a study's `prompts` as a whole, a StudyError speaks of how they are rendered
            text = _KEY.sub(lambda found: found[1] + (KEYS[found[2]] if ours or found[2] != "prompts" else found[2]), text)
            error.args = (
                text.replace("workers and gpus_per_worker are of a Ray cluster", "--workers and --gpus-per-worker are of a Ray cluster"),
            )
        raise


def errors() -> "Console":
    """Standard error for notes and tables; silent where -q was given."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, quiet=_quiet)


def escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def say(text: str, *, always: bool = False) -> None:
    """A line for the person, on standard error: standard output is for results. With -q only what must be said `always` is."""
    from rich.console import Console

    if always or not _quiet:
        Console(stderr=True, soft_wrap=True, highlight=False).print(text)


@contextmanager
def waiting(what: str) -> Iterator[Callable[[str], None]]:
    """Shows what is done now, as it is told: one line that changes on a terminal, else a line for each thing."""
    console = errors()
    if console.is_terminal and not console.is_dumb_terminal:
        with console.status(what) as status:
            yield status.update
    else:
        yield lambda now: console.print(now, markup=False, soft_wrap=True)


def progress() -> Any:
    """Bars on a terminal, else lines (`progress.Lines`); nothing with -q."""
    from mechdiff.progress import bars, lines

    console = errors()
    return bars(console) if console.is_terminal and not console.is_dumb_terminal else lines(console)
