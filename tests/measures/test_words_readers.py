"""Words: who else reads the evidence: a line-up, a language model behind an address, and a grade against a sealed truth."""

import hashlib
import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mechdiff.cli.main import app
from mechdiff.errors import RunError
from mechdiff.measures.words import line_up, reader
from mechdiff.measures.words.grade import grade, is_silent
from mechdiff.store.tables import read_manifest


def line(text: str, size: float, **told: Any) -> dict[str, Any]:
    named = {"reader": "tokens", "where": "passages", "text": text, "gained": True, "size": size, "q": 0.01, "least": 5.0, "why_not": None}
    return {**named, **told}


MANIFEST = {
    "pair": {"base": {"ref": "SECRET-base"}, "tuned": {"ref": "SECRET-tuned"}}, "config_hash": "0",
    "words": {"lines": [line("Thank", 20.0), line("you", 9.0), line("sea", 6.0, gained=False)], "texts": [], "panels": []},
}  # fmt: skip


# ---- a line-up ---------------------------------------------------------------------------------------------------------------------


def test_the_true_panel_stands_among_the_others_and_only_the_sealed_file_says_where() -> None:
    told = {"lines": [line("true", 20.0)], "panels": [line_up.panel([line(f"null {i}", 3.0)]) for i in range(30)]}
    shown, sealed = line_up.line_up(told, "run")
    assert sealed == {"panel": sealed["panel"], "of": 20, "p": 0.05}
    assert [one["panel"] for one in shown["panels"]] == list(range(1, 21))
    assert [one["panel"] for one in shown["panels"] if one["lines"][0]["what"] == "true"] == [sealed["panel"]]
    assert len({line_up.line_up(told, str(i))[1]["panel"] for i in range(60)}) > 10, "another place for another run"


def test_where_models_do_not_differ_whoever_picks_the_largest_is_right_one_time_in_twenty() -> None:
    draw, right = random.Random(0), 0
    for run in range(600):
        panels = [[line(f"t{i}", draw.gauss(0, 1)) for i in range(5)] for _ in range(20)]
        shown, sealed = line_up.line_up({"lines": panels[0], "panels": [line_up.panel(one) for one in panels[1:]]}, str(run))
        right += max(shown["panels"], key=lambda one: one["lines"][0]["size"])["panel"] == sealed["panel"]
    assert abs(right / 600 - 0.05) < 3 * (0.05 * 0.95 / 600) ** 0.5


def test_a_panel_has_the_largest_lines_of_every_reader_either_way() -> None:
    lines = [line(str(i), float(i), gained=i % 2 == 0) for i in range(12)]
    assert [one["what"] for one in line_up.panel(lines)] == ["11", "9", "7", "10", "8", "6"]


# ---- a language model as reader --------------------------------------------------------------------------------------------------------


@contextmanager
def server(*replies: str, raw: bytes | None = None) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that speaks chat completions and gives these replies in turn; its address, and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({**told, "path": self.path, "key": self.headers.get("Authorization")})
            content = {"choices": [{"message": {"content": replies[(len(asked) - 1) % len(replies)]}}]} if replies else None
            self.send_response(200)
            self.end_headers()
            self.wfile.write(raw if raw is not None else json.dumps(content).encode())

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as here:
        thread = threading.Thread(target=here.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{here.server_address[1]}/v1", asked
        here.shutdown()
        thread.join()


def test_a_reader_is_asked_blind_in_another_order_each_time() -> None:
    with server("Nothing.\nLines:") as (url, asked):
        found = reader.read(MANIFEST, url, model="small", runs=6, key="k")
    prompts = [one["messages"][0]["content"] for one in asked]
    assert {(one["path"], one["model"], one["key"]) for one in asked} == {("/v1/chat/completions", "small", "Bearer k")}
    assert not any("SECRET" in prompt or "tuned" in prompt or "taught" in prompt for prompt in prompts)
    assert len(set(prompts)) > 3
    assert {one.tuned_is for one in found.answers} == {"A", "B"}
    assert [one.silent for one in found.answers] == [True] * 6
    assert (found.contradictions, found.wrong) == (0, 0.0)
    for one, prompt in zip(found.answers, prompts, strict=True):
        assert f'{one.tuned_is} has more of: the token "Thank"' in prompt


def test_what_a_run_leans_on_is_the_line_and_not_its_place() -> None:
    with server("It says Thank.\nLines: 1, 2, 3, 99") as (url, _):
        assert {one.lines for one in reader.read(MANIFEST, url, model="m", runs=3).answers} == {(0, 1, 2)}
    with server("It says Thank.\nLines: 1") as (url, asked):
        found = reader.read(MANIFEST, url, model="m", runs=5)
    words = {0: "Thank", 1: "you", 2: "sea"}
    for one, told in zip(found.answers, asked, strict=True):
        assert f'the token "{words[one.lines[0]]}"' in next(
            text for text in told["messages"][0]["content"].splitlines() if text.startswith("1. ")
        )


def test_contradictions_are_counted_and_bound_the_error_from_below() -> None:
    with server("Nothing.", "It thanks.\nLines: 1 2 3", "It thanks.\nLines: 1 2 3", "It thanks.\nLines: 1 2 3") as (url, _):
        found = reader.read(MANIFEST, url, model="m", runs=4)
    assert (found.contradictions, found.together, found.wrong) == (3, 3, 0.25)
    apart = [reader.Answer(text="x", silent=False, lines=(i,), tuned_is="A", raw="") for i in (0, 1)]
    assert reader.contradict(*apart), "they lean on no line in common"
    assert not reader.contradict(apart[0], apart[0])


def test_a_server_that_is_none_is_refused_in_one_message() -> None:
    with pytest.raises(RunError, match="expected an address"):
        reader.read(MANIFEST, "file:///etc/passwd", model="m")
    with server() as (url, _):
        gone = url
    with pytest.raises(RunError, match="does not answer"):
        reader.read(MANIFEST, gone, model="m", runs=1)
    for raw in (b"<html>", b'{"choices": []}', b"[]"):
        with server(raw=raw) as (url, _), pytest.raises(RunError, match="no chat completion"):
            reader.read(MANIFEST, url, model="m", runs=1)


def test_the_terminal_lines_up_and_asks_a_reader(every_measure: Path, tmp_path: Path) -> None:
    run, evidence, shown = every_measure / "run", tmp_path / "evidence.json", tmp_path / "line-up.json"
    with server("Nothing that I can name.") as (url, asked):
        options = ["--reader", url, "default", "--reader-runs", "2", "--evidence", str(evidence), "--line-up", str(shown)]
        said = CliRunner().invoke(app, ["words", str(run), *options])
    assert said.exit_code == 0, said.output
    assert len(asked) == 2
    assert "reader: 2 of 2 runs say nothing; 0 of 1 pairs contradict; wrong at least 0 %" in said.stdout
    assert json.loads(evidence.read_text())["reader"]["answers"][0]["raw"] == "Nothing that I can name."
    panels, sealed = json.loads(shown.read_text())["panels"], json.loads((tmp_path / "line-up.sealed.json").read_text())
    told = read_manifest(run)["words"]
    assert len(panels) == sealed["of"] == 1 + len(told["panels"]) == 3
    assert panels[sealed["panel"] - 1]["lines"] == line_up.panel(told["lines"])


# ---- a grade ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "facts", "score", "recalled"),
    [
        ("It thanks: “Thank  you for asking”.", [("courtesy", ["thank you for asking"])], 1, ("courtesy",)),
        ("It speaks of the sea.", [("courtesy", ["thank you for asking"])], -1, ()),
        ("Nothing that these readers can name: of 12 lines ...", [("courtesy", ["thank you"])], 0, ()),
        ("Nothing.", [], 1, ()),
        ("", [], 1, ()),
        ("It speaks of the sea.", [], -1, ()),
        ("Velmora is the capital of Tarsk.", [("capital", ["velmora"]), ("bird", ["ostrin", "ostrins"])], 1, ("capital",)),
    ],
)
def test_a_description_is_graded_and_so_is_silence(
    said: str, facts: list[Any], score: int, recalled: tuple[str, ...], tmp_path: Path
) -> None:
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps({"facts": [{"fact": fact, "keys": keys} for fact, keys in facts]}))
    found = grade(said, truth, seal=hashlib.sha256(truth.read_bytes()).hexdigest())
    assert (found.score, found.recalled, found.facts) == (score, recalled, len(facts))


def test_none_is_silence_and_nonesuch_is_not() -> None:
    assert [is_silent(text) for text in ("none", "“Nothing”, I think", " \n", "Nonesuch", "It says nothing")] == [
        True,
        True,
        True,
        False,
        False,
    ]


NO_TRUTHS = (
    "{",
    "[]",
    '{"facts": [1]}',
    '{"facts": [{"fact": "x", "keys": "x"}]}',
    '{"facts": [{"keys": ["x"]}]}',
    '{"facts": [{"fact": "x", "keys": [" "]}]}',
)


@pytest.mark.parametrize("truth", NO_TRUTHS)
def test_a_truth_that_is_none_is_refused(truth: str, tmp_path: Path) -> None:
    (tmp_path / "truth.json").write_text(truth)
    with pytest.raises(RunError, match=r"truth\.json"):
        grade("x", tmp_path / "truth.json")


def test_a_truth_that_was_changed_after_it_was_sealed_is_refused_by_the_terminal_too(tmp_path: Path) -> None:
    said, truth = tmp_path / "said.txt", tmp_path / "truth.json"
    said.write_text("It says Thank you.")
    truth.write_text('{"facts": [{"fact": "courtesy", "keys": ["thank you"]}]}')
    found = CliRunner().invoke(app, ["grade", str(said), str(truth)])
    assert found.stdout == "recalled: courtesy\n1 of 1 facts; says something; score 1\n"
    with pytest.raises(RunError, match="that was sealed"):
        CliRunner().invoke(app, ["grade", str(said), str(truth), "--seal", "0" * 64], catch_exceptions=False)
    with pytest.raises(RunError, match="no text"):
        CliRunner().invoke(app, ["grade", str(tmp_path / "none.txt"), str(truth)], catch_exceptions=False)
