"""Whole prompt sets: every row is kept or counted, splits leak nothing, the same recipe gives the same bytes."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechdiff.curate.copies import RELATED, Copies, pieces, similarity
from mechdiff.curate.curation import STEPS, Recipe, curate, write
from mechdiff.curate.fairness import Tokenizers, script_of
from mechdiff.curate.fields import Fields
from mechdiff.errors import PromptError
from mechdiff.prompts.sets import SPLITS, read_prompts
from tokenizers_made import bpe_tokenizer, byte_tokenizer

SHARED = Path(__file__).parents[3] / "shared" / "data"
THINGS = ["river", "mountain", "teapot", "violin", "lantern", "harbour", "meadow", "compass"]


def source(folder: Path, texts: list[str], **more: list) -> str:
    path = folder / "source.jsonl"
    path.write_text("".join(json.dumps({"text": text, **{key: more[key][i] for key in more}}) + "\n" for i, text in enumerate(texts)))
    return str(path)


def dropped(made) -> dict[str, int]:
    return {step["step"]: step["dropped"] for step in made.record["steps"]}


def test_every_row_is_kept_or_counted(tmp_path):
    texts = [
        "What is a river?",
        "what  is a RIVER?",
        "What is a rivers?",
        "Tell me of the mountain",
        "bad word here",
        "x",
        "Қазақ тілі туралы айт",
        "Name a teapot",
    ]
    kinds = ["a", "a", "a", "a", "a", "a", "b", "nothing"]
    given = source(tmp_path, [*texts, ""], category=[*kinds, "a"])
    recipe = Recipe(exclude=("bad word",), exclude_category=("^NOTHING$",), characters=(3, None), near=0.7)
    made = curate([given], recipe)
    assert dropped(made) == {"fields": 1, "category": 1, "text": 2, "copies": 1, "near copies": 1, "tokens": 0, "shared": 0}
    assert [one.text for one in made.prompts] == ["What is a river?", "Tell me of the mountain", "Қазақ тілі туралы айт"]
    came = [step["came"] for step in made.record["steps"]]
    assert [step["step"] for step in made.record["steps"]] == list(STEPS)
    assert came[0] == 9 == made.record["rows_read"]
    assert all(a - step["dropped"] == b for a, b, step in zip(came, came[1:], made.record["steps"], strict=False))
    assert next(step for step in made.record["steps"] if step["step"] == "copies")["first"] == "source.jsonl, row 2"


def test_patterns_see_any_script_and_any_form_of_letters(tmp_path):
    given = source(tmp_path, ["Абайдың өлеңдері", "АБАЙ кім?", "cafe\u0301 culture", "nothing"])
    assert [one.text for one in curate([given], Recipe(include=("абай", "café"))).prompts] == [
        "Абайдың өлеңдері",
        "АБАЙ кім?",
        "cafe\u0301 culture",
    ]


@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from(THINGS), st.integers(0, 400)), min_size=12, max_size=40), st.integers(0, 5))
def test_related_prompts_never_stand_on_both_sides_of_a_split(tmp_path_factory, parts, seed):
    folder = tmp_path_factory.mktemp("set")
    texts = [f"Please describe the old {thing} near our town in the year {1500 + year}" for thing, year in parts]
    made = curate([source(folder, texts)], Recipe(seed=seed, near=1.0))
    split_of = {one.text: name for name, part in made.splits.items() for one in part}
    for one in split_of:
        for other in split_of:
            if similarity(pieces(one), pieces(other)) >= 0.75:
                assert split_of[one] == split_of[other]


def test_a_cluster_of_the_source_stays_one(tmp_path):
    meta = [{"cluster": "c"} if i % 4 == 0 else {} for i in range(24)]
    given = source(tmp_path, [f"{THINGS[i % 8] * (1 + i // 8)} {i}" for i in range(24)], meta=meta)
    made = curate([given], Recipe(near=1.0))
    together = [one for one in made.prompts if one.meta["row"] % 4 == 1]
    assert len({one.meta["cluster"] for one in together}) == 1
    assert sum(any(one in part for one in together) for part in made.splits.values()) == 1


def test_near_copies_are_told_by_their_true_similarity():
    copies = Copies(threshold=0.8, seed=0)
    copies.keep("a", "Describe the capital of the country in two sentences.", [], question="")
    (name, near), *_ = copies.near("Describe the capital of the country in ten sentences.")
    assert name == "a"
    assert near == similarity(
        pieces("Describe the capital of the country in two sentences."), pieces("describe the capital  of the country in ten sentences.")
    )
    assert RELATED < near < 1
    assert copies.same("DESCRIBE the capital of\nthe country in two sentences.")
    assert not list(copies.near("Қазақстанның астанасы туралы екі сөйлем жаз."))


def test_the_limit_on_shared_tokens_says_what_it_selects(tmp_path):
    english, kazakh = [f"the {thing} is old {i}" for i, thing in enumerate(THINGS)], [f"ескі өзен туралы айтшы {thing}" for thing in THINGS]
    given = source(tmp_path, english + kazakh, category=["en"] * 8 + ["kk"] * 8)
    tokenizers = Tokenizers(byte_tokenizer(), bpe_tokenizer(kazakh * 9, 420))
    made = curate([given], Recipe(min_shared=0.7, near=1.0), tokenizers=tokenizers)
    fair = made.record["fairness"]
    assert fair["by_category"]["en"]["dropped"] < fair["by_category"]["kk"]["dropped"]
    assert fair["by_script"]["Cyrillic"]["mean_shared_tuned"] < 0.7 <= fair["by_script"]["Latin"]["mean_shared_tuned"]
    assert "selects on the treatment" in fair["said"]
    assert fair["base"]["mean"] == pytest.approx(1), "every byte is a token of both"
    assert sum(fair["tuned"]["histogram"]["counts"]) == fair["n"] == 16
    assert dropped(made)["shared"] == 16 - fair["kept"] == 16 - len(made.prompts)
    free = curate([given], Recipe(near=1.0), tokenizers=tokenizers)
    assert len(free.prompts) == 16, "without a limit nothing is dropped"
    assert free.prompts[0].meta["tokens_base"] == len(english[0])


def test_lengths_are_held_in_both_tokenizers(tmp_path):
    given = source(tmp_path, ["short", "a text that has more bytes than that"])
    tokenizers = Tokenizers(byte_tokenizer(), bpe_tokenizer(["a text that has more bytes than that"] * 9, 420))
    made = curate([given], Recipe(tokens=(None, 20)), tokenizers=tokenizers)
    assert [one.text for one in made.prompts] == ["short"]
    with pytest.raises(PromptError, match="need both tokenizers"):
        curate([given], Recipe(tokens=(1, None)))


def test_the_same_recipe_gives_the_same_bytes_and_another_is_refused(tmp_path):
    given = source(tmp_path, [f"{thing} number {i}" for i in range(4) for thing in THINGS])
    first = write(curate([given], Recipe()), tmp_path / "one")
    second = write(curate([given], Recipe()), tmp_path / "two")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert write(curate([given], Recipe()), tmp_path / "one") == first
    with pytest.raises(PromptError, match="holds another prompt set"):
        write(curate([given], Recipe(seed=1)), tmp_path / "one")
    write(curate([given], Recipe(seed=1)), tmp_path / "one", overwrite=True)
    record = json.loads((tmp_path / "two" / "curation.json").read_text())
    assert set(record["outputs"]) == {"fit.jsonl", "select.jsonl", "report.jsonl"}
    kept = [one for split in SPLITS for one in read_prompts(tmp_path / "two" / f"{split}.jsonl")]
    assert len(kept) == record["kept"]


def test_sources_take_turns_and_reading_stops(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("".join(f"{name} {thing} {i * 7919}\n" for i, thing in enumerate(THINGS * 9)))
    made = curate([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")], Recipe(n=6, near=1.0))
    assert [one.text[0] for one in made.prompts] == ["a", "b"] * 3
    assert made.record["stopped_early"]
    assert [one["rows_read"] for one in made.record["sources"]] == [3, 3]
    taken = curate([str(tmp_path / "a.txt")], Recipe(n=6, near=1.0, shuffle=True))
    assert [one.meta["row"] for one in taken.prompts] != [1, 2, 3, 4, 5, 6]


def test_without_a_source_the_set_that_ships():
    made = curate([], Recipe())
    assert made.record["shipped_set"]
    assert made.record["kept"] >= 300
    assert {script_of(one.text) for one in made.prompts} == {"Latin", "Cyrillic"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"include": ("(",)}, "is no regular expression"),
        ({"near": 0.2}, "near: given 0.2"),
        ({"min_shared": 1.5}, "min_shared: given 1.5"),
        ({"n": 0}, "n: given 0, expected at least 1"),
        ({"characters": (9, 3)}, "no prompt is both"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(given, message):
    with pytest.raises(PromptError, match=message):
        Recipe(**given)


def test_a_set_that_would_be_empty_says_why(tmp_path):
    given = source(tmp_path, ["a text", "another"])
    with pytest.raises(PromptError, match=r"all of 2 rows are dropped: text: 2 \(no include pattern is found\)"):
        curate([given], Recipe(include=("nowhere",)))
    with pytest.raises(PromptError, match=r"The columns are: text\. Say which one is which"):
        curate([given], Recipe(fields=Fields(text="body")))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(PromptError, match="no rows"):
        curate([str(tmp_path / "empty.txt")], Recipe())


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared folder with real data is not beside the repository")
@pytest.mark.parametrize(
    ("names", "fields", "least"),
    [
        (["mmlu_elementary_mathematics.csv"], {"preset": "choice", "answer_from": "zero"}, 150),
        (["gsm8k_test.jsonl"], {"preset": "maths"}, 250),
        (["math500_fit.jsonl"], {"preset": "maths"}, 250),
        (["kazakh_culture_fit.jsonl", "kazakh_culture_report.jsonl"], {}, 300),
        (
            ["truthfulqa.csv"],
            {"preset": "choice", "text": "Question", "answer": "Best Answer", "options": "Incorrect Answers", "separator": ";"},
            300,
        ),
        (["xstest.csv"], {"category": "label"}, 250),
    ],
)
def test_real_data(names, fields, least):
    made = curate([str(SHARED / name) for name in names], Recipe(fields=Fields(**fields), n=400))
    assert len(made.prompts) >= least
    counted = sum(step["dropped"] for step in made.record["steps"]) + len(made.prompts)
    assert counted == made.record["rows_read"]
    if fields.get("preset") == "choice":
        assert all(one.label in one.options for one in made.prompts)
    if fields.get("preset") == "maths":
        assert all(one.label for one in made.prompts)
