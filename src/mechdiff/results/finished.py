"""A finished run is read in Python: its numbers, answers, tables and figures. In a notebook it shows its overview."""

from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mechdiff.errors import RunError
from mechdiff.measures.catalogue import CHAPTERS
from mechdiff.report.drawing import WIDE
from mechdiff.report.export import chart, drawn_figures, export
from mechdiff.report.overview.overview import Overview, overview
from mechdiff.report.overview.shown import html, section
from mechdiff.report.page import page_of
from mechdiff.report.parts import Drawn
from mechdiff.report.parts import Run as Content
from mechdiff.report.parts import load as load_content
from mechdiff.report.sections import all_sections
from mechdiff.report.verdict import verdict
from mechdiff.results import card, document, numbers, tables
from mechdiff.store.tables import read_manifest, read_rows, read_summary

if TYPE_CHECKING:
    import polars as pl

Ranked = Literal["heads", "outputs", "modules", "matrices", "prompts"]


@dataclass(frozen=True)
class Run:
    """A finished run's folder. In a notebook it shows its overview.

    Tables are polars data frames; `.to_pandas()` makes them pandas'. `mechdiff.diff` and `mechdiff.open_run` return one:

    >>> run = mechdiff.open_run(folder)
    >>> print(run.overview().tiles[0].title)
    How much?
    """

    path: Path

    @property
    def results(self) -> "pl.DataFrame":
        """The numbers of the six first answers, about twenty: `question name value unit low high n prompts section sentence
        caveat key`.

        `low` and `high` are the ends of the 95 % interval; shares are 0 to 1; `prompts` says which texts a number is of. results.json has the same.

        >>> run.results.filter(question="how_much").select("key", "unit")["unit"].to_list()[0]
        'nats'
        """
        return numbers.table(self._results)

    def answers(self) -> "pl.DataFrame":
        """Both models' whole answers to the test prompts, those that differ most first: `prompt asked base tuned words_alike kl_nats`.

        >>> run.answers().columns
        ['prompt', 'asked', 'base', 'tuned', 'words_alike', 'kl_nats']
        """
        return tables.answers(self._content)

    def tables(self) -> dict[str, str]:
        """The names of the tables that `table` takes, and what a row of each is.

        >>> run.tables()["weights"]
        'a tensor: how far it moved, and the rank and spectrum of its change'
        """
        return tables.names(self._content)

    def table(self, name: str) -> "pl.DataFrame":
        """One of `tables()`, a row a thing that was measured: where (`layer`, `component`, `head`), which way, `effect low high n`.

        `effect` is a share of KL(tuned || base), 0 to 1; direction "base<-tuned" runs the base with the tuned model's part. Raises RunError for a
        name that is not there.

        >>> run.table("patching").columns[:5]
        ['name', 'layer', 'component', 'direction', 'effect']
        """
        return tables.table(self._content, name)

    def top(self, what: Ranked, n: int = 10) -> "pl.DataFrame":
        """The `n` strongest heads, outputs (of attention and MLPs) or modules, by what they recover in the base; the most changed matrices; the
        prompts with the largest KL. What is under the numerical noise is left out. Raises RunError where it was not measured.

        >>> run.top("matrices", 1)["component"].item()
        'mlp'
        """
        return tables.top(self._content, what, n)

    def tokens(self, prompt: int | str = 0) -> "pl.DataFrame":
        """A text token by token: `position token kl_nats base tuned part`; KL after the token, and both models' likeliest next one.

        `prompt`: a number (0: the text with the largest KL) or a prompt's name. Raises RunError where no text was read so.

        >>> run.tokens(0).columns
        ['position', 'token', 'kl_nats', 'base', 'tuned', 'part']
        """
        return tables.tokens(self._content, prompt)

    def logit_lens(self, prompt: int | str = 0) -> "pl.DataFrame":
        """What each layer of both models reads at a prompt's last token: `layer base tuned base_kl_nats tuned_kl_nats`.

        `base` and `tuned` are the likeliest tokens; the KLs, means over the prompts read, say how far a layer is from what comes out. Raises
        RunError where the run did not measure `words`.
        """
        return tables.logit_lens(self._content, prompt)

    def figures(self) -> dict[str, str]:
        """The names of the report's figures, and their captions.

        >>> "overview_layers" in run.figures()
        True
        """
        return {name: drawn.caption for name, drawn in self._drawn.items()}

    def figure(self, name: str, *, width: int = WIDE) -> Any:
        """One of the report's figures as an altair chart, which notebooks show and `.save` writes (svg, png, pdf, html). `width`: pixels.

        Raises RunError for a name that is not there.

        >>> run.figure("overview_layers").save(folder / "figure1.svg")
        """
        if name not in self._drawn:
            raise RunError(f"no figure is called {name!r} in {self.path}. There are: {', '.join(self._drawn)}.")
        return chart(self._content, self._drawn[name], width)

    def overview(self) -> Overview:
        """What stands first on the page: six answers with their numbers, and pairs of answers. `.data()` makes it plain data."""
        return self._overview

    def verdict(self) -> list[str]:
        """What was found, in at most five sentences."""
        return verdict(self._content, CHAPTERS)

    def rows(self) -> "pl.DataFrame":
        """Every value, by the row contract: one a row, per prompt (docs/STATISTICS.md)."""
        return read_rows(self.path)

    def summary(self) -> "pl.DataFrame":
        """Means, intervals, shares and floors, one line for each value that is not per prompt."""
        return read_summary(self.path)

    def manifest(self) -> dict[str, Any]:
        """The run's record: models, prompts, versions, self-check, numerical noise, what was skipped."""
        return read_manifest(self.path)

    def report(self) -> Path:
        """Builds report.html and results.json anew from the folder; returns the page's path."""
        for name in ("_content", "_overview", "_results"):
            self.__dict__.pop(name, None)
        page = page_of(self._content, CHAPTERS, self.path)
        self.write_results()
        return page

    def write_results(self) -> Path:
        """Writes results.json (docs/PYTHON.md) into the run's folder; returns its path."""
        return document.write(document.document(self._content, self._overview, self._results), self.path)

    def card(self, into: str | Path | None = None, *, page: str = "report.html", base_model: str | None = None) -> str:
        """A model card for the Hub: front matter, and the six answers with links to `page` (an address, or the page's path beside the card).

        `into`: a README.md that gets both; what it says already stays, and the block of an earlier run is replaced. `base_model`: the base's id on
        the Hub, where the run was given a folder.

        >>> print(run.card(base_model="owner/base").splitlines()[1])
        base_model: owner/base
        """
        manifest = self.manifest()
        fields = card.front_matter(manifest, base_model)
        told = card.block(self._overview, manifest, page, fields.get("base_model"))
        if into is not None:
            card.into(Path(into), fields, told)
        return card.card(fields, told)

    def export(self, out: str | Path, **options: Any) -> Path:
        """Every figure at column widths, and summary.md with every table, into a folder: see `report/export.py`. Returns the summary's path."""
        return export(self._content, CHAPTERS, Path(out), **options)

    @cached_property
    def _content(self) -> Content:
        return load_content(self.path)

    @cached_property
    def _overview(self) -> Overview:
        return overview(self._content, CHAPTERS, self.verdict())

    @cached_property
    def _results(self) -> list[numbers.Result]:
        return numbers.results(self._content, CHAPTERS)

    @cached_property
    def _drawn(self) -> dict[str, Drawn]:
        return drawn_figures([section(self._overview), *all_sections(self._content, CHAPTERS)])

    def __dir__(self) -> list[str]:
        return sorted(name for name in {*vars(type(self)), "path"} if not name.startswith("_"))

    def _repr_html_(self) -> str:
        names = " → ".join(escape(name) for name in (self._overview.base, self._overview.tuned))
        return f"<b>{names}</b>{html(self._overview)}<code>{escape(str(self.path / 'report.html'))}</code>"


def open_run(path: str | Path) -> Run:
    """The finished run in a folder. Raises RunError where there is none.

    >>> mechdiff.open_run(folder).path == folder
    True
    """
    read_manifest(path)
    return Run(Path(path))
