"""This verb makes prompt sets. Everything heavy is imported inside it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mechdiff.cli.flags import AsJson, Base, Seed, Tuned

if TYPE_CHECKING:
    from mechdiff.curate.fairness import Tokenizers

Sources = Annotated[
    list[str] | None,
    typer.Argument(
        help="JSONL, JSON, CSV, TSV, Parquet or text files, folders saved by `datasets`, Hub ids; none: the set that ships.",
        show_default=False,
    ),
]
Column = Annotated[str | None, typer.Option(show_default=False, help="The field's name; default: the first of the usual ones.")]
Patterns = Annotated[
    list[str] | None, typer.Option(show_default=False, help="A regular expression (Unicode, blind to case); may be given again.")
]
Least = Annotated[int | None, typer.Option(show_default=False, help="In characters, or in tokens of both models.")]


def curate(
    sources: Sources = None, out: Annotated[Path, typer.Option(help="Folder of the set.")] = Path("prompts"),
    preset: Annotated[Literal["plain", "choice", "maths"], typer.Option(help="choice: options and the right one; maths: final answers.")] = "plain",
    text: Column = None, category: Column = None, options: Column = None, answer: Column = None, id: Column = None,
    answer_from: Annotated[
        Literal["auto", "text", "letter", "zero", "one"],
        typer.Option(help="How the right option is given: auto (letter or text); zero, one: an index from 0 or from 1."),
    ] = "auto",
    separator: Annotated[str | None, typer.Option(help="Between options in one text; they are then distractors.", show_default=False)] = None,
    letters: Annotated[bool, typer.Option("--letters", help="Print options after letters, and ask for the letter.")] = False,
    n: Annotated[int | None, typer.Option("-n", "--n", help="Stop when so many are kept.", show_default=False)] = None,
    include: Patterns = None, exclude: Patterns = None, include_category: Patterns = None, exclude_category: Patterns = None,
    min_characters: Least = None, max_characters: Least = None, min_tokens: Least = None, max_tokens: Least = None,
    base: Base = None, tuned: Tuned = None,
    min_shared: Annotated[
        float | None,
        typer.Option(
            help="Minimum share of tokens that both models have. Biases the comparison: it selects on the treatment.", show_default=False
        ),
    ] = None,
    near: Annotated[float, typer.Option(help="Similarity from which a near copy is removed.")] = 0.8,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="Read everything, take rows in the order of a hash.")] = False,
    paragraphs: Annotated[bool, typer.Option("--paragraphs", help="In text files blank lines separate prompts.")] = False,
    language: Annotated[str | None, typer.Option(help="Noted in every prompt: en, kk, ru, ...", show_default=False)] = None, seed: Seed = 0,
    one_file: Annotated[bool, typer.Option("--one-file", help="prompts.jsonl instead of fit, select and report.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another set in the folder.")] = False,
    json: AsJson = False,
) -> None:  # fmt: skip
    """Make a prompt set: fields, filters, copies out, fairness between tokenizers, leakage-free splits. Everything dropped is counted.

    Examples:
      mechdiff curate questions.csv --out prompts
      mechdiff curate OWNER/NAME@train --preset choice -n 200 --shuffle --out prompts
    """
    from mechdiff.cli.json_output import print_json
    from mechdiff.cli.printing import show_curation
    from mechdiff.curate.curation import Recipe
    from mechdiff.curate.fields import fields_of

    recipe = Recipe(
        fields=fields_of(
            preset=preset, text=text, category=category, options=options, answer=answer, id=id, answer_from=answer_from, separator=separator,
            letters=letters,
        ),
        n=n, include=tuple(include or ()), exclude=tuple(exclude or ()), include_category=tuple(include_category or ()),
        exclude_category=tuple(exclude_category or ()), characters=(min_characters, max_characters), tokens=(min_tokens, max_tokens),
        near=near, min_shared=min_shared, shuffle=shuffle, seed=seed, language=language, paragraphs=paragraphs,
    )  # fmt: skip
    record = show_curation(sources or [], recipe, _tokenizers(base, tuned), out, one_file=one_file, overwrite=overwrite)
    if json:
        print_json("curate", {"folder": out, **record})
    else:
        print(out)


def _tokenizers(base: str | None, tuned: str | None) -> "Tokenizers | None":
    """The two tokenizers that a set is to be fair between; None where no model is named."""
    from mechdiff.curate.fairness import Tokenizers
    from mechdiff.errors import PromptError
    from mechdiff.models.sources import load_tokenizer, resolve

    if base is None and tuned is None:
        return None
    if base is None or tuned is None:
        raise PromptError("given one of --base and --tuned: fairness is between two tokenizers. Give both, or neither.")
    first = resolve(base)
    return Tokenizers(load_tokenizer(first), load_tokenizer(resolve(tuned, base=first)))
