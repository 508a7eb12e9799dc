"""The table of decoder types in docs/FAMILIES.md is written: how far mechdiff goes with a tiny random pair of each type that transformers can make.

python tools/families.py [TYPE ...]      some ten minutes of one core; with types: only prints them
"""

import sys
import tempfile
import warnings
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from decoders import OF_IMAGES, OUT_OF_SCOPE, STEPS, Walked, decoders, walk, wrappers  # noqa: E402

PAGE = ROOT / "docs" / "FAMILIES.md"
BEGIN, END = "<!-- decoders: written by `make families` -->", "<!-- end of decoders -->"


def walked(kinds: list[str]) -> list[Walked]:
    """Every type, one after the other."""
    found = []
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            found.append(walk(kind, Path(folder)))
        one = found[-1]
        print(f"{one.kind}: {one.row}, {one.engine}, {', '.join(one.done)} {one.reason}", flush=True)
    return found


def table(found: list[Walked]) -> list[str]:
    """A line a type."""
    lines = ["| type | row | engine | " + " | ".join(STEPS) + " | what stops it |", "|---" * (4 + len(STEPS)) + "|"]
    for one in found:
        marks = ["yes" if step in one.done else "-" for step in STEPS]
        lines.append(f"| {one.kind} | {one.row} | {one.engine or '-'} | {' | '.join(marks)} | {one.reason[:160].replace('|', '/')} |")
    return lines


def write(texts: list[Walked], images: list[Walked]) -> None:
    """The table, into the page."""
    whole, heads = (sum(one.whole for one in texts), sum("heads" in one.done for one in texts))
    said = (
        f"With transformers {transformers.__version__}: of {len(texts)} decoder types {whole} run divergence, weights, grafting and patching of "
        f"three kinds of site both ways on a row that the self-check proved, {heads} of them heads; of {len(images)} image-text types, text in and "
        f"text out, {sum(one.whole for one in images)}. Out of scope: encoders and halves of encoder-decoders "
        f"({', '.join(sorted({*OUT_OF_SCOPE, *OF_IMAGES}))})."
    )
    page = PAGE.read_text()
    head = page.partition(BEGIN)[0].rstrip()
    PAGE.write_text(
        "\n".join([head, "", BEGIN, "", said, "", *table(texts), "", *table(images), "", END]) + page.partition(END)[2].rstrip() + "\n"
    )


def main() -> None:
    """Write the page, or print the types that were asked for."""
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    if sys.argv[1:]:
        walked(sys.argv[1:])
        return
    write(walked(decoders()), walked(wrappers()))


if __name__ == "__main__":
    main()
