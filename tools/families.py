"""The table of decoder types in docs/FAMILIES.md is written: how far mechdiff goes with a tiny random pair of each type that transformers can make.

python tools/families.py [TYPE ...]      some ten minutes of one core; with types: only prints them
python tools/families.py --routers       two minutes: only what the page says of mixtures of experts
"""

import sys
import tempfile
import warnings
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from decoders import OF_IMAGES, OUT_OF_SCOPE, STEPS, Walked, decoders, mixtures, routes, walk, wrappers  # noqa: E402

PAGE = ROOT / "docs" / "FAMILIES.md"
BEGIN, END = "<!-- decoders: written by `make families` -->", "<!-- end of decoders -->"

ROUTED, ROUTED_END = "<!-- routers: written by `make families` -->", "<!-- end of routers -->"


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


def write_routers(kinds: list[str]) -> None:
    """Of the types with experts, whose routers are read and why others' are not, into the page."""
    said = {kind: routes(kind) for kind in mixtures(kinds)}
    read = [kind for kind, one in said.items() if one == "yes"]
    others = "; ".join(f"{kind} ({one[:120].replace('|', '/')})" for kind, one in said.items() if one != "yes")
    text = (
        f"With transformers {transformers.__version__}, `routing` reads the routers of {len(read)} of the {len(said)} types whose config speaks of "
        f"experts and of which a tiny model can be made: {', '.join(read)}. Not of {others}."
    )
    page = PAGE.read_text()
    PAGE.write_text(page.partition(ROUTED)[0] + f"{ROUTED}\n\n{text}\n\n{ROUTED_END}" + page.partition(ROUTED_END)[2])
    print(text)


def main() -> None:
    """Write the page, or print the types that were asked for."""
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    if sys.argv[1:] != ["--routers"] and sys.argv[1:]:
        walked(sys.argv[1:])
        return
    write_routers([*decoders(), *wrappers()])
    if sys.argv[1:]:
        return
    write(walked(decoders()), walked(wrappers()))


if __name__ == "__main__":
    main()
