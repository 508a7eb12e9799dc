"""Write the arithmetic demo prompts: word problems from templates, each with its answer and the steps that lead to it.

    python training/arithmetic_prompts.py src/mechdiff/data/prompts

26 templates with 4 drawings each. A template belongs to one split only (12 fit, 6 select, 8 report), so no split can be solved by
having seen another one. Seeded: the files are a function of this script.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path

NAMES = ["Aida", "Ben", "Clara", "Daniel", "Elif", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Kira", "Leo", "Mona", "Nils", "Olga"]
SEED, DRAWS = 7, 4
SHARES = {"fit": 12, "select": 6, "report": 8}


@dataclass(frozen=True, kw_only=True)
class Template:
    """A word problem: the numbers that are drawn, those that follow from them, the text, and the steps of the solution."""

    name: str
    draw: dict[str, range | list[int]]
    text: str
    steps: list[str]  # expressions in the drawn numbers and in `r1`, `r2`, the values of the earlier steps; the last is the answer
    given: dict[str, str]  # numbers of the text that are computed, so that the answer comes out whole


def template(name: str, text: str, steps: str, draw: dict[str, range | list[int]], **given: str) -> Template:
    return Template(name=name, draw=draw, text=text, steps=steps.split("; "), given=given)


TEMPLATES = [
    template(
        "apples",
        "{name} has {a} apples, gives {b} to a neighbour and picks {c} more. How many apples are there now?",
        "a - b; r1 + c",
        {"a": range(12, 41), "b": range(3, 10), "c": range(2, 16)},
    ),
    template(
        "tickets",
        "{name} buys {a} adult tickets at {b} dollars each and {c} child tickets at {d} dollars each. What is the total price?",
        "a * b; c * d; r1 + r2",
        {"a": range(2, 6), "b": range(8, 16), "c": range(2, 7), "d": range(3, 8)},
    ),
    template(
        "pages",
        "{name} reads {a} pages a day for {b} days and then has {c} pages left. How many pages does the book have?",
        "a * b; r1 + c",
        {"a": range(12, 31), "b": range(4, 10), "c": range(15, 91)},
    ),
    template(
        "eggs",
        "{name} carries {a} boxes of 12 eggs and {b} eggs break. How many eggs stay whole?",
        "a * 12; r1 - b",
        {"a": range(3, 10), "b": range(2, 8)},
    ),
    template(
        "train",
        "A train runs at {a} kilometres per hour for {b} hours, then covers another {c} kilometres. How far does it travel in total?",
        "a * b; r1 + c",
        {"a": [60, 70, 80, 90, 110], "b": range(2, 6), "c": range(10, 46)},
    ),
    template(
        "sharing",
        "{name} keeps {b} of {total} marbles and shares the rest equally among {a} friends. How many does each friend get?",
        "total - b; r1 / a",
        {"a": range(3, 9), "b": range(2, 10), "each": range(4, 13)},
        total="a * each + b",
    ),
    template(
        "wages",
        "{name} earns {a} dollars an hour, works {b} hours and spends {c} dollars. How much money remains?",
        "a * b; r1 - c",
        {"a": range(11, 20), "b": range(6, 21), "c": range(15, 51)},
    ),
    template(
        "fence",
        "A garden is {a} metres long and {b} metres wide. How many metres of fence go around it?",
        "a + b; 2 * r1",
        {"a": range(12, 41), "b": range(5, 12)},
    ),
    template(
        "bakery",
        "A bakery takes {a} trays with {b} rolls each out of the oven and sells {c} rolls. How many rolls are left over?",
        "a * b; r1 - c",
        {"a": range(4, 10), "b": range(15, 31), "c": range(20, 56)},
    ),
    template(
        "ages",
        "{name} is {a} years old and Grandfather is {b} times as old. How old will Grandfather be in {c} years?",
        "b * a; r1 + c",
        {"a": range(10, 15), "b": range(5, 7), "c": range(2, 10)},
    ),
    template(
        "discount",
        "A coat costs {a} dollars and is reduced by {b} percent. What does {name} pay for it?",
        "a * b / 100; a - r1",
        {"a": [40, 60, 80, 120, 160, 200], "b": [10, 20, 30, 40]},
    ),
    template(
        "buses",
        "{b} buses are full with {a} pupils each, and {c} pupils walk. How many pupils are on the trip?",
        "b * a; r1 + c",
        {"a": range(38, 56), "b": range(2, 6), "c": range(6, 31)},
    ),
    template(
        "saving",
        "{name} starts with {a} dollars and puts aside {b} dollars every week. How much is saved after {c} weeks?",
        "b * c; a + r1",
        {"a": range(10, 61), "b": range(6, 19), "c": range(5, 13)},
    ),
    template(
        "recipe",
        "A recipe for {a} people needs {total} grams of rice. How many grams does {name} need for {b} people?",
        "total / a; r1 * b",
        {"a": [2, 4], "b": range(5, 12), "each": [40, 50, 60, 75]},
        total="a * each",
    ),
    template(
        "water",
        "A tank holds {a} litres and loses {b} litres a minute. How many litres are in it after {c} minutes?",
        "b * c; a - r1",
        {"a": range(150, 301), "b": range(4, 10), "c": range(8, 16)},
    ),
    template(
        "chairs",
        "A hall has {a} rows of {b} chairs. {c} people sit down. How many chairs stay empty?",
        "a * b; r1 - c",
        {"a": range(8, 15), "b": range(9, 17), "c": range(30, 71)},
    ),
    template(
        "change",
        "{name} pays for {a} notebooks at {b} dollars each with a 50-dollar note. How much change comes back?",
        "a * b; 50 - r1",
        {"a": range(3, 7), "b": range(4, 9)},
    ),
    template(
        "stickers",
        "{name} has {a} stickers and Tom has {b} more than that. How many stickers do they own together?",
        "a + b; a + r1",
        {"a": range(20, 61), "b": range(5, 26)},
    ),
    template(
        "average",
        "On three days {name} counts {low}, {a} and {high} birds. What is the average per day?",
        "low + a + high; r1 / 3",
        {"a": range(20, 61), "b": range(2, 10)},
        low="a - b",
        high="a + b",
    ),
    template(
        "bricks",
        "A wall has {a} layers of {b} bricks each, and {c} more bricks get spoiled. How many bricks does the mason use up?",
        "a * b; r1 + c",
        {"a": range(6, 16), "b": range(14, 31), "c": range(3, 21)},
    ),
    template(
        "running",
        "{name} runs {a} laps of {b} metres on each of 3 mornings. How many metres is that altogether?",
        "a * b; 3 * r1",
        {"a": range(5, 13), "b": [200, 300, 400]},
    ),
    template(
        "candles",
        "{name} has {packs} packs of {a} candles and burns the same number on each of {b} nights. How many burn each night?",
        "packs * a; r1 / b",
        {"a": [6, 8, 10, 12], "b": [2, 3, 6], "each": range(3, 9)},
        packs="each * b",
    ),
    template(
        "meeting",
        "A meeting lasts {a} hours and {b} minutes, with a break of {c} minutes in it. How many minutes are spent working?",
        "a * 60 + b; r1 - c",
        {"a": range(2, 5), "b": [10, 15, 25, 40], "c": [20, 30, 45]},
    ),
    template(
        "flowers",
        "{name} ties {a} bunches, each of {b} roses and {c} lilies. How many flowers are needed?",
        "b + c; a * r1",
        {"a": range(4, 10), "b": range(5, 10), "c": range(2, 5)},
    ),
    template(
        "library",
        "A village library owns {a} books. {b} are lent out, and later {c} of them return. How many are on the shelves?",
        "a - b; r1 + c",
        {"a": range(120, 401), "b": range(30, 81), "c": range(10, 30)},
    ),
    template(
        "rope",
        "{name} cuts a rope of {total} metres into pieces of {a} metres, and {b} metres remain. How many pieces are there?",
        "total - b; r1 / a",
        {"a": range(4, 10), "b": range(2, 4), "pieces": range(4, 13)},
        total="a * pieces + b",
    ),
]


def drawn(source: Template, rng: random.Random) -> tuple[str, str, list[str]]:
    """(text, answer, solved steps) of one drawing."""
    numbers: dict[str, int] = {key: rng.choice(values) for key, values in source.draw.items()}
    for key, expression in source.given.items():
        numbers[key] = eval(expression, {}, numbers)
    text = source.text.format(name=rng.choice(NAMES), **numbers)
    solved = []
    for i, expression in enumerate(source.steps, start=1):
        result = eval(expression, {}, numbers)
        assert result == max(1, int(result)), f"{source.name}: {expression} is {result}"
        numbers[f"r{i}"] = int(result)
        shown = " ".join(str(numbers.get(word, word)) for word in expression.split())
        solved.append(f"{shown} = {int(result)}".replace("*", "×").replace("/", "÷"))
    return text, str(numbers[f"r{len(source.steps)}"]), solved


def problems(split: str, templates: list[Template], rng: random.Random) -> list[dict]:
    """`DRAWS` different problems of each template, in turn."""
    rows: dict[str, dict] = {}
    for number in range(1, DRAWS + 1):
        for source in templates:
            text, answer, solved = drawn(source, rng)
            while text in rows:
                text, answer, solved = drawn(source, rng)
            meta = {"solution": ". ".join(solved) + ".", "cluster": source.name}
            rows[text] = {"id": f"arithmetic-{split}-{source.name}-{number}", "text": text, "label": answer, "meta": meta}
    return list(rows.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path)
    target = parser.parse_args().target
    rng, first = random.Random(SEED), 0
    for split, n in SHARES.items():
        lines = [json.dumps(row, ensure_ascii=False) for row in problems(split, TEMPLATES[first : first + n], rng)]
        (target / f"arithmetic_{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        first += n


if __name__ == "__main__":
    main()
