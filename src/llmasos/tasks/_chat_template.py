"""Conversations as tokens: rendered by the model's own chat template, the assistant's answers marked.

What is to be learned is found by rendering, not by marks in the template, which stock templates lack: the
conversation up to an answer, with the prompt for one, is the beginning of the conversation that ends in it, and the
rest is the answer, end-of-turn token included. Where a template writes an answer differently once the conversation
goes on (it drops earlier thinking), each answer is an example of its own, as it will be asked for.

Templates are run by transformers in Jinja's immutable sandbox; their size, and that of what they write, is bounded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.errors import UsageError
from ._conversations import Conversation, Message, Wrong
from .base import IGNORED, Encoding, Problem

_TEMPLATE_LIMIT = 1 << 18
"""Characters of a template: the longest of well-known models has 20,000."""
_RENDERED_LIMIT = 1 << 24
"""Characters that a template may make of one conversation."""


_OWN = "_llmasos_own_chat_template"
"""Where a tokenizer keeps the template that it came with, while a task lends it another."""


class Example(NamedTuple):
    """A rendered conversation, and where in it, by characters, the answers to learn are."""

    text: str
    spans: list[tuple[int, int]]


class Tokens(NamedTuple):
    """Token ids, and for each place the next token where it is to be learned, else ``IGNORED``."""

    ids: NDArray[np.int32]
    targets: NDArray[np.int64]

    def shortened(self, longest: int) -> Tokens:
        """Return the beginning of at most so many tokens; nothing at all if it asks for none."""
        keep = longest if (self.targets[:longest] != IGNORED).any() else 0
        return Tokens(self.ids[:keep], self.targets[:keep])


def plain_template(tokenizer: Any) -> str:
    """Return a template for a model that has none: "role:", the text, and the end token, in lines.

    Raises:
        UsageError: the tokenizer has no token that could end a turn.
    """
    end = next((name for name in ("eos_token", "sep_token") if getattr(tokenizer, name, None)), None)
    if end is None:
        raise UsageError(
            "the tokenizer has no chat template, and no end token for one to end turns with",
            hint="give chat_template=..., or set the tokenizer's eos_token",
        )
    begin = "{{ bos_token }}" if _begins_with_bos(tokenizer) else ""
    return (
        f"{begin}{{% for message in messages %}}{{{{ message['role'] }}}}:\n{{{{ message['content'] }}}}"
        f"{{{{ {end} }}}}\n{{% endfor %}}{{% if add_generation_prompt %}}assistant:\n{{% endif %}}"
    )


def _begins_with_bos(tokenizer: Any) -> bool:
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def settle_template(tokenizer: Any, wanted: str | None) -> tuple[str | None, list[str]]:
    """Give the tokenizer the template that it lacks or that the user wants instead, so that it is saved with it.

    Returns the template, if it is not the model's own, and notes.

    Raises:
        UsageError: the template is too long, or the tokenizer cannot tell where its tokens come from.
    """
    if not tokenizer.is_fast:
        raise UsageError(
            f"{type(tokenizer).__name__} does not tell which characters its tokens come from",
            hint="take a model with a tokenizer.json",
        )
    own = vars(tokenizer).setdefault(_OWN, tokenizer.chat_template)
    notes = []
    if wanted is None and not own:
        wanted = plain_template(tokenizer)
        notes.append("the model has no chat template: it learns and saves a plain one (role, text, end token)")
    longest = max(map(len, _texts_of(wanted or own)))
    if longest > _TEMPLATE_LIMIT:
        raise UsageError(f"the chat template has {longest} characters", hint=f"at most {_TEMPLATE_LIMIT} are run")
    # The one change to a tokenizer that a task makes: whoever saves or asks the model needs the same template.
    tokenizer.chat_template = wanted or own
    return wanted, notes


def _texts_of(template: Any) -> list[str]:
    return list(map(str, template.values())) if isinstance(template, dict) else [str(template)]


def render(
    conversation: Conversation,
    tokenizer: Any,
    template: str | None = None,
    *,
    count: int | None = None,
    ask: bool = False,
) -> str:
    """Render the first messages of a conversation.

    Args:
        conversation: messages and tools.
        tokenizer: brings the template and its special tokens.
        template: used instead of the tokenizer's own.
        count: so many messages; all if None.
        ask: end with the prompt for an answer.

    Raises:
        Wrong: the template refuses the messages, in its own words, or makes too much of them.
    """
    messages = conversation.messages[:count]
    try:
        text = _applied(messages, conversation.tools, tokenizer, template, ask=ask)
    except Exception as error:  # a template can raise anything
        sentence = " ".join(str(error).split())[:300] or type(error).__name__
        place, what = _refused(conversation, len(messages), tokenizer, template)
        raise Wrong(place, f"{what} that the chat template refuses: {sentence}", "what it takes") from error
    if len(text) > _RENDERED_LIMIT:
        where = conversation.places[0].partition("[")[0] if messages else "messages"
        raise Wrong(where, f"{len(text)} characters once rendered", f"at most {_RENDERED_LIMIT}")
    return text


def _applied(messages: list[Message], tools: Any, tokenizer: Any, template: str | None, *, ask: bool = False) -> str:
    """Run the template; where it fails on calls, once more with their arguments as text, as some write them."""
    template = _of_the_day(template, tokenizer)
    forms = [messages, _with_text(messages)] if any("tool_calls" in m for m in messages) else [messages]
    refusal: Exception | None = None
    for form in forms:
        try:
            return str(
                tokenizer.apply_chat_template(
                    form, tools=tools, chat_template=template, tokenize=False, add_generation_prompt=ask
                )
            )
        except Exception as error:  # a template can raise anything
            refusal = refusal or error
    assert refusal is not None
    raise refusal


@contextmanager
def dated(day: datetime) -> Iterator[None]:
    """Have templates that write today's date write this one."""
    before = _DAY.set(day)
    try:
        yield
    finally:
        _DAY.reset(before)


_DAY: ContextVar[datetime | None] = ContextVar("day", default=None)


def _of_the_day(template: str | None, tokenizer: Any) -> str | None:
    """Return a template with a date that is not today's, where that is wanted: transformers lets nobody set it."""
    day, text = _DAY.get(), template or tokenizer.chat_template
    if day is None or not isinstance(text, str):
        return template
    return re.sub(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""", lambda found: repr(day.strftime(found[2])), text)


def _with_text(messages: list[Message]) -> list[Message]:
    """Return messages with the arguments of their calls as JSON text."""
    out = []
    for message in messages:
        calls = [
            {**call, "function": {**(made := call["function"]), "arguments": _json(made["arguments"])}}
            for call in message.get("tool_calls", ())
        ]
        out.append({**message, "tool_calls": calls} if calls else message)
    return out


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _refused(conversation: Conversation, count: int, tokenizer: Any, template: str | None) -> tuple[str, str]:
    """Return where that stands which a template refuses, and what it is: a message behind the most that it takes."""
    messages, tools = conversation.messages[:count], conversation.tools
    attempts = [(count, None)] if tools else []
    for taken, offered in [*attempts, *((n, tools) for n in range(count - 1, 0, -1))]:
        with suppress(Exception):  # a template can raise anything
            _applied(messages[:taken], offered, tokenizer, template)
            break
    else:
        taken = 0
    if taken == count:
        return ("tools", "tools") if count else ("messages", "no message")
    return conversation.places[taken], f"a message of role {messages[taken]['role']!r}"


def examples(conversation: Conversation, tokenizer: Any, template: str | None = None) -> list[Example]:
    """Render a conversation with its answers marked: once, or, where its template demands it, once for each answer.

    Raises:
        Wrong: nothing is to be learned, or the template refuses, drops or rewrites something.
    """
    check_control_tokens(conversation, tokenizer)
    turns = [i for i, learned in enumerate(conversation.learned) if learned]
    if not turns:
        raise Wrong("messages", "no answer to learn", "an answer of the assistant whose weight is not 0")
    whole = render(conversation, tokenizer, template)
    parts = [_answer(conversation, i, whole, tokenizer, template) for i in turns]
    starts = [part.spans[0][0] for part in parts]
    answers = {i: part.text[start:] for i, part, start in zip(turns, parts, starts, strict=True)}
    check_tools(conversation, parts[0].text[: starts[0]])
    check_content(conversation, [whole, *(part.text for part in parts)], answers)
    if all(whole.startswith(part.text) for part in parts):
        return [Example(whole, [span for part in parts for span in part.spans])]
    return parts


def _answer(conversation: Conversation, turn: int, whole: str, tokenizer: Any, template: str | None) -> Example:
    """Render up to one answer, and mark it."""
    last = turn == len(conversation.messages) - 1
    text = whole if last else render(conversation, tokenizer, template, count=turn + 1)
    asked = render(conversation, tokenizer, template, count=turn, ask=True)
    start = len(asked)
    if not text.startswith(asked):
        before = render(conversation, tokenizer, template, count=turn)
        if not text.startswith(before):
            raise Wrong(
                conversation.places[turn],
                "an answer before which the chat template rewrites the conversation: what is to be learned "
                "cannot be told from what is asked",
                "a template whose renderings continue one another",
            )
        start = max(len(before), _shared(asked, text))
    return Example(text, [(start, len(text))])


def _shared(one: str, other: str) -> int:
    """Return how many characters two texts begin with in common."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def check_content(conversation: Conversation, texts: Sequence[str], answers: Mapping[int, str] | None = None) -> None:
    """Refuse a template that leaves something of the messages out.

    Args:
        conversation: what was rendered.
        texts: what became of it; each part has to be in one of them (white space aside).
        answers: of these messages, what is to be learned: their parts have to be there.

    Raises:
        Wrong: a content, a thought or a call is missing.
    """
    texts = list(dict.fromkeys(texts))
    for i, (message, place) in enumerate(zip(conversation.messages, conversation.places, strict=True)):
        here = texts if answers is None or i not in answers else [answers[i]]
        suffix = ".content" if place.endswith("]") else ""
        _check_inside(message["content"], here, f"a message of role {message['role']!r}", place + suffix)
        for name in _THOUGHTS:
            if isinstance(message.get(name), str):
                _check_inside(message[name], here, "a thought", f"{place}.{name}")
        for call in message.get("tool_calls", ()):
            _check_inside(call["function"]["name"], here, "a call", f"{place}.tool_calls")


def check_tools(conversation: Conversation, prompt: str) -> None:
    """Refuse a template that does not tell the model of its tools before it answers.

    Raises:
        Wrong: the name of one is not in the prompt.
    """
    for i, tool in enumerate(conversation.tools or ()):
        _check_inside(str(tool["function"]["name"]), [prompt], "a tool", f"tools[{i}]")


def _check_inside(content: str, texts: Sequence[str], what: str, place: str) -> None:
    if not (any(content in text for text in texts) or _is_inside(content, texts)):
        raise Wrong(place, f"{what} that the chat template leaves out", "a template that shows it, or no such part")


def _is_inside(content: str, texts: Sequence[str]) -> bool:
    """Say whether a text has this content with other white space, or as JSON writes it."""
    forms = {_squeezed(form) for form in (content, *(json.dumps(content, ensure_ascii=a)[1:-1] for a in (False, True)))}
    return any(form in squeezed for squeezed in map(_squeezed, texts) for form in forms)


_THOUGHTS = ("reasoning_content", "reasoning", "thinking")


def _squeezed(text: str) -> str:
    """Return a text without white space, thinking marks aside: templates trim, and set thoughts apart themselves."""
    return "".join(re.sub(r"</?think>", "", text).split())


def check_control_tokens(conversation: Conversation, tokenizer: Any) -> None:
    """Refuse messages that hold the tokens by which a template marks turns: they would forge some.

    Raises:
        Wrong: one does.
    """
    control = re.compile("|".join(map(re.escape, _special(tokenizer))) or "(?!)")
    for message, place in zip(conversation.messages, conversation.places, strict=True):
        if found := control.search(message["content"]):
            raise Wrong(place, f"a text that holds the control token {found[0]}", "text without it")


def _special(tokenizer: Any) -> list[str]:
    added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    return sorted({token for token in added if token.strip()}, key=len, reverse=True)


def tokenized(rendered: Sequence[Example], tokenizer: Any) -> list[Tokens]:
    """Turn rendered conversations into ids and next-token targets.

    A token is to be learned if it holds characters of an answer. What follows the answer's last special token (a
    line break) is not; an answer that no such token ends is given the tokenizer's end token, at the very end.
    """
    if not rendered:
        return []
    full = tokenizer(
        [one.text for one in rendered], add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    ending = _ending(tokenizer)
    return [
        _targets(one, np.asarray(ids, dtype=np.int32), np.asarray(offsets, dtype=np.int64), ending, tokenizer)
        for one, ids, offsets in zip(rendered, full["input_ids"], full["offset_mapping"], strict=True)
    ]


def _ending(tokenizer: Any) -> re.Pattern[str]:
    """Return what matches an added token at the end of a text, white space aside."""
    added = sorted({str(token) for token in tokenizer.added_tokens_decoder.values()}, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, filter(str.strip, added))) or '(?!)'})\\s*\\Z")


def _targets(
    one: Example, ids: NDArray[np.int32], offsets: NDArray[np.int64], ending: re.Pattern[str], tokenizer: Any
) -> Tokens:
    """offsets: the first and behind the last character of each token, (tokens, 2)."""
    learned, open_end = np.zeros(len(ids), dtype=np.bool_), False
    for start, stop in one.spans:
        ended = ending.search(one.text, start, stop)
        open_end = ended is None and stop == len(one.text)
        stop = ended.end(1) if ended else stop
        learned |= (offsets[:, 1] > start) & (offsets[:, 0] < stop) & (offsets[:, 1] > offsets[:, 0])
    end = end_id(tokenizer)
    if open_end and end is not None:
        ids, learned = np.append(ids, np.int32(end)), np.append(learned, True)
    targets = np.full(len(ids), IGNORED, dtype=np.int64)
    targets[:-1][learned[1:]] = ids[1:][learned[1:]]
    return Tokens(ids, targets)


def too_long(longest: int) -> Problem:
    """Return what is wrong with a row of which nothing would be learned once it is cut."""
    return Problem("messages", "no answer within max_length", f"one that begins within {longest} tokens", drop=True)


def prompt_ids(conversation: Conversation, tokenizer: Any, template: str | None = None) -> list[int]:
    """Return the tokens from which the next answer is written.

    Raises:
        Wrong: the template refuses or drops something, or a message holds control tokens.
    """
    check_control_tokens(conversation, tokenizer)
    text = render(conversation, tokenizer, template, ask=True)
    check_tools(conversation, text)
    check_content(conversation, [text, *_earlier(conversation, tokenizer, template)])
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def encoded_prompts(rows: Sequence[Conversation], tokenizer: Any, longest: int, template: str | None) -> Encoding:
    """Return what answers are written from; of one that is too long, the end is kept: the question."""
    ids: list[NDArray[np.int32]] = []
    problems: dict[int, Problem] = {}
    for i, row in enumerate(rows):
        try:
            ids.append(np.asarray(prompt_ids(row, tokenizer, template), dtype=np.int32))
        except Wrong as wrong:
            problems[i] = wrong.problem
    places = [i for i in range(len(rows)) if i not in problems]
    truncated = [0] * len(rows)
    for place, one in zip(places, ids, strict=True):
        truncated[place] = max(0, len(one) - longest)
    return Encoding([one[-longest:] for one in ids], None, truncated, None, places, problems)


def _earlier(conversation: Conversation, tokenizer: Any, template: str | None) -> Iterator[str]:
    """Yield the conversation up to each earlier answer: what templates drop later on was there once."""
    for turn, message in enumerate(conversation.messages):
        if message["role"] == "assistant":
            yield render(conversation, tokenizer, template, count=turn + 1)


def end_id(tokenizer: Any) -> int | None:
    """Return the token that ends a text: end of sequence, or what the plain template ends with."""
    return next((i for i in (tokenizer.eos_token_id, tokenizer.sep_token_id) if i is not None), None)


def stop_ids(tokenizer: Any, template: str | None = None) -> list[int]:
    """Return the tokens that end an answer: the tokenizer's end token, and what the template ends turns with."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    small = Conversation(messages, [False, True], ["messages[0]", "messages[1]"])
    found = [end_id(tokenizer)]
    try:
        text = render(small, tokenizer, template)
    except Wrong:
        text = ""
    if ended := _ending(tokenizer).search(text):
        found.append(tokenizer.convert_tokens_to_ids(ended[1]))
    return sorted({i for i in found if i is not None})
