"""Templates in every form in which folders hold them: what is printed is what transformers prints, and what cannot be printed is said."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from mechdiff.engine.generation import stop_ids
from mechdiff.errors import PromptError
from mechdiff.models.sources import Source, load_tokenizer
from mechdiff.prompts.rendering import Rendered, render
from mechdiff.prompts.sets import Prompt, Turn
from mechdiff.prompts.templates import PromptPolicy, Template, behind_an_answer, said_of_chats, said_of_template, several_templates
from mechdiff.validate.made import BOS, EOS
from pico import pico
from tokenizers_made import CHATML, byte_tokenizer

PARTS = (
    "{{ bos_token }}{% for message in messages %}<{{ message.role }}>{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text | trim }}{% endif %}{% endfor %}" + EOS + "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""As image-text models have it: content is a list of parts."""
SYSTEM_AS_TEXT = (
    "{% for message in messages %}{% if message.role == 'system' %}[{{ message.content | trim }}]{% else %}"
    "({% for part in message.content %}{{ part.text }}{% endfor %}){% endif %}{% endfor %}"
)
"""A system message as text, a user's as parts."""
REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
"""As Gemma's."""
USER = [{"role": "user", "content": "Why?"}]


def one(base: Any, tuned: Any, prompt: Prompt | str = "Why?", **policy: Any) -> Rendered:
    prompt = Prompt(id="p", text=prompt) if isinstance(prompt, str) else prompt
    return render([prompt], base, tuned, PromptPolicy(**policy), max_base=10_000, max_tuned=10_000)[0]


def in_parts(messages: list[dict[str, str]]) -> list[dict[str, Any]]:
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


# ---- the form of content -----------------------------------------------------------------------------------------------------------


def test_a_template_that_wants_parts_is_given_parts() -> None:
    tokenizer = byte_tokenizer(PARTS)
    expected = tokenizer.apply_chat_template(in_parts(USER), tokenize=False, add_generation_prompt=True)
    assert "Why?" in expected
    assert one(tokenizer, tokenizer).text_base == expected
    both = [{"role": "system", "content": "Be brief."}, *USER]
    expected = tokenizer.apply_chat_template(in_parts(both), tokenize=False, add_generation_prompt=True)
    assert "Be brief." in expected
    assert one(tokenizer, tokenizer, system="Be brief.").text_base == expected
    assert one(tokenizer, tokenizer, position="last_user").text_base.endswith("Why?")


def test_a_template_that_wants_the_user_s_parts_alone() -> None:
    tokenizer = byte_tokenizer(SYSTEM_AS_TEXT)
    assert one(tokenizer, tokenizer, system=" Be brief. ").text_base == "[Be brief.](Why?)"


def test_a_template_of_text_is_never_given_parts() -> None:
    """It would print the list itself, in which the text stands too."""
    tokenizer = byte_tokenizer("{% for message in messages %}<{{ message.content }}>{% endfor %}")
    assert one(tokenizer, tokenizer).text_base == "<Why?>"


def test_what_ends_an_answer_is_seen_in_a_template_of_parts() -> None:
    tokenizer = byte_tokenizer(PARTS)
    tokenizer.eos_token = None
    assert behind_an_answer(tokenizer) == EOS
    model = pico("llama")
    model.config.eos_token_id = model.net.generation_config.eos_token_id = None  # type: ignore[union-attr]
    assert stop_ids(model, tokenizer) == {257}, "the end of a turn, and not the start token that the whole text begins with"


# ---- where a template lies ---------------------------------------------------------------------------------------------------------


def loaded(folder: Path) -> Any:
    return load_tokenizer(Source(ref="m", load=str(folder)))


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """A folder with a default template and one named `rag`, as transformers saves them: files of their own."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"default": CHATML, "rag": "RAG " + CHATML}
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_a_template_in_a_file_of_its_own(tmp_path: Path) -> None:
    byte_tokenizer(CHATML).save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").is_file()
    assert "chat_template" not in json.loads((tmp_path / "tokenizer_config.json").read_text())
    expected = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(USER, tokenize=False, add_generation_prompt=True)
    assert one(loaded(tmp_path), loaded(tmp_path)).text_tuned == expected


def test_a_file_of_its_own_goes_before_the_config(tmp_path: Path) -> None:
    """As transformers reads such a folder: an old template stays behind in tokenizer_config.json."""
    byte_tokenizer(CHATML).save_pretrained(tmp_path)
    stated = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(stated | {"chat_template": "old " + CHATML}))
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == CHATML
    assert not one(loaded(tmp_path), loaded(tmp_path)).text_tuned.startswith("old")


@pytest.mark.parametrize("jinja_files", [True, False], ids=["additional_chat_templates", "list in tokenizer_config.json"])
def test_of_several_the_default_is_taken_or_the_one_that_is_named(tmp_path: Path, jinja_files: bool) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"default": CHATML, "rag": "RAG " + CHATML}
    tokenizer.save_pretrained(tmp_path, save_jinja_files=jinja_files)
    assert (tmp_path / "additional_chat_templates" / "rag.jinja").is_file() == jinja_files
    found = loaded(tmp_path)
    expected = found.apply_chat_template(USER, tokenize=False, add_generation_prompt=True)
    assert one(found, found).text_tuned == expected
    assert one(found, found, template="tuned:rag").text_tuned == "RAG " + expected
    assert one(byte_tokenizer(CHATML), found, template="base").text_tuned == expected
    with pytest.raises(PromptError, match=r"none named `tools` \(it has: default, rag\).*template `tuned:default`"):
        one(found, found, template="tuned:tools")
    assert several_templates("tuned", found) == [
        "the tuned model has several (default, rag): `default` is taken; another one by its name, template `tuned:rag`"
    ]


def test_several_without_a_default_are_refused_with_a_name_to_give(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"rag": CHATML, "tools": CHATML}
    with pytest.raises(
        PromptError, match=r"none named `default` \(it has: rag, tools\). One of them is taken by its name: template `tuned:rag`"
    ):
        one(tokenizer, tokenizer)


def test_named_templates_are_part_of_what_a_model_is(named: Path) -> None:
    source = Source(ref="m", load=str(named))
    before = source.files()
    assert "rag.jinja" in before
    (named / "additional_chat_templates" / "rag.jinja").write_text("another")
    assert source.files() != before


def test_a_template_in_the_file_of_an_image_text_processor(tmp_path: Path) -> None:
    """transformers 4 kept it in chat_template.json, which no tokenizer reads."""
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": PARTS}))
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template is None
    expected = byte_tokenizer(PARTS).apply_chat_template(in_parts(USER), tokenize=False, add_generation_prompt=True)
    assert one(loaded(tmp_path), loaded(tmp_path)).text_tuned == expected


def test_a_template_in_an_adapter_s_folder_that_has_no_tokenizer(tmp_path: Path) -> None:
    byte_tokenizer(CHATML).save_pretrained(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "chat_template.jinja").write_text("MINE " + CHATML)
    tuned = load_tokenizer(Source(ref="m", load=str(tmp_path / "base"), adapter=tmp_path / "adapter"))
    assert tuned.chat_template == "MINE " + CHATML
    assert loaded(tmp_path / "base").chat_template == CHATML


def test_one_model_alone_has_a_template() -> None:
    """The tuned model's is printed for both; the base's where it is asked for; and where there is none at all it is said what to do."""
    bare, chat = byte_tokenizer(), byte_tokenizer(CHATML)
    assert one(bare, chat).text_base == one(chat, chat).text_base
    assert one(chat, bare, template="base").text_tuned == one(chat, chat).text_tuned
    for base, tuned in ((chat, bare), (bare, bare)):
        with pytest.raises(PromptError, match=r"the tuned model's chat template, but its tokenizer has none. Choose policy `raw`"):
            one(base, tuned)


# ---- system messages, start tokens ---------------------------------------------------------------------------------------------------


def test_a_template_that_refuses_a_system_message() -> None:
    tokenizer = byte_tokenizer(REFUSES)
    with pytest.raises(
        PromptError, match=r"cannot be rendered: System role not supported. It was given a system message: leave `system` out"
    ):
        one(tokenizer, tokenizer, system="Be brief.")
    assert not Template("it", REFUSES, tokenizer).takes_a_system_message()
    assert Template("it", CHATML, tokenizer).takes_a_system_message()
    assert one(tokenizer, tokenizer).text_base == one(byte_tokenizer(CHATML), byte_tokenizer(CHATML)).text_base
    assert "the tuned model's chat template takes no system message" in said_of_template((tokenizer, tokenizer), PromptPolicy())


def test_a_start_token_is_read_once_though_template_and_tokenizer_both_put_it_there() -> None:
    """The tokenizer puts one in front of bare text; of what a template printed it must not."""
    tokenizer = byte_tokenizer(CHATML)
    assert CHATML.startswith("{{ bos_token }}")
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    found = one(tokenizer, tokenizer)
    ids = tokenizer.apply_chat_template(USER, add_generation_prompt=True)["input_ids"]
    assert list(found.ids_base) == list(ids)
    assert found.ids_base.count(tokenizer.bos_token_id) == 1
    with pytest.raises(PromptError, match=r"two '.*' at the start .* Take one out of the template or the text"):
        one(byte_tokenizer(BOS + CHATML), byte_tokenizer(BOS + CHATML))


def test_a_template_without_the_start_token_is_said() -> None:
    bare = byte_tokenizer(CHATML.removeprefix("{{ bos_token }}"))
    assert one(bare, bare).ids_base[0] != bare.bos_token_id
    said = said_of_template((bare, bare), PromptPolicy())
    assert [f"prints no {BOS}, which the tokenizer puts in front of bare text" in one for one in said] == [True]
    assert said_of_template((byte_tokenizer(CHATML),) * 2, PromptPolicy()) == []
    assert said_of_template((bare, bare), PromptPolicy(policy="raw")) == []


# ---- chats in chats ------------------------------------------------------------------------------------------------------------------


def chats(texts: list[str], tokenizer: Any, **policy: Any) -> list[str]:
    return said_of_chats([Prompt(id=f"p{i}", text=text) for i, text in enumerate(texts)], (tokenizer, tokenizer), PromptPolicy(**policy))


def test_a_prompt_that_is_a_chat_already_is_said() -> None:
    tokenizer = byte_tokenizer(CHATML)
    rendered = one(tokenizer, tokenizer).text_base
    (said,) = chats(["Why?", rendered.removeprefix(BOS), "How?"], tokenizer)
    assert said.startswith("1 of 3 prompts is in a chat format already (the first, p1, holds ")
    assert "choose policy `raw`" in said
    assert chats(["Why?", "How?"], tokenizer) == []
    assert chats([rendered], tokenizer, policy="raw") == [], "which is what such texts are for"


def test_a_frame_of_plain_words_is_told_too() -> None:
    alpaca = byte_tokenizer("{% for message in messages %}### Instruction:\n{{ message.content }}\n{% endfor %}### Response:\n")
    (said,) = chats(["### Instruction:\nSay 2.\n### Response:\n"], alpaca)
    assert "holds '### Instruction:'" in said
    assert chats(["What does '### Instruction:' mean?"], alpaca) == []


# ---- conversations -------------------------------------------------------------------------------------------------------------------

CONVERSATION = Prompt(id="c", text="And 3?", system="Count.", before=(Turn("user", "What comes after 1?"), Turn("assistant", "2")))


@pytest.mark.parametrize("template", [CHATML, PARTS])
def test_earlier_turns_and_a_system_message_are_rendered_as_transformers_does(template: str) -> None:
    tokenizer = byte_tokenizer(template)
    messages = [
        {"role": "system", "content": "Count."}, {"role": "user", "content": "What comes after 1?"}, {"role": "assistant", "content": "2"},
        {"role": "user", "content": "And 3?"},
    ]  # fmt: skip
    given = in_parts(messages) if template == PARTS else messages
    expected = tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=True)
    assert one(tokenizer, tokenizer, CONVERSATION).text_base == expected
    cut = one(tokenizer, tokenizer, CONVERSATION, position="last_user")
    assert cut.text_base == expected[: expected.index("And 3?") + len("And 3?")]
    assert one(tokenizer, tokenizer, CONVERSATION, system="Other.").text_base == expected, "a prompt's own system message goes first"


def test_native_templates_count_from_the_last_user_s_text() -> None:
    other = byte_tokenizer("<<" + CHATML)
    found = one(byte_tokenizer(CHATML), other, CONVERSATION, policy="native")
    shift = len(found.ids_tuned) - len(found.ids_base)
    assert shift == 2
    assert all(j - i == shift for i, j in found.positions)
    assert len(found.positions) == len("And 3?") + 1


def test_without_a_template_a_conversation_is_refused() -> None:
    tokenizer = byte_tokenizer(CHATML)
    with pytest.raises(PromptError, match=r"prompt 'c' has a system message, and policy `raw` renders no template"):
        one(tokenizer, tokenizer, CONVERSATION, policy="raw")
