"""Prompt files are read whole or refused with file and line; splits keep clusters together, whatever the order."""

import codecs
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechdiff.errors import PromptError
from mechdiff.prompts.sets import SPLITS, Prompt, n_words, read_prompts, split_prompts


def write(folder, content):
    path = folder / "prompts.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_prompt_file_is_read_whole(tmp_path):
    path = write(
        tmp_path,
        '{"text": "What is 2+2?", "id": "sum", "label": "4", "meta": {"cluster": "sums"}}\n'
        '{"text": "Наурыз қашан?"}\n'
        '{"id": 7, "text": " kept as given \\n"}\n',
    )
    assert read_prompts(path) == [
        Prompt(id="sum", text="What is 2+2?", label="4", meta={"cluster": "sums"}),
        Prompt(id="line-2", text="Наурыз қашан?"),
        Prompt(id="7", text=" kept as given \n"),
    ]


def test_blank_lines_count_but_hold_no_prompt(tmp_path):
    path = write(tmp_path, '\n{"text": "a"}\r\n  \n{"text": "b"}')
    assert [prompt.id for prompt in read_prompts(path)] == ["line-2", "line-4"]


def test_only_a_line_feed_ends_a_line(tmp_path):
    text = "one\u2028two\u0085three\u000bfour"
    path = write(tmp_path, json.dumps({"text": text}, ensure_ascii=False) + "\n")
    assert [prompt.text for prompt in read_prompts(path)] == [text]


def test_a_byte_order_mark_and_nulls_are_no_content(tmp_path):
    path = write(tmp_path, codecs.BOM_UTF8 + b'{"text": "a", "id": null, "label": null, "meta": null}\n')
    assert read_prompts(str(path)) == [Prompt(id="line-1", text="a")]


@given(texts=st.lists(st.text('aé😀қ\u0301\u2028\n"\\ ', min_size=1).filter(str.strip), min_size=1), ascii_only=st.booleans())
def test_what_is_written_as_json_is_read_back(tmp_path_factory, texts, ascii_only):
    lines = "\n".join(json.dumps({"text": text}, ensure_ascii=ascii_only) for text in texts)
    path = write(tmp_path_factory.getbasetemp(), lines)
    assert [prompt.text for prompt in read_prompts(path)] == texts


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', r"line 2: malformed JSON \(Expecting ',' delimiter: column 13"),
        ("text: a", r"line 2: malformed JSON"),
        ('{"text": "a"} {"text": "b"}', r"line 2: malformed JSON \(Extra data"),
        ("[" * 100_000, r"line 2: malformed JSON"),
        ('["a"]', r"line 2: a JSON list, not an object"),
        ('"a"', r"line 2: a JSON str, not an object"),
        ("{}", r"line 2: `text` is None; it must be a string that is not empty"),
        ('{"text": ""}', r"line 2: `text` is ''"),
        ('{"text": " \\n"}', r"line 2: `text` is ' \\n'"),
        ('{"text": 5}', r"line 2: `text` is 5"),
        (
            '{"text": "a", "lable": "b"}',
            r"line 2: unknown key 'lable'; known keys: text, id, label, options, meta, system, before\. Did you mean 'label'\?",
        ),
        ('{"text": "a", "answer": "b"}', r"line 2: unknown key 'answer'.*into meta"),
        ('{"text": "a", "id": true}', r"line 2: `id` is True"),
        ('{"text": "a", "id": ""}', r"line 2: `id` is ''.*line-2"),
        ('{"text": "a", "id": 1.5}', r"line 2: `id` is 1.5"),
        ('{"text": "a", "label": 4}', r"line 2: `label` is 4; it must be a string"),
        ('{"text": "a", "meta": "x"}', r"line 2: `meta` is 'x'; it must be an object"),
        (b'{"text": "caf\xe9"}', r"line 2: not UTF-8 \(at byte 14 of the line\)"),
        ('{"text": "a\\ud83d"}', r"line 2: half of a surrogate pair"),
    ],
)
def test_a_faulty_line_is_named_with_what_to_do(tmp_path, line, message):
    path = write(tmp_path, b'{"text": "fine"}\n' + (line if isinstance(line, bytes) else line.encode()) + b"\n")
    with pytest.raises(PromptError, match=r"prompts\.jsonl, " + message):
        read_prompts(path)


@pytest.mark.parametrize(("first", "second"), [('"a"', '"a"'), ("1", '"1"'), ('"line-3"', "null")])
def test_an_id_given_twice_names_both_lines(tmp_path, first, second):
    path = write(tmp_path, f'{{"text": "x", "id": {first}}}\n\n{{"text": "y", "id": {second}}}\n')
    with pytest.raises(PromptError, match=r"prompts\.jsonl: lines 1 and 3 have the same id"):
        read_prompts(path)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_an_error(tmp_path, content):
    with pytest.raises(PromptError, match=r"prompts\.jsonl holds no prompts"):
        read_prompts(write(tmp_path, content))


def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(PromptError, match=r"nowhere\.jsonl cannot be read \(No such file or directory\)\. Give a JSON Lines file"):
        read_prompts(tmp_path / "nowhere.jsonl")
    with pytest.raises(PromptError, match="cannot be read"):
        read_prompts(tmp_path)


def set_of(n, **meta):
    return [Prompt(id=f"p{i}", text=f"question {i}", meta=meta) for i in range(n)]


PROMPTS = st.lists(st.tuples(st.sampled_from("abcdefghijkl"), st.one_of(st.none(), st.integers(0, 4))), min_size=3, max_size=40).map(
    lambda pairs: [Prompt(id=str(i), text=t, meta={} if c is None else {"cluster": c}) for i, (t, c) in enumerate(pairs)]
)


def n_joined(prompts):
    """How many groups are left where prompts with one text or one cluster are joined, pair by pair."""
    groups = []
    for prompt in prompts:
        marks = {("text", prompt.text), ("cluster", prompt.meta.get("cluster", f"alone {prompt.id}"))}
        groups = [one for one in groups if not one & marks] + [marks.union(*(one for one in groups if one & marks))]
    return len(groups)


@given(PROMPTS, st.integers(0, 5), st.randoms(use_true_random=False))
def test_splits_are_a_partition_by_cluster_in_file_order(prompts, seed, rng):
    splits = split_prompts(prompts, seed)
    assert tuple(splits) == (SPLITS if n_joined(prompts) >= len(SPLITS) else ("report",))
    assert all(splits.values()), "no split is empty"
    assert sorted(int(prompt.id) for members in splits.values() for prompt in members) == list(range(len(prompts)))
    for members in splits.values():
        assert members == sorted(members, key=lambda prompt: int(prompt.id)), "file order is kept"
    where = {prompt.id: name for name, members in splits.items() for prompt in members}
    for first in prompts:
        for second in prompts:
            if first.text == second.text or first.meta.get("cluster", first.id) == second.meta.get("cluster", second.id):
                assert where[first.id] == where[second.id]
    shuffled = rng.sample(prompts, len(prompts))
    again = split_prompts(shuffled, seed)
    assert {prompt.id: name for name, members in again.items() for prompt in members} == where
    renamed = [Prompt(id=f"other {prompt.id}", text=prompt.text, meta=prompt.meta) for prompt in prompts]
    assert [[p.text for p in members] for members in split_prompts(renamed, seed).values()] == [
        [p.text for p in members] for members in splits.values()
    ]


@pytest.mark.parametrize(("n", "sizes"), [(3, (1, 1, 1)), (5, (3, 1, 1)), (10, (6, 2, 2)), (150, (90, 30, 30)), (503, (301, 101, 101))])
def test_splits_hold_60_20_and_20_percent(n, sizes):
    splits = split_prompts(set_of(n), seed=0)
    assert tuple(len(splits[name]) for name in SPLITS) == sizes


def test_the_seed_decides_and_nothing_else():
    prompts = set_of(60)
    assert split_prompts(prompts, seed=1) == split_prompts(list(prompts), seed=1)
    reports = {tuple(prompt.id for prompt in split_prompts(prompts, seed)["report"]) for seed in range(8)}
    assert len(reports) == 8


def test_a_split_is_the_same_on_every_machine():
    report = split_prompts(set_of(10), seed=0)["report"]
    assert [prompt.id for prompt in report] == ["p2", "p4"]


def test_every_prompt_lands_everywhere_over_the_seeds():
    prompts = set_of(10)
    seen = {(prompt.id, name) for seed in range(80) for name, members in split_prompts(prompts, seed).items() for prompt in members}
    assert len(seen) == 30


def test_a_shared_text_joins_two_clusters():
    linked = [Prompt(id="1", text="a", meta={"cluster": "x"}), Prompt(id="2", text="b", meta={"cluster": "x"})]
    linked += [Prompt(id="3", text="b", meta={"cluster": "y"}), Prompt(id="4", text="c", meta={"cluster": "y"})]
    for seed in range(20):
        splits = split_prompts(linked + set_of(4), seed)
        assert {tuple(sorted(p.id for p in members if p.id in "1234")) for members in splits.values()} == {(), ("1", "2", "3", "4")}


@pytest.mark.parametrize(
    "prompts",
    [
        set_of(1),
        set_of(2),
        set_of(9, cluster="one"),
        [Prompt(id=str(i), text="the same") for i in range(9)],
        [*set_of(5, cluster="one"), Prompt(id="x", text="other")],
    ],
)
def test_fewer_than_three_clusters_are_all_reported(prompts):
    assert split_prompts(prompts, seed=0) == {"report": prompts}


def test_prompts_with_metadata_can_stand_in_sets():
    assert len({Prompt(id="a", text="t", meta={"cluster": [1]}), Prompt(id="a", text="t", meta={"cluster": [1]})}) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "q", "options": "ab", "label": "a"}', "at least two different texts"),
        ('{"text": "q", "options": ["a", "a"], "label": "a"}', "at least two different texts"),
        ('{"text": "q", "options": ["a", " "], "label": "a"}', "at least two different texts"),
        ('{"text": "q", "options": ["a", "b"], "label": "c"}', "none of its `options`"),
        ('{"text": "q", "options": ["a", "b"]}', "none of its `options`"),
    ],
)
def test_options_are_different_texts_and_the_label_is_one_of_them(tmp_path, line, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text(line)
    with pytest.raises(PromptError, match=message):
        read_prompts(path)
    path.write_text('{"text": "q", "options": ["3", "4"], "label": "4"}')
    assert read_prompts(path)[0].options == ("3", "4")


def test_words_are_runs_of_letters_marks_and_digits():
    assert n_words("cafe\u0301 қазақ שלום 漢字 😀 x-1") == 6
