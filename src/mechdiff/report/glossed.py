"""A finished page learns what its words mean: a tooltip where a section first uses one, and the glossary at its end. HTML in, HTML out.

Heads are called as the field calls them, L21H5, whatever the key of their row is.

Only the page's own sentences are looked through (leads, notes, captions, titles, heads of tables), never what a model or a prompt said.
"""

import re

from markupsafe import escape

from mechdiff import glossary
from mechdiff.report import phrasing
from mechdiff.report.phrasing import INTERVAL

SECTION = re.compile(r"<section\b.*?</section>", re.DOTALL)
SENTENCES = re.compile(r"(?P<opens><(?P<tag>figcaption|h3|p|th)(?P<attributes>\s[^>]*)?>)(?P<inside>.*?)(?P<closes></(?P=tag)>)", re.DOTALL)
OURS = re.compile(r'class="(?:[\w-]+ )*(?:lead|note|title|key|verdict)\b|scope="col"')
CELL = re.compile(r"(<td[^>]*>)([^<]*)(</td>)")
TEXT = re.compile(r"([^<]*)(<[^>]*>)?")


def glossed(html: str) -> str:
    """The page with tooltips, greyed intervals of few prompts, and its glossary folded at the end of everything."""
    used: dict[str, glossary.Word] = {}
    html = SECTION.sub(lambda found: _section(found[0], used), html)
    html = CELL.sub(lambda found: found[1] + INTERVAL.sub(_grey, found[2]) + found[3], html)
    words = [word for word in glossary.WORDS if word.name in used]
    return re.sub(r"(</div>\s*)?</main>", lambda end: _table(words) + end[0], html, count=1) if words else html


def _section(html: str, used: dict[str, glossary.Word]) -> str:
    here: set[str] = set()
    if not html.startswith('<section id="record"'):
        html = phrasing.HEAD.sub(r"L\1H\2", html)

    def sentence(found: re.Match) -> str:
        if found["tag"] in ("p", "th") and not OURS.search(found["attributes"] or ""):
            return found[0]
        return found["opens"] + TEXT.sub(lambda piece: _marked(piece[1], here, used) + (piece[2] or ""), found["inside"]) + found["closes"]

    return SENTENCES.sub(sentence, html)


def _marked(text: str, here: set[str], used: dict[str, glossary.Word]) -> str:
    """A piece of text without tags, each word's first use in this section marked."""
    pieces, done = [], 0
    for start, end, word in glossary.occurrences(text):
        if word.name in here:
            continue
        here.add(word.name)
        used[word.name] = word
        pieces += [text[done:start], f'<dfn tabindex="0" title="{escape(word.means)}">{text[start:end]}</dfn>']
        done = end
    return "".join([*pieces, text[done:]])


def _grey(found: re.Match) -> str:
    return f'<span class="few">{found[0]}</span>' if found["few"] else found[0]


def _table(words: list[glossary.Word]) -> str:
    lines = [
        f"<dt>{escape(word.name)}</dt><dd>{escape(word.means)}{f' <cite>{escape(word.reference)}</cite>' if word.reference else ''}</dd>"
        for word in words
    ]
    folded = f"<details><summary>{len(lines)} terms of this page</summary><dl>{''.join(lines)}</dl></details>"
    return f'<section id="glossary"><h2>Glossary</h2>{folded}</section>\n'
