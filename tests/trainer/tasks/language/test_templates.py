"""What is learned with chat templates in the style of well-known families."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_trainer.contract.data import MultiTurn
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.tasks.language.chat import opens_thoughts_only, passages, question_parts
from deepseek_trainer.tasks.language.conversation import Message, ToolCall
from deepseek_trainer.tasks.language.records import Record
from deepseek_trainer.tasks.language.tokenizer import answered, documents, prompt_ids, stop_ids
from deepseek_trainer.tasks.language.writing import Talk, Writer
from support.builders.chat import TEMPLATES, a_record, a_tokenizer, all_marked, marked, of_family, talk

TALK = [("system", "be brief"), ("user", "who?"), ("assistant", "the dog"), ("user", "why?"), ("assistant", "so")]
APPEND = ("chatml", "chatml_marked", "deepseek_v3", "deepseek_v31", "gemma", "glm4", "llama2", "llama3")
APPEND += ("mistral_first", "phi4", "qwq", "r1_distill")
REWRITE = ("gpt_oss", "phi3", "qwen3", "qwen3_thinking")  # and mistral_last, if there is a system message
OPENS = ("qwq", "r1_distill")  # a thought, but writes none


def learned_of(name, *turns, **options):
    """The learned part of each document."""
    return [text.split("«", 1)[1] for text in all_marked(of_family(name), *turns, **options)]


@pytest.mark.parametrize("name", APPEND)
def test_a_conversation_is_one_document_where_the_template_only_appends(name):
    (text,) = all_marked(of_family(name), *TALK[1:])
    assert text.count("«") == 2


@pytest.mark.parametrize("name", REWRITE)
def test_each_answer_is_a_document_where_the_template_rewrites(name):
    first, second = all_marked(of_family(name), *TALK[1:])
    assert "the dog" in first.split("«")[1]
    assert "the dog" in second.split("«")[0]
    assert "so" in second.split("«")[1]


@pytest.mark.parametrize("name", TEMPLATES)
def test_with_last_answer_nothing_else_is_learned(name):
    (text,) = all_marked(of_family(name), *TALK[1:], multi_turn=MultiTurn.LAST_ANSWER)
    assert text.count("«") == 1
    assert "the dog" in text.split("«")[0]
    assert "so" in text.split("«")[1]


def test_an_answer_without_a_thought_is_learned_as_the_template_writes_it():
    for name in OPENS:
        (text,) = all_marked(of_family(name), *TALK[1:3])
        assert "think>" not in text
        assert text.split("«")[1].startswith("the dog<|")
    assert learned_of("qwen3", *TALK[1:3]) == ["<think>\n\n</think>\n\nthe dog<|im_end|>»"]
    assert learned_of("qwen3_thinking", *TALK[1:3]) == ["\n</think>\n\nthe dog<|im_end|>»"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_it_is_known_which_templates_open_thoughts_that_they_do_not_write(name):
    assert opens_thoughts_only(of_family(name)) is (name in OPENS)


THOUGHT = Message("assistant", "the dog", reasoning="it barks")
IN_CONTENT = ("assistant", "<think>\nit barks\n</think>\n\nthe dog")


@pytest.mark.parametrize(
    ("name", "learned"),
    [
        ("qwen3", "<think>\nit barks\n</think>\n\nthe dog<|im_end|>»"),
        ("qwen3_thinking", "it barks\n</think>\n\nthe dog<|im_end|>»"),
        ("qwq", "it barks\n</think>\n\nthe dog<|im_end|>»"),
        ("r1_distill", "it barks\n</think>\n\nthe dog<|end|>»"),
        ("deepseek_v31", "it barks</think>the dog<|end|>»"),
    ],
)
def test_a_thought_is_learned_wherever_the_record_has_it(name, learned):
    tokenizer = of_family(name)
    for answer in (THOUGHT, IN_CONTENT):
        (passage,) = passages(Writer(tokenizer), Talk(talk(("user", "who?"), answer)), MultiTurn.EACH_ANSWER)
        (asked, _), (text, _) = passage
        assert text.rstrip("\n") + "»" == learned
        assert (asked + text).count("<think>") == (asked + text).count("</think>") == 1


@pytest.mark.parametrize(
    ("name", "said", "learned"),
    [
        ("r1_distill", "it barks\n</think>\n\nthe dog", "it barks\n</think>\n\nthe dog<|end|>»"),
        ("qwq", "it barks</think>the dog", "it barks\n</think>\n\nthe dog<|im_end|>»"),
        ("deepseek_v31", "it barks</think>the dog", "it barks</think>the dog<|end|>»"),
        ("qwen3", "it barks</think>the dog", "<think>\nit barks\n</think>\n\nthe dog<|im_end|>»"),
        ("r1_distill", "<think>\nso\n</think>\n\nso", "so\n</think>\n\nso<|end|>»"),
        ("r1_distill", "<think>\n\n</think>\n\nthe dog", "\n</think>\n\nthe dog<|end|>»"),
        ("qwq", "<think>\n\n</think>\n\nthe dog", "\n</think>\n\nthe dog<|im_end|>»"),
    ],
)
def test_a_thought_is_learned_also_without_its_opening_or_empty_or_like_the_answer(name, said, learned):
    assert learned_of(name, ("user", "who?"), ("assistant", said)) == [learned]


@pytest.mark.parametrize("name", ["r1_distill", "qwq", "qwen3", "qwen3_thinking", "deepseek_v31"])
def test_words_between_two_ends_of_thoughts_are_refused_where_the_template_drops_them(name):
    with pytest.raises(ConfigError, match="does not write all of message 2, which has </think> more than once"):
        all_marked(of_family(name), ("user", "?"), ("assistant", "<think>a</think>the dog</think>sits"))


def test_a_thought_goes_into_the_channel_of_its_own():
    (passage,) = passages(Writer(of_family("gpt_oss")), Talk(talk(("user", "who?"), THOUGHT)), MultiTurn.EACH_ANSWER)
    assert passage[1][0] == (
        "<|channel|>analysis<|message|>it barks<|end_of_message|><|start|>assistant<|channel|>final<|message|>"
        "the dog<|return|>"
    )


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "mistral_first", "phi3", "glm4"])
def test_a_thought_that_the_template_does_not_write_is_refused(name):
    with pytest.raises(ConfigError, match=r"a.jsonl:1: the chat template does not write the reasoning of message 2"):
        passages(Writer(of_family(name)), Talk(talk(("user", "?"), THOUGHT), "a.jsonl:1"), MultiTurn.EACH_ANSWER)


def test_a_system_message_that_is_written_only_before_the_answer_stays_in_its_prompt():
    assert all_marked(of_family("mistral_last"), *TALK) == [
        "<|begin|>[INST] be brief\n\nwho?[/INST]« the dog<|end|>»",
        "<|begin|>[INST] who?[/INST] the dog<|end|>[INST] be brief\n\nwhy?[/INST]« so<|end|>»",
    ]


def test_the_opening_of_the_next_turn_is_learned_where_nothing_else_ends_an_answer():
    assert all_marked(of_family("glm4"), *TALK) == [
        "[gMASK]<sop><|system|>\nbe brief<|user|>\nwho?<|assistant|>\n«the dog<|user|>»\nwhy?<|assistant|>\n«so<|end|>»"
    ]
    plain = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    assert all_marked(a_tokenizer(plain), *TALK[1:]) == [
        "user: who?\n«assistant: the dog\n»user: why?\n«assistant: so\n<|end|>»"
    ]


def test_what_a_template_passes_over_is_refused():
    silent = "{% for m in messages if m.role != 'system' %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    with pytest.raises(ConfigError) as error:
        all_marked(a_tokenizer(silent), *TALK)
    assert str(error.value) == (
        "a.jsonl:3: the chat template does not write message 1, the system's (hint: leave out what it does not take, "
        "often the system message, or bring another: model.chatTemplate)"
    )


def test_an_answer_without_weight_is_context():
    wrong = Message("assistant", "WRONG", is_learned=False)
    for name, parts in (("chatml", 1), ("qwen3", 1), (None, 1)):
        tokenizer = of_family(name) if name else a_tokenizer(None)
        record = Record(talk(("user", "who?"), wrong, ("user", "again")), "right", "a", 1)
        (document,) = documents(tokenizer, [record])
        text = marked(tokenizer, document)
        assert (text.count("«"), "WRONG" in text.split("«")[0], "right" in text.split("«")[1]) == (parts, True, True)


CALL = Message("assistant", "", tool_calls=(ToolCall("find", '{"what": "dog", "n": 2}'),))
TOOL = json.dumps({"type": "function", "function": {"name": "find", "description": "finds", "parameters": {}}})
CALLS = talk(("user", "who?"), CALL, ("tool", "a dog"), ("assistant", "the dog"))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("qwen3", '{"name": "find", "arguments": {"what": "dog", "n": 2}}'),
        ("llama3", '{"name": "find", "parameters": {"what": "dog", "n": 2}}<|eot|>'),
        ("mistral_last", '{"name": "find", "arguments": {"what": "dog", "n": 2}}'),
        ("deepseek_v3", 'find\n```json\n{"what": "dog", "n": 2}\n```'),
        ("r1_distill", 'find\n```json\n{"what": "dog", "n": 2}\n```'),
    ],
)
def test_tool_calls_are_learned_in_the_words_of_the_template(name, call):
    found = passages(Writer(of_family(name)), Talk(CALLS), MultiTurn.EACH_ANSWER)
    learned = "".join(text for passage in found for text, is_learned in passage if is_learned)
    context = "".join(text for passage in found for text, is_learned in passage if not is_learned)
    assert call in learned
    assert "the dog" in learned
    assert "a dog" in context


@pytest.mark.parametrize("name", ["chatml", "gemma", "phi3", "gpt_oss"])
def test_tool_calls_that_the_template_does_not_write_are_refused(name):
    with pytest.raises(ConfigError, match="chat template"):
        passages(Writer(of_family(name)), Talk(CALLS), MultiTurn.EACH_ANSWER)


@pytest.mark.parametrize("name", TEMPLATES)
def test_tools_are_written_or_refused(name):
    given = Talk(talk(("user", "who?"), ("assistant", "me")), "a.jsonl:1", (TOOL,))
    if name in ("qwen3", "qwen3_thinking", "llama3"):
        ((asked, _), _) = passages(Writer(of_family(name)), given, MultiTurn.EACH_ANSWER)[0]
        assert '"find"' in asked
    elif name == "mistral_last":
        assert '"find"' in passages(Writer(of_family(name)), given, MultiTurn.EACH_ANSWER)[0][0][0]
    else:
        with pytest.raises(ConfigError, match=r"a.jsonl:1: the chat template does not write the record's tools"):
            passages(Writer(of_family(name)), given, MultiTurn.EACH_ANSWER)


ENDS = {"chatml": "<|im_end|>", "gemma": "<|im_end|>", "llama3": "<|eot|>", "phi4": "<|im_end|>", "glm4": "<|user|>"}


@pytest.mark.parametrize("name", TEMPLATES)
def test_generation_stops_at_the_end_of_turn(name):
    tokenizer = of_family(name)
    ends = {tokenizer.eos_token, ENDS.get(name, tokenizer.eos_token)}
    if name == "chatml_marked":
        ends.add("<|im_end|>")
    assert set(tokenizer.convert_ids_to_tokens(stop_ids(tokenizer))) == ends


words = st.text(st.sampled_from("ab <>\n.漢🙂"), min_size=1, max_size=8).filter(str.strip)
MERGES = [("Ċ", "Ċ"), ("Ċ", "a"), ("Ġ", "a"), ("a", "b"), (".", "Ċ"), ("ĊĊ", "a")]  # Ċ: line end, Ġ: space
systems = st.none() | words
TOKENIZERS = {name: of_family(name, merges=MERGES) for name in TEMPLATES}


@pytest.mark.parametrize("name", TEMPLATES)
@settings(deadline=None, max_examples=12)
@given(systems, st.lists(st.tuples(words, words), min_size=1, max_size=3), st.sampled_from(MultiTurn))
def test_what_is_learned_is_what_the_template_writes(name, system, pairs, multi_turn):
    has_system = system is not None and name != "llama2"
    said = [turn for question, answer in pairs for turn in (("user", question), ("assistant", answer))]
    turns = talk(*([("system", system)] if has_system else []), *said)
    writer = Writer(TOKENIZERS[name])
    found = passages(writer, Talk(turns), multi_turn)
    places = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
    if multi_turn is MultiTurn.LAST_ANSWER:
        places = places[-1:]
    for passage in found:
        whole = ""
        for text, learned in passage:
            if learned:
                at = places.pop(0)
                opened = "<think>\n" if name in OPENS else ""
                assert whole + opened == writer.asked(Talk(turns[:at]))
                assert turns[at].content.strip() in text
            whole += text
        assert whole == written(writer, turns[: at + 1], name, has_system)
    assert not places


def written(writer, turns, name, has_system):
    """What the template writes; with the system message, which one template writes only before the answer."""
    if name == "mistral_last" and has_system:
        return writer.asked(Talk(turns[:-1])) + f" {turns[-1].content.strip()}<|end|>"
    return writer.whole(Talk(turns))


QUESTIONS = (("who?", "the dog"), (" a\n", "\n\na."), ("a.", "<b>\nb "), ("漢", "🙂 a"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompt_and_response_is_a_conversation_of_one_question(name):
    tokenizer = TOKENIZERS[name]
    conversations = [a_record(("user", question), ("assistant", answer)) for question, answer in QUESTIONS]
    singles = [Record(question, answer, "a", 1) for question, answer in QUESTIONS]
    found = list(documents(tokenizer, [*conversations, *singles]))
    for one, other, (question, answer) in zip(found[:4], found[4:], QUESTIONS, strict=True):
        same = answered(tokenizer, question, answer)
        assert one.tokens.tolist() == other.tokens.tolist() == same.tokens.tolist()
        assert one.learned.tolist() == other.learned.tolist() == same.learned.tolist()
        asked = prompt_ids(tokenizer, question)
        is_prefix = same.tokens[: len(asked)].tolist() == asked
        assert is_prefix is (name not in OPENS)
        assert not is_prefix or same.learned[len(asked) - 1 : len(asked) + 1].tolist() == [False, True]


@pytest.mark.parametrize("name", TEMPLATES)
@settings(deadline=None, max_examples=8)
@given(st.lists(st.tuples(words, words), min_size=2, max_size=3))
def test_the_last_answer_follows_the_tokens_with_which_it_is_asked_for(name, pairs):
    tokenizer = TOKENIZERS[name]
    *_, (question, last) = pairs
    said = [turn for asked, answer in pairs[:-1] for turn in (("user", asked), ("assistant", answer))]
    turns = talk(*said, ("user", question))
    asked = prompt_ids(tokenizer, turns)
    assert (answered(tokenizer, turns, last).tokens[: len(asked)].tolist() == asked) is (name not in OPENS)
    assert "".join(question_parts(Writer(tokenizer), Talk(turns))) == Writer(tokenizer).asked(Talk(turns))
