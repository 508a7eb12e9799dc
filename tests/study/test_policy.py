"""A study that leaves the prompt policy to the tokenizers reads prompts as they can be read, and says so; what was asked for is never replaced."""

from types import SimpleNamespace
from typing import Any

import pytest

from mechdiff.errors import PromptError
from mechdiff.measures.catalogue import make_study
from mechdiff.study.prepare import with_policy

SOME = "{{ messages[0].content }}"


def study(**prompts: Any) -> Any:
    return make_study({"pair": {"base": "a", "tuned": "b"}, "prompts": {"file": "p.jsonl", **prompts}})


def tokenizers(base: str | None, tuned: str | None) -> dict[str, Any]:
    return {"base": SimpleNamespace(chat_template=base), "tuned": SimpleNamespace(chat_template=tuned)}


@pytest.mark.parametrize(
    ("base", "tuned", "policy", "template", "said"),
    [
        (SOME, SOME, "same_text", "tuned", ""),
        (None, SOME, "same_text", "tuned", ""),
        (SOME, None, "same_text", "base", "The tuned model has no chat template: both models read the prompts in the base model's."),
        (None, None, "raw", "tuned", "Neither model has a chat template: both read the prompts as bare text (policy raw)."),
    ],
)
def test_the_tokenizers_decide(base: str | None, tuned: str | None, policy: str, template: str, said: str) -> None:
    settled, told = with_policy(study(), tokenizers(base, tuned))
    assert (settled.prompts.policy, settled.prompts.template) == (policy, template)
    assert told == ([said] if said else [])


@pytest.mark.parametrize("asked", [{"policy": "same_text"}, {"policy": "raw"}, {"policy": "native"}])
def test_what_is_asked_for_stays(asked: dict[str, str]) -> None:
    assert with_policy(study(**asked), tokenizers(None, None)) == (study(**asked), [])


def test_a_template_that_is_named_is_taken() -> None:
    settled, _ = with_policy(study(template="base"), tokenizers(None, SOME))
    assert (settled.prompts.policy, settled.prompts.template) == ("same_text", "base")


def test_a_system_message_needs_a_template() -> None:
    with pytest.raises(PromptError, match=r"given system 'Be kind\.', and neither model has a chat template"):
        with_policy(study(system="Be kind."), tokenizers(None, None))
