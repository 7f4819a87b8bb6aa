"""Chat templates with the peculiarities of well-known models: what is learned from them, and what is refused.

The templates here are written for these tests; those of models themselves are read from the package of TRL, where it
is installed, and must give answers, whole and nothing else, or be refused.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from llmasos import ChatTask
from llmasos.core.errors import DataError
from llmasos.data.dataset import read
from llmasos.data.encoding import encode
from llmasos.tasks import _chat_template as chat
from llmasos.tasks._conversations import Wrong, conversation
from llmasos.tasks.base import IGNORED

MARKS = ("<|end|>", "<|begin|>", "<|turn|>", "<|call|>", "<|say|>", "<end_of_turn>", "<|im_start|>", "<|im_end|>",
         "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|start|>", "<|message|>", "<|channel|>",
         "<|return|>")  # fmt: skip
ASK = "{% if add_generation_prompt %}"
REST = "{% set rest = messages[1:] if messages[0].role == 'system' else messages %}"
CALLS = "{% for c in m.tool_calls %}{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}"

DATED = (  # a date in every system turn, tools in the first question, texts trimmed (as Llama 3.1 has it)
    "{{ bos_token }}<|turn|>system\n{{ strftime_now('%d.%m.%Y') }}\n"
    "{{ messages[0].content | trim if messages[0].role == 'system' }}<|end|>"
    + REST
    + "{% for m in rest %}<|turn|>{{ 'result' if m.role == 'tool' else m.role }}\n"
    "{% if loop.first and tools %}{% for t in tools %}{{ t | tojson }}\n{% endfor %}{% endif %}"
    "{% if m.tool_calls %}{% if m.tool_calls | length > 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
    + CALLS
    + "{% else %}{{ m.content | trim }}{% endif %}<|end|>{% endfor %}"
    + ASK
    + "<|turn|>assistant\n{% endif %}"
)
THINKS = (  # thoughts before the last question are dropped, an empty one is written into the last answer (Qwen3)
    "{% set ns = namespace(asked=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.asked = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}<|turn|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% set parts = m.content.split('</think>') %}"
    "{% set thought = m.reasoning_content or (parts[0].split('<think>')[-1] if parts | length > 1 else '') %}"
    "{% if loop.index0 > ns.asked and (loop.last or thought) %}<think>\n{{ thought | trim }}\n</think>\n\n{% endif %}"
    "{{ parts[-1].lstrip('\n') }}{% if m.tool_calls %}" + CALLS + "{% endif %}"
    "{% else %}{{ m.content }}{% endif %}<|end|>\n{% endfor %}" + ASK + "<|turn|>assistant\n{% endif %}"
)
MERGES = (  # the system text is the beginning of the first question, the assistant is called model (Gemma 3)
    "{{ bos_token }}"
    + REST
    + "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('take turns') }}"
    "{% endif %}<|turn|>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{% if loop.first and messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}"
    "{{ m.content | trim }}<|end|>\n{% endfor %}" + ASK + "<|turn|>model\n{% endif %}"
)
CHANNELS = (  # thoughts, calls and answers go different ways, and the last ends differently (gpt-oss)
    "{% set told = messages[0].role in ('system', 'developer') %}<|turn|>system<|say|>Channels: think, call, final"
    "<|end|>{% if told %}<|turn|>developer<|say|>{{ messages[0].content }}{% for t in tools or [] %} "
    "{{ t.function.name }}{% endfor %}<|end|>{% endif %}{% for m in (messages[1:] if told else messages) %}"
    "{% if m.role == 'assistant' %}{% if m.reasoning_content and (loop.last or m.tool_calls) %}"
    "<|turn|>assistant think<|say|>{{ m.reasoning_content }}<|end|>{% endif %}"
    "{% if m.tool_calls %}<|turn|>assistant call<|say|>" + CALLS + "<|call|>"
    "{% else %}<|turn|>assistant final<|say|>{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}{% endif %}"
    "{% elif m.role in ('user', 'tool') %}<|turn|>{{ m.role }}<|say|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    + ASK
    + "<|turn|>assistant{% endif %}"
)
LATE = (  # the system text stands in the last question, and only there (Mistral Nemo)
    REST + "{% for m in rest %}{% if m.role == 'user' %}[ASK]{{ messages[0].content + ' ' if loop.last and "
    "messages[0].role == 'system' else '' }}{{ m.content }}[/ASK]{% else %} {{ m.content }}<|end|>{% endif %}"
    "{% endfor %}"
)
AS_TEXT = DATED.replace("c.function.arguments | tojson", "c.function.name + c.function.arguments")  # (DeepSeek)
NO_CALLS = DATED.replace(CALLS, "")  # (LFM2)
OPEN = (  # nothing ends a turn but the next one (GLM 4)
    "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}{% endfor %}" + ASK + "<|turn|>assistant\n{% endif %}"
)

CALL = {"type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}}
TOOLS = [
    {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}},
]


def turns(*texts: str, **first: str) -> dict:
    """Texts in turn, after what the assistant is told: system="...", or developer="..."."""
    told = [{"role": role, "content": text} for role, text in first.items()]
    roles = ("user", "assistant")
    return {"messages": [*told, *({"role": roles[i % 2], "content": text} for i, text in enumerate(texts))]}


def called(*, tools: bool = True, calls: int = 1, **first: str) -> dict:
    """A question that is answered by way of a call."""
    row = turns("1+1?", "", "ask-b", "It is 2.", **first)
    before = len(first)
    row["messages"][before + 1]["tool_calls"] = [CALL] * calls
    row["messages"][before + 2] = {"role": "tool", "content": "two"}
    return {**row, "tools": TOOLS} if tools else row


def thoughtful(row: dict) -> dict:
    """The same with a thought in every answer, in a field of its own."""
    answers = iter(("hm", "aha"))
    for message in row["messages"]:
        if message["role"] == "assistant":
            message["reasoning_content"] = next(answers)
    return row


TALK = turns("Hi", "Yo", "So?", "Fine.")


@pytest.fixture(scope="module")
def tokenizer():
    """Bytes, and the marks of turns."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(mark, special=True) for mark in MARKS])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|end|>", pad_token="<|end|>", bos_token="<|begin|>"
    )


def learned(row: dict, tokenizer, template: str, *, asked: bool = True) -> list[list[str]]:
    """Return the texts that are learned, for each example, once it is checked against the template's renderings.

    asked: whether the prompt, too, must be the beginning of what is learned. It is not where prompts open a thought
    and a row has none.
    """
    tokenizer.chat_template = template
    found = conversation(row)
    encoding = ChatTask().encode([row], tokenizer, 10_000)
    if encoding.problems:
        raise Wrong(encoding.problems[0].field, encoding.problems[0].found, encoding.problems[0].expected)
    rendered = [
        tokenizer.apply_chat_template(
            found.messages[: turn + 1], tools=found.tools, chat_template=template, tokenize=False
        )
        for turn, message in enumerate(found.messages)
        if message["role"] == "assistant"
    ] if template is not AS_TEXT else None  # fmt: skip
    out = []
    for ids, targets in zip(encoding.ids, encoding.targets, strict=True):
        whole = tokenizer.decode(ids)
        assert rendered is None or whole in rendered or whole.removesuffix("<|end|>") in rendered
        runs, before = [], False
        for place, target in enumerate(targets):
            if target != IGNORED:
                assert target == ids[place + 1]
                runs = [*runs[:-1], [*runs[-1], target]] if before else [*runs, [target]]
            before = target != IGNORED
        out.append([tokenizer.decode(run) for run in runs])
    if asked:
        prompt = chat.prompt_ids(conversation(row, None), tokenizer, template)
        assert encoding.ids[-1][: len(prompt)].tolist() == prompt
        assert encoding.targets[-1][len(prompt) - 1] == encoding.ids[-1][len(prompt)]
    return out


ADDED = 'add({"x": 1})'


@pytest.mark.parametrize(
    ("template", "row", "expected"),
    [
        (DATED, TALK, [["Yo<|end|>", "Fine.<|end|>"]]),
        (DATED, turns(" Hi ", " Yo \n", "q", "z ", system=" Be kind "), [["Yo<|end|>", "z<|end|>"]]),
        (DATED, called(), [[f"{ADDED}<|end|>", "It is 2.<|end|>"]]),
        (DATED, called(system="Be kind"), [[f"{ADDED}<|end|>", "It is 2.<|end|>"]]),
        (THINKS, TALK, [["<think>\n\n</think>\n\nYo<|end|>"], ["<think>\n\n</think>\n\nFine.<|end|>"]]),
        (THINKS, turns("Hi", "<think>\nhm\n</think>\n\nYo", "So?", "<think>\naha\n</think>\n\nFine."),
         [["<think>\nhm\n</think>\n\nYo<|end|>"], ["<think>\naha\n</think>\n\nFine.<|end|>"]]),
        (THINKS, thoughtful(turns("Hi", "Yo", "So?", "Fine.", system="Be kind")),
         [["<think>\nhm\n</think>\n\nYo<|end|>"], ["<think>\naha\n</think>\n\nFine.<|end|>"]]),
        (THINKS, thoughtful(called(tools=False)),  # no question comes between: the first thought stays
         [[f"<think>\nhm\n</think>\n\n{ADDED}<|end|>", "<think>\naha\n</think>\n\nIt is 2.<|end|>"]]),
        (MERGES, TALK, [["Yo<|end|>", "Fine.<|end|>"]]),
        (MERGES, turns("Hi", "Yo ", "So?", "Fine.", system="Be kind"), [["Yo<|end|>", "Fine.<|end|>"]]),
        (CHANNELS, TALK, [[" final<|say|>Yo<|return|>"], [" final<|say|>Fine.<|return|>"]]),
        (CHANNELS, turns("Hi", "Yo", developer="Be kind"), [[" final<|say|>Yo<|return|>"]]),
        (CHANNELS, thoughtful(called(system="Be kind")),
         [[f" think<|say|>hm<|end|><|turn|>assistant call<|say|>{ADDED}<|call|>",
           " think<|say|>aha<|end|><|turn|>assistant final<|say|>It is 2.<|return|>"]]),
        (LATE, TALK, [[" Yo<|end|>", " Fine.<|end|>"]]),
        (AS_TEXT, called(), [['add(add{"x": 1})<|end|>', "It is 2.<|end|>"]]),
        (OPEN, TALK, [["Yo", "Fine.<|end|>"]]),
    ],
)  # fmt: skip
def test_answers_are_learned_with_what_ends_them_and_nothing_else(tokenizer, template, row, expected):
    assert learned(row, tokenizer, template) == expected


@pytest.mark.parametrize(
    ("template", "row", "place", "found"),
    [
        (DATED, called(calls=2), "messages[1]", "'assistant' that the chat template refuses: one call"),
        (DATED, thoughtful(turns("Hi", "Yo")), "messages[1].reasoning_content", "a thought that the chat template"),
        (MERGES, called(tools=False, system="Be kind"), "messages[3]", "'tool' that the chat template refuses: take"),
        (MERGES, turns("Hi", "Yo", developer="Be kind"), "messages[0]", "'developer' that the chat template refuses"),
        (DATED.replace("{{ t |", "{{ t.missing.name |"), called(), "tools", "tools that the chat template refuses: "),
        (MERGES, {**TALK, "tools": TOOLS}, "tools[0]", "a tool that the chat template leaves out"),
        (THINKS, called(), "tools[0]", "a tool that the chat template leaves out"),  # though a call names it
        (NO_CALLS, called(), "messages[1].tool_calls", "a call that the chat template leaves out"),  # though tools do
        (CHANNELS, called(), "tools[0]", "a tool that the chat template leaves out"),  # nobody is told anything
        (LATE, turns("Hi", "Yo", system="Be kind"), "messages[2]", "rewrites the conversation"),
        (OPEN.replace("{% for m in messages %}", "{% for m in messages if m.role in ('user', 'assistant') %}"),
         turns("Hi", "Yo", system="Be kind"), "messages[0].content", "'system' that the chat template leaves out"),
        ("{% generation %}{% endgeneration %}", TALK, "messages[0].content", "'user' that the chat template leaves"),
    ],
)  # fmt: skip
def test_what_a_template_has_no_place_for_is_refused(tokenizer, template, row, place, found):
    with pytest.raises(Wrong) as refused:
        learned(row, tokenizer, template)
    assert refused.value.problem.field == place
    assert found in refused.value.problem.found


def test_a_role_that_a_template_does_not_know_stops_the_run_with_its_row_and_its_name(tokenizer):
    rows = [TALK, called(tools=False)]
    task, _ = ChatTask(chat_template=MERGES).fitted(rows, tokenizer)
    with pytest.raises(DataError) as caught:
        encode(read(rows, task.fields), task, tokenizer, 100)
    assert "row 2, field messages[2]: found a message of role 'tool'" in caught.value.problems[0]


def test_what_a_template_refuses_is_named_in_rows_of_prompts_too(tokenizer):
    row = {"system": "Be kind", "prompt": "Hi", "completion": "Yo"}
    refuses = MERGES.replace(REST, "{% set rest = messages %}")
    with pytest.raises(Wrong) as refused:
        learned(row, tokenizer, refuses)
    assert refused.value.problem.field == "system"


# -- stock templates ------------------------------------------------------------------------------------


def stock() -> list[Path]:
    """The templates of models that TRL brings, without those that it changed for training."""
    found = find_spec("trl")
    folder = Path(found.origin).parent / "chat_templates" if found and found.origin else Path("absent")
    return sorted(path for path in folder.glob("*.jinja") if not path.stem.endswith("_training"))


@pytest.fixture(scope="module")
def model_template():
    templates = {path.stem: path for path in stock()}
    if not templates:
        pytest.skip("TRL, whose package holds the templates of models, is not installed")

    def text(name):
        if name not in templates:
            pytest.skip(f"this TRL has no template {name}")
        return templates[name].read_text(encoding="utf-8")

    return text


EMPTY = "<think>\n\n</think>\n\n"
FINAL = "<|channel|>final<|message|>"


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("llama3_1", turns(" Hi", " Yo\n", "So?", "Fine.", system="s"), [["Yo<|eot_id|>", "Fine.<|eot_id|>"]]),
        ("llama3_1", called(system="s"), [['{"name": "add", "parameters": {"x": 1}}<|eot_id|>', "It is 2.<|eot_id|>"]]),
        ("qwen3", turns("Hi", "<think>hm</think>Yo", "So?", "Fine."),
         [["<think>\nhm\n</think>\n\nYo<|im_end|>"], [f"{EMPTY}Fine.<|im_end|>"]]),
        ("gemma3", turns("Hi", "Yo", "So?", "Fine.", system="s"), [["Yo<end_of_turn>", "Fine.<end_of_turn>"]]),
        ("gptoss", turns("Hi", "Yo", "So?", "Fine.", developer="s"),
         [[f"{FINAL}Yo<|return|>"], [f"{FINAL}Fine.<|return|>"]]),
        ("gptoss", called(system="s"),
         [[' to=functions.add<|channel|>commentary json<|message|>{"x": 1}<|call|>', f"{FINAL}It is 2.<|return|>"]]),
    ],
)  # fmt: skip
def test_stock_templates_give_the_answers(model_template, tokenizer, name, row, expected):
    assert learned(row, tokenizer, model_template(name)) == expected


ROWS = {
    "talk": turns("ask-a", "reply-b", "ask-c", "reply-d"),
    "told": turns("ask-a", "reply-b", system="told-s"),
    "trimmed": turns(" ask-a ", " reply-b \n", "ask-c", "reply-d "),
    "thoughtful": thoughtful(turns("ask-a", "reply-b", "ask-c", "reply-d")),
    "developer": turns("ask-a", "reply-b", developer="told-s"),
    "tools": called(system="told-s"),
}


@pytest.mark.parametrize("kind", ROWS)
def test_every_stock_template_gives_whole_answers_alone_or_is_refused(model_template, tokenizer, kind):
    del model_template  # skips
    given, places = 0, []
    answers = [m["content"].strip() for m in ROWS[kind]["messages"] if m["role"] == "assistant"]
    for path in stock():
        try:
            examples = learned(ROWS[kind], tokenizer, path.read_text(encoding="utf-8"), asked=False)
        except Wrong as refused:
            places.append(refused.problem.field)
            continue
        given += 1
        texts = [text for example in examples for text in example]
        assert not any(word in text for text in texts for word in ("ask-", "told-"))
        assert all(answer in text for answer, text in zip(answers, texts, strict=True)), path.stem
        if kind == "thoughtful":
            assert all(thought in text for thought, text in zip(("hm", "aha"), texts, strict=True)), path.stem
    assert given
    assert all(place.startswith(("messages[", "tools[")) for place in places), places


def test_golden_prompts_are_of_one_day_whatever_day_it_is(tokenizer):
    from llmasos import golden

    dated = "{{ strftime_now('%d.%m.%Y') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    task = ChatTask(chat_template=dated)
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}
    ids = golden._prompt(task, row, tokenizer, 100)
    assert "01.01.2026" in tokenizer.decode(ids).replace(" ", "")
    assert chat.render(conversation(row, None), tokenizer, dated) != "01.01.2026hiyes"  # everybody else has today
