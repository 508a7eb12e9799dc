"""This verb puts what a run found where others read it: a model card of the Hub. Everything heavy is imported inside the verb."""

from pathlib import Path
from typing import Annotated

import typer

from mechdiff.cli.flags import Folder, escaped, say


def card(
    run: Folder,
    into: Annotated[
        Path | None,
        typer.Option(
            help="A README.md that gets front matter and block; its own words stay, an earlier block is replaced.", show_default=False
        ),
    ] = None,
    page: Annotated[
        str, typer.Option(help="Where the card's links find the page: its path beside the card, or its address.")
    ] = "report.html",
    base_model: Annotated[
        str | None, typer.Option("--base-model", help="The base's id on the Hub, where the run was given a folder.", show_default=False)
    ] = None,
) -> None:
    """A model card for the Hub: its front matter, and the six first answers with links to the page. Prints the card, or the path of the file.

    Examples:
      mechdiff card runs/demo
      mechdiff card runs/demo --into README.md --base-model HuggingFaceTB/SmolLM2-135M-Instruct
    """
    from mechdiff.api import open_run

    made = open_run(run).card(into, page=page, base_model=base_model)
    if "base_model:" not in (into.read_text(encoding="utf-8") if into else made).split("\n---", 1)[0]:
        say(
            escaped(
                "base_model is left out: this run's base is a folder or in memory. Give its id on the Hub with --base-model OWNER/NAME."
            )
        )
    print(into or made, end="\n" if into else "")
