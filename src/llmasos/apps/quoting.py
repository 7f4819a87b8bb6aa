"""Text of others inside a prompt: it stands between marks that it cannot write itself, and is data there.

What a model takes for control tokens, for marks around a passage or for a citation, has a form: a tag in angle
brackets, capitals or a number in square brackets. Each occurrence in a quoted text is broken by a space, so that people
and models still read it, and no tokenizer or parser takes it for the real thing.
"""

from __future__ import annotations

import re

# <|im_end|>, </s>, <start_of_turn>, <tool_call>, </passage>, DeepSeek's <｜end▁of▁sentence｜>, Llama 2's <<SYS>>
_TAG = re.compile(r"<(?=[<|/!?｜A-Za-z_])")
# [INST], [/INST], [TOOL_CALLS], [CLS], and what looks like a citation: [2], [1, 3], 【2】
_BRACKET = re.compile(r"\[(?=/?[A-Z_]{2,}\]|[\d０-９])|【(?=\s*[\d０-９])")
_UNSEEN = re.compile(r"[\0-\x08\x0b-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]")


def harmless(text: str) -> str:
    """Return a text that no model takes for control tokens, marks or citations; characters without a shape are gone."""
    text = _UNSEEN.sub("", text)
    return _BRACKET.sub(r"\g<0> ", _TAG.sub("< ", text))


def quoted(text: str, name: str, **facts: object) -> str:
    """Return a text between marks: ``<passage number="1">``, the text, ``</passage>``."""
    told = "".join(f' {key}="{_value(value)}"' for key, value in facts.items() if value not in (None, ""))
    return f"<{name}{told}>\n{harmless(text)}\n</{name}>"


def _value(value: object) -> str:
    return " ".join(harmless(str(value)).replace('"', "'").replace(">", " ").split())[:200]
