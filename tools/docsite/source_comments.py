"""What stands behind the fields of a class, as comments, is read from its source: the reference says of a key what its author says of it."""

import ast
import inspect
import io
import textwrap
import tokenize


def of_fields(kind: type) -> dict[str, str]:
    """Field -> the comment on its lines, or the text that stands under it; those of the classes that it extends first."""
    said: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if one.__module__.startswith("mechdiff"):
            said |= in_text(textwrap.dedent(inspect.getsource(one)))
    return said


def in_text(source: str) -> dict[str, str]:
    """Name -> its comment, of the annotated names and the keys of dictionaries in a class or an assignment."""
    comments = {
        token.start[0]: token.string.lstrip("# ").split("type: ignore")[0].strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and not token.string.startswith("# fmt")
    }
    body = ast.parse(source).body
    statements = body[0].body if isinstance(body[0], ast.ClassDef) else body
    said = {}
    for place, node in enumerate(statements):
        if not isinstance(node, ast.AnnAssign):
            continue
        if isinstance(node.target, ast.Name) and not isinstance(node.value, ast.Dict):
            under = statements[place + 1] if place + 1 < len(statements) else None
            text = " ".join(comments[line] for line in range(node.lineno, (node.end_lineno or node.lineno) + 1) if line in comments)
            if not text and isinstance(under, ast.Expr) and isinstance(under.value, ast.Constant) and isinstance(under.value.value, str):
                text = " ".join(under.value.value.split())
            said[node.target.id] = text
        if isinstance(node.value, ast.Dict):
            said |= {
                str(key.value): comments[key.lineno] for key in node.value.keys if isinstance(key, ast.Constant) and key.lineno in comments
            }
    return said
