"""Both models read a corpus of any size, from Python: sums of their activations (`moments`), and in which texts they part (`scan`)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechdiff.store.run_folder import RunFolder
from mechdiff.study.config import RunOptions

if TYPE_CHECKING:
    from mechdiff.study.cells import Cell
    from mechdiff.study.on_ray import Task
    from mechdiff.study.run import Progress


def moments(
    base: str, tuned: str, corpus: str | Path, sites: list[str], *, out: str | Path, positions: str = "all", longest: int = 512, shard: int = 1024,
    dtype: str = "float32", options: RunOptions | None = None, progress: "Progress" = lambda what, share: None,
) -> dict[str, Any]:  # fmt: skip
    """Sums of both models' states over a corpus of any size, at some sites ("L3.resid_post"), and what they say: CKA, mean difference, maps, rank.

    `corpus`: JSON Lines with a `text` in every line. `shard` texts are one unit of work and of storage. Returns the record of OUT/moments.json; the
    sums and the maps (`mechdiff.load_map`) lie beside it. Raises MechdiffError for what a user can put right.
    """
    from mechdiff.models.pair import open_pair
    from mechdiff.study.corpus import open_corpus, write
    from mechdiff.study.on_ray import corpus_task

    options, out = options or RunOptions(), Path(out)
    texts = {"path": str(corpus), "sites": sites, "positions": positions, "longest": longest, "shard": shard}
    given: dict[str, Any] = {"pair": _opened_by(base, tuned, dtype, options), "texts": texts}
    read = open_corpus(open_pair(**given["pair"]), **given["texts"])
    shards = read.levels[0]
    steps = (shards[:1], shards[1:], *read.levels[1:])  # the first shard gives the centre
    with _computed(
        read, corpus_task(read, given), steps, out, options, lambda cell, done: progress(cell.stage, done / len(read.cells))
    ) as folder:
        return write(read, folder, out)


def scan(
    corpus: str | Path, *, base: str, tuned: str, out: str | Path, dtype: str = "float32", options: RunOptions | None = None,
    progress: "Progress" = lambda what, share: None, **asked: Any,
) -> dict[str, Any]:  # fmt: skip
    """Both models read every text of a corpus: where they part, on which kinds of text, and which texts hold a direction of the change.

    `corpus`: JSON Lines, text, CSV, Parquet, a folder saved by `datasets`, or a Hub id. `asked`: field, longest, chunk, matrices, vectors, as in
    `mechdiff scan`. Returns the record of OUT/scan.json (docs/SCAN.md); texts.parquet, a row a text, and report.html lie beside it.
    Raises MechdiffError for what a user can put right.
    """
    from mechdiff.scanning import scan as scanning

    options, out = options or RunOptions(), Path(out)
    given = {"pair": _opened_by(base, tuned, dtype, options), "asked": {"corpus": str(corpus), **asked}}
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    read = scanning.open_scan(given)
    n, steps = len(read.cells), ((read.directions,), read.chunks)  # texts are held against directions

    def computed(cell: "Cell", done: int) -> None:
        progress(f"{cell.stage}: {done} of {n}", done / n)

    with _computed(read, scanning.task(read, given), steps, out, options, computed) as folder:
        return scanning.write(read, folder, out)


def _opened_by(base: str, tuned: str, dtype: str, options: RunOptions) -> dict[str, Any]:
    """The arguments of `open_pair`."""
    how = {"device": options.device, "memory": options.memory, "trusted": options.trust_remote_code}
    return {"base": base, "tuned": tuned, "dtype": dtype, **how}


@contextmanager
def _computed(
    read: Any, task: "Task", steps: Sequence[Sequence["Cell"]], out: Path, options: RunOptions, computed: Callable[["Cell", int], None]
) -> Iterator[RunFolder]:
    """The folder of a corpus with all its cells, computed step by step, here or on Ray. `computed` hears of each, and how many there are by then."""
    from mechdiff.study.corpus import Here
    from mechdiff.study.on_ray import workers_for

    with ExitStack() as stack:
        folder = stack.enter_context(RunFolder.open(out, config_hash=read.hash, study_text=read.text(), cells=options.cells))
        crew: Any = Here(folder, task.compute)
        if options.ray is not None:
            crew = stack.enter_context(workers_for(task, folder, options.ray, options, read.bytes))
        done = sum(folder.has(cell.key) for cell in task.cells)
        for cells in steps:
            for cell in crew.compute([cell for cell in cells if not folder.has(cell.key)], lambda cell: None):
                done += 1
                computed(cell, done)
        yield folder
