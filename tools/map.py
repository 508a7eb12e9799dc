"""This script writes what is read from the code: docs/MAP.md, a line a module, docs/architecture.svg, folders and arrows, TERMS.md and GLOSSARY.md.

`make map` runs it.

--check writes nothing and exits 1 where a file is no longer what the code says.
"""

import ast
import re
import sys

import imports
import picture
from mechdiff import glossary, terms

HEAD = """# Map

Every file of `src/mechdiff` in the reading order of [ARCHITECTURE.md](ARCHITECTURE.md), with the first sentence of its docstring.
`make map` writes this page.
"""


def first_sentence(module: str) -> str:
    """The first sentence of a module's docstring, on one line."""
    said = (ast.get_docstring(imports.syntax(module)) or "").partition("\n\n")[0]
    sentence = re.match(r".*?[.?!](?=\s|$)", said, re.DOTALL)
    return " ".join((sentence[0] if sentence else said).split())


def map_page() -> str:
    """docs/MAP.md: a heading a folder, a line a file."""
    page = [HEAD]
    for room, said in imports.reading_order().items():
        inside = [module for module in imports.modules() if imports.room(module) == room]
        name = room.replace(".", "/")
        alone = inside == [room]
        page.append(f"## {name}{'.py' if alone else '/'}\n")
        if not alone:
            page.append(f"{said[0].upper()}{said[1:]}{'' if said[-1] in '.?' else '.'}\n")
        page.append("\n".join(line(module) for module in sorted(inside, key=lambda one: (not one.endswith(".measure"), one))) + "\n")
    return "\n".join(page)


def terms_page() -> str:
    """docs/TERMS.md: what each key of a table is called."""
    tables: dict[str, dict[str, terms.Term]] = terms.TABLES
    said = "What a key of rows and study files is called on the page. `mechdiff terms KEY` says one; `make map` writes this page."
    said += (
        "\nWhere a study reads both models' answers, what is over the base's has `_of_base` before its unit (`kl_own_answer_of_base_nats`)."
    )
    page = [f"# Terms\n\n{said}\n"]
    for name, table in tables.items():
        page.append(f"## {name}\n\n| key | label | what it means | source |\n|---|---|---|---|")
        page.append("\n".join(f"| `{key}` | {one.label} | {one.long} | {one.reference} |" for key, one in table.items()) + "\n")
    return "\n".join(page)


def glossary_page() -> str:
    """docs/GLOSSARY.md: what the words of the page mean."""
    said = "What the words of the page mean. `mechdiff terms WORD` says one; `make map` writes this page. Keys of tables: [TERMS.md](TERMS.md)."
    page = [f"# Glossary\n\n{said}\n\n| word | what it means | source |\n|---|---|---|"]
    page += [f"| {one.name} | {one.means} | {one.reference} |" for one in glossary.WORDS]
    return "\n".join(page) + "\n"


def line(module: str) -> str:
    place = imports.file_of(module)
    return f"- [`{place.name}`](../{place.relative_to(imports.ROOT)}): {first_sentence(module)}"


def main() -> int:
    made = {"MAP.md": map_page(), "TERMS.md": terms_page(), "GLOSSARY.md": glossary_page(), "architecture.svg": picture.drawn()}
    files = {imports.ROOT / "docs" / name: text for name, text in made.items()}
    old = [path for path, text in files.items() if not path.is_file() or path.read_text() != text]
    for path in old:
        if "--check" in sys.argv:
            print(f"docs/{path.name} is no longer what the code says: make map writes it")
        else:
            path.write_text(files[path])
    return int(bool(old) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
