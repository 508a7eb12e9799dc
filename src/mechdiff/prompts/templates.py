"""A chat template turns a prompt into the text that both models read, and what a template does and does not take is seen by printing with it.

A tokenizer brings its template in one of several places, which transformers puts together (docs/FORMATS.md): `chat_template` of its
tokenizer_config.json, a file chat_template.jinja, a list of named ones. Of several the one named `default` is taken, unless the study names another
(`template: tuned:NAME`). Most templates take a message's content as text; those of image-text models may want a list of parts. Which one it is
decides what comes out: the first form in which the user's text is printed. No torch here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from jinja2 import TemplateError

from mechdiff.errors import PromptError
from mechdiff.prompts.sets import Prompt, Turn

DEFAULT_DATE = "26 Jul 2024"
"""What a template's clock says when the policy pins no date (Llama's templates print this day where there is no clock)."""

CHOICES = "Choose policy `raw` (no template), or policy `same_text` with template `base`, `tuned` or the path of a Jinja file."
MARK = "\u27eathe user's own text\u27eb"
"""Printed in a prompt's place, to see what a template puts around it."""
LEAST_FRAME = 3
"""Characters, white space left aside, from which what a template puts in front of a text is told from chance."""

T = TypeVar("T")
Pair = tuple[T, T]  # of the base model and the tuned one, or from and to
Message = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PromptPolicy:
    """How a prompt becomes what the models read, and which of its tokens is the decision position."""

    policy: Literal["same_text", "native", "raw"] = "same_text"
    """One rendered string for both; each model its own template; or the bare text with the tokenizer's default special tokens."""
    template: str = "tuned"
    """For `same_text`: whose template, "tuned" or "base" ("tuned:NAME": one of several), or the path of a Jinja file (it prints the tuned model's
    special tokens)."""
    position: Literal["decision", "last_user"] = "decision"
    """The last token of what is rendered, or the token that ends the user's own text (white space around it left aside)."""
    system: str | None = None
    """A system message; None leaves it to the template."""
    date: str | None = None
    """The date that a template prints; None leaves it to the template, with DEFAULT_DATE where it would look at the clock."""
    answer: str | None = None
    """What the answer is made to begin with: text put behind everything else ("The answer is ("), so that the next token is the one asked for."""


def of_a_model(template: str) -> tuple[str, str] | None:
    """("tuned", "NAME" or "") of `tuned:NAME`, where a template is one of a model's own; None: it is a file."""
    side, _, name = template.partition(":")
    return (side, name) if side in ("base", "tuned") else None


@dataclass(frozen=True)
class Template:
    """A chat template, and the tokenizer whose special tokens it prints."""

    name: str
    source: str
    tokenizer: Any

    def print(self, text: str, policy: PromptPolicy, prompt: Prompt | None = None) -> str:
        """The conversation that ends in a user's text, with the opening of the answer; `prompt`: whose system message and earlier turns it has."""
        turns = _turns(text, policy, prompt)
        printed = self._printed(turns, policy, self._form(turns[0].role == "system"))
        for turn in turns:
            what = {"system": "system message", "assistant": "assistant's turn", "user": "user's text"}[turn.role]
            if turn.text.strip() not in printed:
                raise PromptError(
                    f"{self.name} does not print the {what} {_short(turn.text)} as given. Leave it out, or change the template. {CHOICES}"
                )
        return printed + (policy.answer or "")

    def around(self, policy: PromptPolicy, prompt: Prompt | None = None) -> Pair[str]:
        """What it puts in front of a user's text and behind it."""
        before, _, after = self.print(MARK, policy, prompt).partition(MARK)
        return before, after

    def user_span(self, prompt: Prompt, printed: str, policy: PromptPolicy) -> Pair[int]:
        """Where in `printed` the user's own text stands, as characters from and to, without the white space around it."""
        before, after = self.around(policy, prompt)
        inner = printed[len(before) : len(printed) - len(after)]
        if before + inner + after != printed or inner.strip() != prompt.text.strip():
            raise PromptError(
                f"prompt {prompt.id!r}: {self.name} does not print the user's text once and unchanged, so that its place in the rendered text is "
                f"unknown. Choose position `decision` with policy `same_text`, or another template. {CHOICES}"
            )
        start = len(before) + len(inner) - len(inner.lstrip())
        return start, start + len(prompt.text.strip())

    def in_parts(self) -> bool:
        """Whether it wants the user's content as a list of parts."""
        return self._form(False) != "text"

    def takes_a_system_message(self) -> bool:
        """Whether it prints one that is given."""
        try:
            self.print("?", PromptPolicy(system=MARK))
        except PromptError:
            return False
        return True

    @cached_property
    def _forms(self) -> "dict[bool, Form]":
        return {}

    def _form(self, system: bool) -> "Form":
        """How the template takes messages, with a system message or without: the first form in which it prints all that is given; else text."""
        if system not in self._forms:
            self._forms[system] = next((form for form in FORMS if self._prints(system, form)), "text")
        return self._forms[system]

    def _prints(self, system: bool, form: "Form") -> bool:
        turns = [*([Turn("system", _SYSTEM)] if system else []), Turn("user", MARK)]
        try:
            printed = self._printed(turns, PromptPolicy(), form)
        except PromptError:
            return False
        return all(turn.text in printed for turn in turns)

    def _printed(self, turns: Sequence[Turn], policy: PromptPolicy, form: "Form") -> str:
        pinned: dict[str, str] = {} if policy.date is None else {"date_string": policy.date}
        source = self.source
        if "strftime_now" in source:  # a clock: the same prompt would be rendered otherwise tomorrow
            pinned["pinned_date"] = policy.date or DEFAULT_DATE
            source = "{% macro strftime_now(format) %}{{ pinned_date }}{% endmacro %}\n" + source
        try:
            printed: str = self.tokenizer.apply_chat_template(
                _messages(turns, form), chat_template=source, add_generation_prompt=True, tokenize=False, **pinned
            )
        except (TemplateError, TypeError) as error:
            hint = " It was given a system message: leave `system` out if it takes none." if turns[0].role == "system" else ""
            raise PromptError(f"{self.name} cannot be rendered: {error}.{hint} {CHOICES}") from error
        return printed


Form = Literal["text", "user parts", "parts"]
FORMS: tuple[Form, ...] = ("text", "user parts", "parts")
"""A message's content: its text; a list of one part that is text, for all but the system message; the same for all."""
_SYSTEM = "\u27eathe system's own text\u27eb"


def _turns(text: str, policy: PromptPolicy, prompt: Prompt | None) -> list[Turn]:
    """The messages of a prompt, the user's text last. A prompt's own system message goes before the policy's."""
    system = policy.system if prompt is None or prompt.system is None else prompt.system
    return [*([] if system is None else [Turn("system", system)]), *(prompt.before if prompt else ()), Turn("user", text)]


def _messages(turns: Sequence[Turn], form: Form) -> list[Message]:
    parts = {"text": (), "parts": ("system", "user", "assistant"), "user parts": ("user", "assistant")}[form]
    return [{"role": turn.role, "content": [{"type": "text", "text": turn.text}] if turn.role in parts else turn.text} for turn in turns]


def behind_an_answer(tokenizer: Any) -> str:
    """What a tokenizer's template prints behind the model's answer, without white space in front; empty where it has none or none can be seen."""
    if not tokenizer.chat_template:
        return ""
    for form in FORMS:
        try:
            printed = str(tokenizer.apply_chat_template(_messages([Turn("user", "?"), Turn("assistant", MARK)], form), tokenize=False))
        except (TemplateError, TypeError, ValueError):  # it wants a system message, or tools, or is none of several
            continue
        if MARK in printed:
            return printed.rpartition(MARK)[2].lstrip()
    return ""


# ---- which one ---------------------------------------------------------------------------------------------------------------------


def templates_of(base: Any, tuned: Any, policy: PromptPolicy) -> Pair[Template] | Pair[None]:
    """What each model's prompts are rendered with; None where the policy is `raw`. PromptError: there is no such template."""
    if policy.policy == "raw":
        return None, None
    if policy.policy == "native":
        return own_template("base", base, policy), own_template("tuned", tuned, policy)
    if own := of_a_model(policy.template):
        side, name = own
        template = own_template(side, {"base": base, "tuned": tuned}[side], policy, name)
        return template, template
    try:
        source = Path(policy.template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise PromptError(
            f"template {policy.template!r} is neither `base` nor `tuned`, nor a file that can be read ({reason}). {CHOICES}"
        ) from error
    template = Template(f"the template {policy.template}", source, tuned)
    return template, template


def chosen(template: str, base: Any, tuned: Any) -> tuple[Literal["same_text", "raw"], str, str]:
    """Policy and template where neither was chosen, and what is to be said: the template that is named; else the tuned model's; where it has none
    the base's; where neither has one the bare text."""
    if template != "tuned" or tuned.chat_template:
        return "same_text", template, ""
    if base.chat_template:
        return "same_text", "base", "The tuned model has no chat template: both models read the prompts in the base model's."
    return "raw", template, "Neither model has a chat template: both read the prompts as bare text (policy raw)."


def own_template(model: str, tokenizer: Any, policy: PromptPolicy, name: str = "") -> Template:
    """The chat template that a tokenizer brings; where it brings several, the one of this name, or the one named `default`."""
    named: Mapping[str, str] = (
        tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {"default": tokenizer.chat_template}
    )
    source = named.get(name or "default")
    if not source:
        there = sorted(one for one, text in named.items() if text)
        several = ""
        if name or isinstance(tokenizer.chat_template, dict):
            several = f" named `{name or 'default'}` (it has: {', '.join(there) or 'none'})"
        hint = f" One of them is taken by its name: template `{model}:{there[0]}`." if several and there else ""
        raise PromptError(
            f"policy `{policy.policy}` asks for the {model} model's chat template, but its tokenizer has none{several}.{hint} {CHOICES}"
        )
    which = f"the {model} model's chat template" + (f" `{name}`" if name else "")
    return Template(which, source, tokenizer)


def several_templates(model: str, tokenizer: Any) -> list[str]:
    """What is to be said of a tokenizer that brings several templates."""
    if not isinstance(tokenizer.chat_template, dict):
        return []
    names = sorted(tokenizer.chat_template)
    taken = "`default` is taken" if "default" in names else "none is named `default`, so none is taken by itself"
    return [f"the {model} model has several ({', '.join(names)}): {taken}; another one by its name, template `{model}:{names[-1]}`"]


def said_of_template(tokenizers: Pair[Any], policy: PromptPolicy) -> list[str]:
    """Notes on the templates that a policy renders with, seen by printing with them: a system message that is not taken, content as a list of parts,
    a start token that the tokenizer puts in front of bare text and the template leaves out. PromptError: one cannot be rendered."""
    found: dict[str, None] = {}
    for template, tokenizer in zip(templates_of(*tokenizers, policy), tokenizers, strict=True):
        if template is None:
            continue
        before, _ = template.around(policy)
        if not template.takes_a_system_message():
            found[f"{template.name} takes no system message"] = None
        if template.in_parts():
            found[f"{template.name} takes a message's content as a list of parts, and is given one part of text"] = None
        bos = tokenizer.bos_token
        adds = bos is not None and tokenizer("?")["input_ids"][:1] == [tokenizer.bos_token_id]
        if adds and not before.startswith(bos):
            found[
                f"{template.name} prints no {bos}, which the tokenizer puts in front of bare text: with the template the models read none"
            ] = None
    return list(found)


# ---- prompts that are chats already --------------------------------------------------------------------------------------------------


def said_of_chats(prompts: Sequence[Prompt], tokenizers: Pair[Any], policy: PromptPolicy) -> list[str]:
    """A warning where texts that a template is put around are in a chat format already: they hold special tokens, or the template's own frame."""
    templates = templates_of(*tokenizers, policy)
    if templates[0] is None or templates[1] is None:
        return []
    frames = [frame for frame in (template.around(policy) for template in dict.fromkeys(templates)) if len(frame[0].strip()) >= LEAST_FRAME]
    specials = {special for tokenizer in tokenizers for special in special_texts(tokenizer)}
    found: dict[str, str] = {}
    for prompt in prompts:
        held = next((special for special in sorted(specials, key=len, reverse=True) if special in prompt.text), None)
        opening = next((before.strip() for before, _ in frames if prompt.text.strip().startswith(before.strip())), None)
        if held or opening:
            found[prompt.id] = repr(held or opening)
    if not found:
        return []
    first, what = next(iter(found.items()))
    one = len(found) == 1
    return [
        f"{len(found)} of {len(prompts)} prompts {'is' if one else 'are'} in a chat format already (the first, {first}, holds {what}), and the chat "
        "template is put around that: the models read a template twice. If these texts were rendered by another tool, choose policy `raw`; else give "
        "the user's own words alone."
    ]


def special_texts(tokenizer: Any) -> Iterator[str]:
    """The special tokens of a tokenizer, as they are written."""
    yield from (token.content for token in tokenizer.added_tokens_decoder.values() if token.special and token.content.strip())


def _short(text: str) -> str:
    """The beginning of a text, in quotes."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
