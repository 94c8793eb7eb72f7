import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from deepseek_trainer.contract.errors import ConfigError, DataError
from deepseek_trainer.contract.volume import VolumePath
from deepseek_trainer.data.sources import Source
from deepseek_trainer.tasks.language.conversation import Message, as_text
from deepseek_trainer.tasks.language.packing import IGNORED
from deepseek_trainer.tasks.language.reading import reading
from deepseek_trainer.tasks.language.records import Record
from deepseek_trainer.tasks.language.tokenizer import documents, prompt_ids
from deepseek_trainer.worker.vaults import data_vault
from support.builders.data import (
    CLAIM,
    RUN,
    RUN_ID,
    a_config,
    a_data_spec,
    open_prepared,
    prepare,
    questions,
    some_paths,
    write_jsonl,
)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Gemma: no system message, the assistant is called otherwise, and a turn does not end as a text does.
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ m.content | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
)
# As Llama 2: no special token opens an answer, and there is no generation prompt.
LLAMA = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# As Qwen 3: only the last answer shows that there was no thinking.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK = [("system", "be brief"), ("user", "who?"), ("assistant", "the dog"), ("user", "why?"), ("assistant", "漢字 🙂")]


def a_tokenizer(template, end="<|im_end|>", merges=()):
    """Bytes, `merges` of them, and four special tokens."""
    special = ["<|im_start|>", "<|im_end|>", "<|begin|>", "<|end|>"]
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    backend = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin|>", eos_token=end, chat_template=template
    )


def a_record(*turns):
    *before, (_, answer) = turns
    return Record(tuple(Message(role, content) for role, content in before), answer, "a.jsonl", 3)


def marked(tokenizer, *turns):
    """What the document says token by token, with « » around what is learned."""
    (document,) = documents(tokenizer, [a_record(*turns)])
    return spelled(tokenizer, document)


def spelled(tokenizer, document):
    text, was = b"", False
    for token, learned in zip(document.tokens.tolist(), document.learned.tolist(), strict=True):
        text += ("«" if learned else "»").encode() if learned != was else b""
        text += bytes_of(tokenizer, token)
        was = learned
    return text.decode() + ("»" if was else "")


def bytes_of(tokenizer, token):
    piece = tokenizer.convert_ids_to_tokens(token)
    alphabet = byte_alphabet()
    return piece.encode() if piece.startswith("<|") else bytes(alphabet[letter] for letter in piece)


def byte_alphabet():
    """The letter that byte-level BPE writes for each byte, as GPT-2's encoder has it."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def test_each_answer_is_learned_with_its_end_of_turn_and_nothing_else():
    assert marked(a_tokenizer(CHATML), *TALK) == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nwho?<|im_end|>\n"
        "<|im_start|>assistant\n«the dog<|im_end|>»\n<|im_start|>user\nwhy?<|im_end|>\n"
        "<|im_start|>assistant\n«漢字 🙂<|im_end|>»"
    )


def test_an_end_of_text_follows_where_turns_end_otherwise():
    assert marked(a_tokenizer(GEMMA, end="<|end|>"), *TALK[1:]) == (
        "<|begin|><|im_start|>user\nwho?<|im_end|>\n<|im_start|>model\n«the dog<|im_end|>»\n"
        "<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>model\n«漢字 🙂<|im_end|><|end|>»"
    )


def test_a_template_without_a_generation_prompt_is_learned_from_the_end_of_the_question():
    assert marked(a_tokenizer(LLAMA, end="<|end|>"), *TALK[1:]) == (
        "[INST] who? [/INST]« the dog <|end|>»[INST] why? [/INST]« 漢字 🙂 <|end|>»"
    )


def test_without_a_template_each_question_is_put_as_a_single_one():
    assert marked(a_tokenizer(None, end="<|end|>"), *TALK) == (
        "<|begin|>### System\nbe brief\n\n### Question\nwho?\n\n### Answer\n«the dog<|end|>»"
        "### Question\nwhy?\n\n### Answer\n«漢字 🙂<|end|>»"
    )


def test_white_space_of_an_answer_is_learned():
    spaced = [("user", "who?"), ("assistant", " the dog\n\n")]
    assert marked(a_tokenizer(CHATML), *spaced).endswith("assistant\n« the dog\n\n<|im_end|>»")


def test_an_answer_that_writes_a_special_token_is_learned_to_its_own_end():
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    odd = [("user", "who?"), ("assistant", "<|im_start|> opens a turn")]
    assert marked(a_tokenizer(template), *odd) == "user: who?\n«assistant: <|im_start|> opens a turn\n<|im_end|>»"


@pytest.mark.parametrize("template", [CHATML, None], ids=["template", "plain"])
def test_a_conversation_of_one_question_has_the_tokens_of_prompt_and_response(template):
    tokenizer = a_tokenizer(template)
    both = [a_record(("user", "who?"), ("assistant", "the dog")), Record("who?", "the dog", "a.jsonl", 1)]
    one, other = documents(tokenizer, both)
    assert one.tokens.tolist() == other.tokens.tolist()
    assert one.learned.tolist() == other.learned.tolist()


def test_kinds_of_instruction_records_can_be_mixed():
    records = [a_record(*TALK), Record("who?", "one", "a", 1), Record("who?", "two", "a", 2), a_record(*TALK[1:])]
    alone = [document.tokens.tolist() for record in records for document in documents(a_tokenizer(CHATML), [record])]
    assert [document.tokens.tolist() for document in documents(a_tokenizer(CHATML), records)] == alone


words = st.text(st.sampled_from("ab \n.漢🙂"), min_size=1).filter(str.strip)
MERGES = [("Ċ", "Ċ"), ("Ċ", "a"), ("Ġ", "a"), ("a", "b"), (".", "Ċ"), ("ĊĊ", "a")]  # Ċ: line end, Ġ: space


@pytest.mark.parametrize("template", [CHATML, GEMMA, LLAMA, None], ids=["chatml", "gemma", "llama", "plain"])
@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(words, words), min_size=1, max_size=4))
def test_every_answer_is_learned_after_the_tokens_with_which_it_is_asked_for(template, talk):
    """Also where a token could reach across the border between question and answer."""
    tokenizer = a_tokenizer(template, merges=MERGES)
    turns = [turn for question, answer in talk for turn in (("user", question), ("assistant", answer))]
    (document,) = documents(tokenizer, [a_record(*turns)])
    learned = document.learned.tolist()
    for i in range(1, len(turns), 2):
        asked = prompt_ids(tokenizer, tuple(Message(*turn) for turn in turns[:i]))
        assert document.tokens[: len(asked)].tolist() == asked
        assert learned[len(asked) - 1 : len(asked) + 1] == [False, True]
    starts = [i for i in range(1, len(learned)) if learned[i] and not learned[i - 1]]
    assert len(starts) == len(talk)


def test_where_earlier_turns_are_rewritten_each_answer_is_learned_by_itself():
    tokenizer = a_tokenizer(FORGETFUL)
    first, second = documents(tokenizer, [a_record(*TALK)])
    opening = "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nwho?<|im_end|>\n<|im_start|>assistant\n"
    assert spelled(tokenizer, first) == f"{opening}«<think>\n\n</think>\n\nthe dog<|im_end|>»"
    assert spelled(tokenizer, second) == (
        f"{opening}the dog<|im_end|>\n<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n"
        "«<think>\n\n</think>\n\n漢字 🙂<|im_end|>»"
    )


def test_a_template_that_only_rewrites_later_serves_a_single_question():
    assert marked(a_tokenizer(FORGETFUL), *TALK[1:3]).endswith("«<think>\n\n</think>\n\nthe dog<|im_end|>»")


def test_a_conversation_that_the_template_refuses_is_named():
    with pytest.raises(ConfigError) as error:
        marked(a_tokenizer(GEMMA), *TALK)
    assert str(error.value) == (
        "a.jsonl:3: the chat template refuses it: System role not supported "
        "(hint: leave out what it does not take, often the system message, or bring another: model.chatTemplate)"
    )


def test_what_a_template_quotes_of_a_record_is_not_shown():
    with pytest.raises(ConfigError) as error:
        marked(a_tokenizer("{{ raise_exception(messages[0].content) }}"), ("user", "top secret"), ("assistant", "x"))
    assert "a.jsonl:3: the chat template refuses it (hint" in str(error.value)
    assert "secret" not in str(error.value)


@pytest.fixture
def paths(tmp_path):
    return some_paths(tmp_path)


def talk(*turns):
    return [{"role": role, "content": content} for role, content in turns]


def found(paths, **data):
    spec = a_data_spec(format="Instruction", **data)
    return list(Source.find(VolumePath(claim_name=CLAIM, path="a.jsonl"), spec, paths, reading(spec)).records())


def test_a_conversation_is_read_from_the_field_that_the_job_names(paths):
    rows = [{"turns": talk(*TALK), "mustContain": "dog"}, {"prompt": "who?", "response": "me", "turns": None}]
    write_jsonl(paths, "a.jsonl", rows)
    chat, single = found(paths, messagesField="turns")
    assert chat.prompt == tuple(Message(*turn) for turn in TALK[:-1])
    assert (chat.text, chat.must_contain, list(chat.texts())) == ("漢字 🙂", ("dog",), [said for _, said in TALK])
    assert (single.prompt, single.text) == ("who?", "me")


MESSAGE = '(hint: a message is {"role": "system", "user", "assistant" or "tool", "content": "..."})'
ORDER = "after an optional system message, user and assistant take turns, and the assistant has the last word"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("secret", f"a.jsonl:2: field 'messages' must be a list of messages, this is a string {MESSAGE}"),
        ([], "a.jsonl:2: field 'messages' is an empty list: a conversation has a question and an answer"),
        (["secret"], f"a.jsonl:2: message 1 must be an object, this is a string {MESSAGE}"),
        (
            [{"who": "human", "value": "secret"}],
            f"a.jsonl:2: message 1: no field 'role'; it has: who, value {MESSAGE}",
        ),
        ([{"role": "user"}], f"a.jsonl:2: message 1: no field 'content'; it has: role {MESSAGE}"),
        (talk(("user", None)), "a.jsonl:2: message 1: field 'content' must be a string, this is null"),
        (
            talk(("user", "a"), ("secret", "b")),
            f"a.jsonl:2: message 2: field 'role' must be one of system, user, assistant, tool {MESSAGE}",
        ),
        (
            talk(("user", "a"), ("assistant", " ")),
            "a.jsonl:2: message 2: field 'content' is empty: each turn says something",
        ),
        (talk(("assistant", "a")), f"a.jsonl:2: message 1 is the assistant's, it must be the user's: {ORDER}"),
        (
            talk(("user", "a"), ("user", "b"), ("assistant", "c")),
            f"a.jsonl:2: message 2 is the user's, it must be the assistant's: {ORDER}",
        ),
        (
            talk(("user", "a"), ("system", "b"), ("assistant", "c")),
            f"a.jsonl:2: message 2 is the system's, it must be the assistant's: {ORDER}",
        ),
        (
            talk(("user", "a"), ("assistant", "b"), ("user", "c")),
            f"a.jsonl:2: the last message is the user's: {ORDER}",
        ),
        (talk(("system", "a")), f"a.jsonl:2: the last message is the system's: {ORDER}"),
    ],
)
def test_a_bad_conversation_is_refused_by_file_line_and_rule(paths, messages, message):
    write_jsonl(paths, "a.jsonl", [questions(1)[0], {"messages": messages}])
    with pytest.raises(DataError) as error:
        found(paths)
    assert str(error.value) == message


def test_conversations_are_prepared_and_their_last_questions_asked(paths):
    trained = [{"messages": talk(*TALK, ("user", f"{i}?"), ("assistant", "so"))} for i in range(9)]
    held = [{"messages": talk(*TALK)}, questions(1)[0]]
    data = prepared(paths, trained, held, length=256)
    assert [as_text(prompt.prompt) for prompt in data.prompts] == [
        "system: be brief\nuser: who?\nassistant: the dog\nuser: why?",
        held[1]["prompt"],
    ]
    assert data.prompts[0].response == "漢字 🙂"
    assert learned_text(data, data.validation) == f"the dog<|end|>漢字 🙂<|end|>{held[1]['response']}<|end|>"


def test_a_conversation_is_cut_where_the_row_ends(paths):
    long = talk(("user", "short?"), ("assistant", "first"), ("user", "more?"), ("assistant", "word " * 500))
    hopeless = talk(("user", "word " * 500), ("assistant", "no"))
    data = prepared(paths, [{"messages": long}, {"messages": hopeless}], questions(1), length=96)
    counts = data.counts["train"]
    assert (counts.records, counts.amounts["cut"], counts.dropped, counts.rows) == (2, 1, 1, 1)
    assert re.fullmatch(r"first<\|end\|>(word )+(w|wo|wor|word)?", learned_text(data, data.train))


def prepared(paths, train, validation, length):
    write_jsonl(paths, "train.jsonl", train)
    write_jsonl(paths, "validation.jsonl", validation)
    places = {name: {"claimName": CLAIM, "path": f"{name}.jsonl"} for name in ("train", "validation")}
    config = a_config(format="Instruction", sequenceLength=length, **places)
    vault = data_vault(config, paths)
    prepare(config, paths, vault, RUN_ID)
    return open_prepared(config, paths, vault, RUN)


def learned_text(data, rows):
    """Of the only row."""
    assert len(rows) == 1
    targets = rows.batch([0]).targets_BT[0]
    return data.tokenizer.decode(targets[targets != IGNORED])
