"""Shapes of records: the same conversation is the same record, however its fields are called and nested."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.tasks.language.conversation import Message, ToolCall
from deepseek_trainer.tasks.language.reading import reading
from deepseek_trainer.tasks.language.records import Record
from support.builders.data import a_data_spec

Json = dict[str, Any]
INSTRUCTION = {"format": "Instruction"}
PREFERENCE = {"format": "Preference"}
SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt"}

said = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
    lambda text: text.strip() and "<think>" not in text
)


def made(value: Json, **data: Any) -> Record:
    """The record that preparation makes of a line of JSON."""
    spec = a_data_spec(**(INSTRUCTION | data))
    record = reading(spec).record(json.loads(json.dumps(value)), "a.jsonl", 1)
    assert record is not None
    return record


def refusal(value: Json, **data: Any) -> str:
    with pytest.raises(DataError) as error:
        made(value, **data)
    return str(error.value.in_full())


def messages(turns: list[tuple[str, str]]) -> list[Json]:
    return [{"role": role, "content": content} for role, content in turns]


def in_capitals(turns: list[tuple[str, str]]) -> list[Json]:
    return [{"role": role.title(), "content": content} for role, content in turns]


def sharegpt(turns: list[tuple[str, str]]) -> list[Json]:
    return [{"from": SHAREGPT[role], "value": content} for role, content in turns]


def parts(turns: list[tuple[str, str]]) -> list[Json]:
    return [{"role": role, "content": [{"type": "text", "text": content}]} for role, content in turns]


def alpaca(turns: list[tuple[str, str]]) -> Json:
    system = turns[0][1] if turns[0][0] == "system" else ""
    talk = [content for role, content in turns if role != "system"]
    history = [[talk[i], talk[i + 1]] for i in range(0, len(talk) - 2, 2)]
    return {"instruction": talk[-2], "input": "", "output": talk[-1], "system": system, "history": history}


def with_fields_renamed(turns: list[tuple[str, str]]) -> Json:
    return {"turns": [{"who": role, "says": content} for role, content in turns]}


RENAMED = {"messagesField": "turns", "fields": {"role": "who", "content": "says"}}
SHAPES: list[tuple[Callable[[list[tuple[str, str]]], Json], Json]] = [
    (lambda turns: {"messages": messages(turns)}, {}),
    (lambda turns: {"messages": parts(turns)}, {}),
    (lambda turns: {"messages": in_capitals(turns)}, {}),
    (lambda turns: {"messages": sharegpt(turns)}, {}),
    (lambda turns: {"conversations": sharegpt(turns)}, {}),
    (lambda turns: {"conversation": [{"speaker": role, "text": text} for role, text in turns]}, {}),
    (lambda turns: {"conversations": sharegpt(turns), "tools": "", "system": "", "id": 7}, {}),
    (with_fields_renamed, RENAMED),
    (alpaca, {}),
    (lambda turns: alpaca(turns) | {"history": messages([t for t in turns[:-2] if t[0] != "system"])}, {}),
]
LIST_SHAPES: list[Callable[[list[tuple[str, str]]], Json]] = [
    lambda turns: {"prompt": messages(turns[:-1]), "completion": messages(turns[-1:])},
    lambda turns: {"prompt": sharegpt(turns[:-1]), "completion": turns[-1][1]},
    lambda turns: {"prompt": messages(turns[:-1]), "response": messages(turns[-1:])[0]},
    lambda turns: {"input": messages(turns[:-1]), "output": turns[-1][1]},
]


@st.composite
def talks(draw: st.DrawFn, rounds: int = 3) -> list[tuple[str, str]]:
    """A conversation that each shape can hold: perhaps a system message, and then questions with their answers."""
    system = draw(st.lists(st.tuples(st.just("system"), said), max_size=1))
    pairs = draw(st.lists(st.tuples(said, said), min_size=1, max_size=rounds))
    return [*system, *((role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True))]


@given(talks())
def test_a_conversation_is_the_same_record_in_every_shape(turns: list[tuple[str, str]]) -> None:
    expected = (tuple(Message(*turn) for turn in turns), turns[-1][1], (), made({"messages": messages(turns)}).key())
    for shape, data in SHAPES:
        record = made(shape(turns), **data)
        assert (record.conversation, record.text, record.tools, made({"messages": messages(turns)}).key()) == expected


@given(talks(rounds=1))
def test_a_question_and_its_answer_are_the_same_record_as_lists_of_messages(turns: list[tuple[str, str]]) -> None:
    expected = made({"messages": messages(turns)})
    assert [made(shape(turns)) for shape in LIST_SHAPES] == [expected] * len(LIST_SHAPES)


@given(said, said)
def test_a_lone_question_is_the_same_record_by_all_names(question: str, answer: str) -> None:
    names = [("prompt", "response"), ("prompt", "completion"), ("question", "answer"), ("instruction", "output"),
             ("query", "response"), ("input", "output")]  # fmt: skip
    assert {made({asked: question, said: answer}) for asked, said in names} == {Record(question, answer, "a.jsonl", 1)}


@given(talks(), said)
def test_a_pair_is_the_same_record_in_every_shape(turns: list[tuple[str, str]], other: str) -> None:
    *before, (_, chosen) = turns
    rejected = f"{other} or {chosen}"
    first, second = ("assistant", chosen), ("assistant", rejected)
    shapes: list[Json] = [
        {"messages": messages(before), "chosen": chosen, "rejected": rejected},
        {"chosen": messages([*before, first]), "rejected": messages([*before, second])},
        {"chosen": sharegpt([*before, first]), "rejected": sharegpt([*before, second])},
        {"prompt": before[-1][1], "chosen": messages([*before, first]), "rejected": messages([*before, second])},
        {"messages": messages([*before, first])}
        | {"chosen": messages([*before, first]), "rejected": messages([*before, second])},
        {"conversations": sharegpt(before), "chosen": sharegpt([first])[0], "rejected": sharegpt([second])[0]},
        {"messages": messages([*before, first]), "rejected_response": rejected},
    ]
    found = [made(shape, **PREFERENCE) for shape in shapes]
    assert {(record.conversation, record.rejected) for record in found} == {
        (tuple(Message(*turn) for turn in turns), rejected)
    }


CALL = {"name": "find", "arguments": {"tape": 1, "wo": "盐"}}
TOOL = {"name": "find", "description": "Finds a tape.", "parameters": {"type": "object", "properties": {}}}
ASKED = {"role": "user", "content": "where?"}
ANSWERED = {"role": "assistant", "content": "there"}
WRAPPED = {"type": "function", "function": TOOL}
PICTURE = {"type": "image_url", "image_url": {"url": "secret"}}
EXPECTED_CALL = ToolCall("find", '{"tape": 1, "wo": "盐"}')


def calling(*calls: Json, **more: Any) -> Json:
    return {"role": "assistant", "tool_calls": list(calls), **more}


def result(text: str, **more: Any) -> Json:
    return {"role": "tool", "content": text, **more}


@pytest.mark.parametrize(
    "turn",
    [
        calling({"type": "function", "function": CALL}),
        calling({"type": "function", "function": CALL | {"arguments": json.dumps(CALL["arguments"])}}, content=None),
        calling(CALL, content=""),
        {"role": "assistant", "content": None, "function_call": CALL},
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "tool_call", "value": json.dumps([CALL])},
        {"from": "gpt", "value": "", "tool_calls": [{"function": {"name": "find", "parameters": CALL["arguments"]}}]},
    ],
)
def test_a_call_is_the_same_in_every_shape(turn: Json) -> None:
    record = made({"messages": [ASKED, turn, {"role": "function", "name": "find", "content": "salt"}, ANSWERED]})
    assert record.prompt == (
        Message("user", "where?"),
        Message("assistant", "", tool_calls=(EXPECTED_CALL,)),
        Message("tool", "salt"),
    )
    assert record.unused == ()


@pytest.mark.parametrize(
    "tools",
    [
        {"tools": [WRAPPED]},
        {"tools": json.dumps([WRAPPED])},
        {"tools": json.dumps([TOOL])},
        {"functions": [TOOL]},
        {"apis": [TOOL]},
    ],
)
def test_tools_are_the_same_in_every_shape(tools: Json) -> None:
    record = made(
        {"messages": [ASKED, ANSWERED], **tools}, **({"fields": {"tools": "apis"}} if "apis" in tools else {})
    )
    assert [json.loads(tool) for tool in record.tools] == [WRAPPED]


def test_a_last_turn_may_be_a_call() -> None:
    record = made({"messages": [ASKED, calling(CALL | {"id": "7"}, reasoning_content=" look there ")]})
    assert record.answer == Message("assistant", "", "look there", (ToolCall("find", EXPECTED_CALL.arguments, "7"),))
    assert list(record.texts()) == ["where?", "look there", "", "find", EXPECTED_CALL.arguments]


def test_results_come_in_the_order_of_parallel_calls() -> None:
    calls = [CALL | {"id": "a"}, CALL | {"id": "b"}]
    both = [calling(*calls)], [calling(calls[0]), calling(calls[1])]
    results = [result("second", tool_call_id="b"), result("first", tool_call_id="a")]
    for turns in both:
        prompt = made({"messages": [ASKED, *turns, *results, ANSWERED]}).prompt
        assert isinstance(prompt, tuple)
        assert [turn.content for turn in prompt] == ["where?", "", "first", "second"]
        assert [call.id for call in prompt[1].tool_calls] == ["a", "b"]


def test_calls_in_the_assistants_own_words_have_results_as_well() -> None:
    turns = [("human", "where?"), ("gpt", "<tool_call>find</tool_call>"), ("tool", "salt"), ("gpt", "there")]
    prompt = made({"conversations": [{"from": role, "value": text} for role, text in turns]}).prompt
    assert prompt is not None
    assert prompt[-1] == Message("tool", "salt")


NO_CALL = "is the result of no call that the turn before makes"
SPEAKS = "the results of a call follow it, and then the assistant speaks"


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([ASKED, result("x"), ANSWERED], f"message 2 is the tool's, it must be the assistant's: {SPEAKS}"),
        ([ASKED, calling(CALL), ANSWERED], f"message 3 is the assistant's, it must be the tool's: {SPEAKS}"),
        ([ASKED, calling(CALL), ASKED, ANSWERED], "message 3 is the user's, it must be the tool's"),
        ([ASKED, calling(CALL), result("x"), ASKED], "message 4 is the user's, it must be the assistant's"),
        ([ASKED, calling(CALL), result("x")], "the last message is the tool's"),
        ([ASKED, calling(CALL), result("x"), result("y"), ANSWERED], f"message 4 {NO_CALL}"),
        ([ASKED, calling(CALL | {"id": "a"}), result("x", tool_call_id="b"), ANSWERED], f"message 3 {NO_CALL}"),
        ([ASKED, calling(CALL), result("x", name="other"), ANSWERED], f"message 3 {NO_CALL}"),
        (
            [ASKED, calling(CALL | {"id": "a"}, CALL | {"id": "b"}), result("x", tool_call_id="a"), ANSWERED],
            "message 3: 1 of the 2 calls before it have no result",
        ),
        ([ASKED, calling({"function": {"arguments": {}}})], "message 2: call 1 has no name"),
        ([ASKED, calling(CALL | {"arguments": "secret"})], "call 1: field 'arguments' is not JSON"),
        ([ASKED, calling(CALL | {"arguments": "[1]"})], "field 'arguments' must be an object, or its JSON text"),
        ([ASKED, calling(CALL | {"type": "custom"})], "call 1: field 'type' must be 'function'"),
        ([ASKED, {"role": "assistant", "tool_calls": {"name": "seek"}}], "field 'tool_calls' must be a list of calls"),
        ([ASKED, {"from": "function_call", "value": "secret"}], "message 2: field 'value' is not JSON"),
        ([ASKED | {"tool_calls": [CALL]}, ANSWERED], "message 1 has tool calls, and is the user's"),
        ([ASKED | {"thinking": "hm"}, ANSWERED], "message 1 has reasoning, and is the user's"),
    ],
)
def test_calls_and_results_that_nobody_can_mean_are_refused(turns: list[Json], message: str) -> None:
    told = refusal({"messages": turns})
    assert told.startswith("a.jsonl:1: ")
    assert message in told
    assert "secret" not in told


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ("secret", "field 'tools' is not JSON"),
        ({"secret": 1}, "field 'tools' must be a list of tools, or its JSON text, this is an object"),
        ([{"secret": 1}], "tool 1 has no name"),
        (["secret"], "tool 1 has no name"),
    ],
)
def test_tools_that_are_none_are_refused(tools: Any, message: str) -> None:
    told = refusal({"messages": [ASKED, ANSWERED], "tools": tools})
    assert message in told
    assert "secret" not in told


WRONG = {"role": "assistant", "content": "no"}


@pytest.mark.parametrize("no", [{"weight": 0}, {"train": False}, {"loss": False}, {"weight": 0.0}, {"weight": "0"}])
def test_an_answer_without_weight_is_not_learned(no: Json) -> None:
    record = made({"messages": [ASKED, WRONG | no, ASKED, ANSWERED | {"weight": 1}]})
    assert [turn.is_learned for turn in record.conversation] == [True, False, True, True]
    assert made({"messages": [ASKED, ANSWERED, ASKED, WRONG | no]}) == made({"messages": [ASKED, ANSWERED]})
    assert "none of its answers is learned" in refusal({"messages": [ASKED, WRONG | no]})


def test_answers_in_a_prompt_are_not_learned() -> None:
    record = made({"prompt": [ASKED, WRONG, ASKED], "completion": [ANSWERED]})
    assert [turn.is_learned for turn in record.conversation] == [True, False, True, True]


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        (ANSWERED | {"weight": 0.5}, "message 2: field 'weight' must be 0 or 1"),
        (ANSWERED | {"weight": 0, "train": True}, "fields 'weight' and 'train' contradict each other"),
        (ANSWERED | {"mask": [1]}, "field 'mask' cannot be used"),
        (ANSWERED | {"loss_mask": [1]}, "field 'loss_mask' cannot be used"),
        (ANSWERED | {"prefix": True}, "field 'prefix' cannot be used"),
        (ANSWERED | {"partial": True}, "field 'partial' cannot be used"),
        (ANSWERED | {"refusal": "secret"}, "field 'refusal' cannot be used"),
        (ANSWERED | {"name": "secret"}, "field 'name' cannot be used: chat templates do not write who speaks"),
        (ANSWERED | {"images": ["secret"]}, "field 'images' cannot be used"),
        (ANSWERED | {"audio": {"id": "secret"}}, "field 'audio' cannot be used"),
        (ANSWERED | {"tools": [TOOL]}, "field 'tools' cannot be used: tools belong to the record"),
        (ANSWERED | {"value": "secret"}, "field 'value' cannot be used: another field was read in its place"),
        ({"role": "assistant", "content": [PICTURE]}, "part 1 of field 'content' is no text"),
    ],
)  # fmt: skip
def test_fields_of_a_message_that_would_change_what_is_learned_are_refused(turn: Json, message: str) -> None:
    told = refusal({"messages": [ASKED, turn]})
    assert told.startswith("a.jsonl:1: message 2")
    assert message in told
    assert "secret" not in told


def test_a_question_cannot_be_learned() -> None:
    assert "message 1: field 'weight' wants the user's words learned" in refusal(
        {"messages": [ASKED | {"weight": 1}, ANSWERED]}
    )
    assert made({"messages": [ASKED | {"weight": 0}, ANSWERED]}) == made({"messages": [ASKED, ANSWERED]})


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_what_was_thought_is_kept_apart_from_the_answer(field: str) -> None:
    expected = Message("assistant", "there", "look at the list")
    thought = {field: "look at the list"}
    assert made({"messages": [ASKED, ANSWERED | thought]}).answer == expected
    assert made({"prompt": "where?", "response": "there", **thought}).answer == expected
    assert made({"prompt": "where?", "response": "there", field: "on"}).answer == Message("assistant", "there")


def test_parts_of_thoughts_are_reasoning_and_parts_of_text_are_lines() -> None:
    content = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}, "b"]
    assert made({"messages": [ASKED, {"role": "assistant", "content": content}]}).answer == Message(
        "assistant", "a\nb", "hm"
    )


def test_alpacas_input_follows_the_instruction() -> None:
    alpaca = {"instruction": "Translate.", "input": "盐窖", "output": "salt cellar"}
    dolly = {"instruction": "Translate.", "context": "盐窖", "response": "salt cellar"}
    own = {"instruction": "Translate.", "what": "盐窖", "output": "salt cellar"}
    named = {"promptField": "instruction", "responseField": "output"}
    expected = Record("Translate.\n盐窖", "salt cellar", "a.jsonl", 1)
    assert [made(alpaca), made(alpaca, **named), made(dolly), made(own, fields={"input": "what"})] == [expected] * 4
    assert made(alpaca | {"input": ""}).prompt == "Translate."


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"instruction": "secret"}, "field 'instruction' cannot be used: another field was read in its place"),
        ({"output": "secret"}, "field 'output' cannot be used"),
        ({"completion": "secret"}, "field 'completion' cannot be used"),
        ({"chosen": "secret"}, "field 'chosen' cannot be used: it belongs to a pair of answers (hint: set data.format"),
        ({"rejected": "secret"}, "field 'rejected' cannot be used"),
        ({"rejected_response": "secret"}, "field 'rejected_response' cannot be used"),
        ({"images": ["secret"]}, "field 'images' cannot be used: pictures, videos and sound"),
        ({"videos": ["secret"]}, "field 'videos' cannot be used"),
        ({"audios": ["secret"]}, "field 'audios' cannot be used"),
        ({"label": False}, "field 'label' cannot be used"),
        ({"kto_tag": True}, "field 'kto_tag' cannot be used"),
        ({"weight": 0}, "field 'weight' cannot be used: records have no weight"),
        ({"weight": 0.5}, "field 'weight' cannot be used"),
        ({"train": False}, "field 'train' cannot be used"),
        ({"loss": False}, "field 'loss' cannot be used"),
        ({"mask": [1]}, "field 'mask' cannot be used"),
        ({"prefix": "secret"}, "field 'prefix' cannot be used"),
        ({"suffix": "secret"}, "field 'suffix' cannot be used"),
        ({"function_call": CALL}, "field 'function_call' cannot be used"),
        ({"history": "secret"}, "field 'history' must be a list of messages"),
        ({"history": [["secret"]]}, "pair 1 of field 'history' must be two texts"),
        ({"system": ["secret"]}, "field 'system' must be a string, this is a list"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "field 'chat_template_kwargs' cannot be used"),
    ],
)
def test_fields_of_a_record_that_would_change_what_is_learned_are_refused(more: Json, message: str) -> None:
    record = {"prompt": "where?", "response": "there", **more}
    told = refusal(record)
    assert told.startswith("a.jsonl:1: ")
    assert message in told
    assert "secret" not in told
    (name,) = more
    assert made(record, ignoredFields=[name]) == made({"prompt": "where?", "response": "there"})
    assert made(record, ignoredFields=[name]).unused == (name,)


@pytest.mark.parametrize(
    "more",
    [
        {"id": 7},
        {"prompt": None, "input": "", "history": [], "tools": None},
        {"label": "spam", "name": "x", "train": True, "weight": 1, "loss": 2.3, "question": "x", "context": "y"},
    ],
)
def test_what_says_nothing_about_learning_is_named_and_not_refused(more: Json) -> None:
    record = made({"messages": [ASKED | {"seq": 1}, ANSWERED | {"seq": 2}], **more})
    assert record == made({"messages": [ASKED, ANSWERED]})
    assert [name for name in record.unused if more.get(name) not in (None, "", [])] == [
        name for name in more if more[name] not in (None, "", [])
    ]
    assert "messages[].seq" in record.unused


def test_whoever_learns_the_chosen_answers_leaves_the_rejected_ones_out() -> None:
    record = made({"prompt": "where?", "chosen": "there", "rejected": "no"}, responseField="chosen")
    assert (record.text, record.unused) == ("there", ("rejected",))


@pytest.mark.parametrize("value", [{"system": "be kind"}, {"system_prompt": "be kind"}, {"persona": "be kind"}])
def test_a_system_message_may_have_a_field_of_its_own(value: Json) -> None:
    names = {"fields": {"system": "persona"}} if "persona" in value else {}
    expected = made({"messages": [{"role": "developer", "content": "be kind"}, ASKED, ANSWERED]})
    for shape in ({"messages": [ASKED, ANSWERED]}, {"prompt": "where?", "response": "there"}):
        assert made(shape | value, **names) == expected
    both = {"messages": [{"role": "system", "content": "be kind"}, ASKED, ANSWERED], **value}
    assert made(both, **names) == expected
    both["messages"][0]["content"] = "be short"
    assert "and the first message are two different system messages" in refusal(both, **names)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"chosen": [ASKED, ANSWERED], "rejected": [ANSWERED, WRONG]}, "differ before the last"),
        ({"prompt": "else?", "chosen": [ASKED, ANSWERED], "rejected": [ASKED, WRONG]}, "the prompt is not what"),
        ({"prompt": "where?", "chosen": [ASKED], "rejected": [WRONG]}, "an answer is the user's"),
        ({"prompt": "a", "chosen": [ANSWERED | {"thinking": "secret"}], "rejected": "no"}, "has reasoning"),
        ({"prompt": "a", "chosen": [calling(CALL)], "rejected": "no"}, "has reasoning, tool calls"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "label": True}, "field 'label' cannot be used"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "response": "secret"}, "field 'response' cannot be used"),
    ],
)
def test_pairs_that_cannot_be_compared_are_refused(value: Json, message: str) -> None:
    told = refusal(value, **PREFERENCE)
    assert message in told
    assert "secret" not in told


NAMES = st.sampled_from(
    ["prompt", "response", "messages", "conversations", "role", "from", "content", "value", "input", "system", "type",
     "history", "tools", "tool_calls", "function", "name", "arguments", "chosen", "rejected", "weight", "reasoning",
     "thinking", "text", "id", "tool_call_id", "label", "rejected_response", "function_call", "mustContain"]
)  # fmt: skip
WORDS = st.sampled_from(
    ["user", "assistant", "tool", "function", "function_call", "text", "thinking", "{}", "[]", "on"]
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(NAMES, ANYTHING, max_size=6)
TURNS = st.lists(OBJECTS | st.fixed_dictionaries({"role": WORDS, "content": ANYTHING}), max_size=4)


@given(
    OBJECTS,
    st.dictionaries(st.sampled_from(["messages", "chosen", "rejected", "prompt", "completion", "history"]), TURNS),
    st.sampled_from(["Text", "Instruction", "Preference"]),
)
def test_any_object_is_a_record_or_refused(value: Json, turns: Json, data_format: str) -> None:
    spec = a_data_spec(format=data_format)
    try:
        record = reading(spec).record(value | turns, "a.parquet", 1)
    except DataError as error:
        assert str(error).startswith("a.parquet:1")  # noqa: PT017
    else:
        assert record is None or [*record.texts()]


def test_what_json_cannot_say_is_refused() -> None:
    deep: Json = {"name": "find"}
    for _ in range(5000):
        deep = {"name": "find", "parameters": deep}
    for tool in (deep, {"name": "find", "since": b"secret"}):
        with pytest.raises(DataError, match="JSON cannot say"):
            reading(a_data_spec(**INSTRUCTION)).record({"messages": [ASKED, ANSWERED], "tools": [tool]}, "a", 1)


def test_an_answer_that_ends_within_its_thought_is_refused_wherever_it_would_be_learned() -> None:
    turns = messages([("user", "who?"), ("assistant", "\n<think>\nit bar"), ("user", "why?"), ("assistant", "so")])
    told = "a.jsonl:1: message 2 opens <think> and does not close it (hint: take the record away, it was probably cut, "
    assert refusal({"messages": turns}).startswith(told)
    assert refusal({"prompt": "who?", "response": "<think>it bar"}).startswith(told)
    turns[1]["weight"] = 0
    assert made({"messages": turns}).text == "so"
    assert made({"prompt": "who?", "response": "it says <think> here"}).text == "it says <think> here"


@pytest.mark.parametrize("empty", ["", " ", [], {}, None])
@pytest.mark.parametrize("field", ["tool_calls", "function_call", "weight"])
def test_a_field_of_a_message_that_says_nothing_is_absent(field: str, empty: Any) -> None:
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}]
    assert made({"messages": [turns[0], turns[1] | {field: empty}]}) == made({"messages": turns})


def test_a_chosen_answer_that_ends_within_its_thought_is_refused() -> None:
    value = {"prompt": "Who?", "chosen": "<think>\nhm, so", "rejected": "no"}
    assert "opens <think> and does not close it" in refusal(value, **PREFERENCE)


def test_a_table_may_have_the_chosen_answer_as_its_last_message() -> None:
    assert reading(a_data_spec(**PREFERENCE)).columns(["messages", "rejected"], "a.parquet") == ["messages", "rejected"]
