"""These verbs read a corpus: texts by the thousand or the million. Everything heavy is imported inside the verb."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mechdiff.cli.flags import (
    AsJson,
    BaseModel,
    Cells,
    Device,
    Dtype,
    Gpus,
    Memory,
    OnRay,
    Threads,
    Trust,
    TunedModel,
    Workers,
    errors,
    progress,
)


def _how(trusted: list[str] | None, *flags: Any) -> Any:
    """The options that both verbs have, in the order of their flags."""
    from mechdiff.study.config import RunOptions

    names = ("device", "memory", "threads", "ray", "workers", "gpus_per_worker", "cells")
    return RunOptions(trust_remote_code=tuple(trusted or ()), **dict(zip(names, flags, strict=True)))


def moments(
    base: BaseModel, tuned: TunedModel,
    corpus: Annotated[Path, typer.Argument(help="JSON Lines of any size, a `text` in every line.", show_default=False)],
    sites: Annotated[str, typer.Option(help="Comma-separated, such as L3.resid_post,L5.attn_out.", show_default=False)],
    out: Annotated[Path, typer.Option(help="A folder for sums, maps and moments.json.", show_default=False)],
    positions: Annotated[Literal["all", "last"], typer.Option(help="all: every token but a text's first; last: its last one.")] = "all",
    longest: Annotated[int, typer.Option(min=2, help="Tokens of a text that are read.")] = 512,
    shard: Annotated[int, typer.Option(min=1, help="Texts of one unit of work and of storage.")] = 1024,
    dtype: Dtype = "auto", device: Device = "auto", memory: Memory = "auto", threads: Threads = None, trust_remote_code: Trust = None,
    ray: OnRay = None, workers: Workers = None, gpus_per_worker: Gpus = 0.0, cells: Cells = None, json: AsJson = False,
) -> None:  # fmt: skip
    """Linear maps, CKA and mean differences over a corpus larger than memory, by sums. The last line printed is the folder's record.

    The same command goes on where it was stopped.

    Examples:
      mechdiff moments BASE TUNED texts.jsonl --sites L3.resid_post,L5.attn_out --out moments
    """
    from mechdiff import api
    from mechdiff.cli.json_output import print_json
    from mechdiff.cli.printing import show_moments

    options = _how(trust_remote_code, device, memory, threads, ray, workers, gpus_per_worker, cells)
    with progress() as bar:
        task = bar.add_task("preparing", total=1.0)
        found = api.moments(
            base, tuned, corpus, [site.strip() for site in sites.split(",")], out=out, positions=positions, longest=longest, shard=shard, dtype=dtype,
            options=options, progress=lambda what, share: bar.update(task, description=what, completed=share),
        )  # fmt: skip
    if json:
        return print_json("moments", {"folder": out, **found})
    show_moments(found, errors())
    print(out / "moments.json")


def scan(
    corpus: Annotated[str, typer.Argument(help="JSONL, text, CSV, Parquet, a folder saved by `datasets`, or a Hub id.", show_default=False)],
    base: Annotated[str, typer.Option(help="Base model: a folder, a .gguf file or a Hub id.", show_default=False)],
    tuned: Annotated[str, typer.Option(help="Tuned model: the same, or a PEFT adapter's folder.", show_default=False)],
    out: Annotated[Path, typer.Option(help="A folder for scan.json, texts.parquet and the page.", show_default=False)],
    ray: OnRay = None, workers: Workers = None, gpus_per_worker: Gpus = 0.0, cells: Cells = None,
    field: Annotated[str, typer.Option(help="Which field holds the text.")] = "text",
    longest: Annotated[int, typer.Option(min=2, help="Tokens of a text that are read.")] = 512,
    chunk: Annotated[int, typer.Option(min=1, help="Texts of one unit of work and of storage.")] = 256,
    matrices: Annotated[int, typer.Option(min=0, help="The largest changes of weights, whose directions texts are compared with.")] = 4,
    vectors: Annotated[
        list[str] | None, typer.Option(help="A steering vector (.safetensors, .gguf), the same; may be given again.", show_default=False)
    ] = None,
    dtype: Dtype = "auto", device: Device = "auto", memory: Memory = "auto", threads: Threads = None, trust_remote_code: Trust = None,
    json: AsJson = False,
) -> None:  # fmt: skip
    """In which texts of a corpus do two models part? KL, loss, domains, contexts, and texts that hold a direction of the change.

    The same command goes on where it was stopped.

    Examples:
      mechdiff scan corpus.jsonl --base BASE --tuned TUNED --out scan
      mechdiff scan OWNER/NAME --base BASE --tuned TUNED --out scan --vectors RUN/steering/L24.resid_post.gguf
    """
    from mechdiff import api
    from mechdiff.cli.json_output import print_json
    from mechdiff.cli.printing import show_scan

    options = _how(trust_remote_code, device, memory, threads, ray, workers, gpus_per_worker, cells)
    with progress() as bar:
        task = bar.add_task("preparing", total=1.0)
        found = api.scan(
            corpus, base=base, tuned=tuned, out=out, dtype=dtype, options=options, field=field, longest=longest, chunk=chunk, matrices=matrices,
            vectors=tuple(vectors or ()), progress=lambda what, share: bar.update(task, description=what, completed=share),
        )  # fmt: skip
    if json:
        return print_json("scan", {"folder": out, **found})
    show_scan(found, errors())
    print(out / "report.html")
