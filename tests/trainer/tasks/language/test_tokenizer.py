import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.tasks.language import tokenizer as subject
from deepseek_trainer.tasks.language.records import Record
from deepseek_trainer.tasks.language.tokenizer import (
    answered,
    documents,
    id_limit,
    pad_id,
    prompt_ids,
    token_bytes,
    trained_tokenizer,
)

CORPUS = ["the quick brown fox jumps over the lazy dog\nand then\n\nit sleeps.  Ünïcode too: 漢字 🙂 \n"] * 3
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def scratch():
    return trained_tokenizer(CORPUS, 320)


@pytest.fixture(scope="module")
def chatty():
    """A base model's tokenizer with a chat template, an end of turn and no padding token."""
    special = {"<|im_start|>": 0, "<|im_end|>": 1}
    vocab = special | {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), 2)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", chat_template=CHATML)


def text(content):
    return Record(None, content, "a.txt", 1)


def instruction(prompt, response):
    return Record(prompt, response, "a.jsonl", 1)


def learned_text(tokenizer, document):
    return tokenizer.decode(document.tokens[document.learned].tolist())


def test_the_same_texts_train_the_same_tokenizer(scratch):
    assert trained_tokenizer(iter(CORPUS), 320).backend_tokenizer.to_str() == scratch.backend_tokenizer.to_str()


def test_a_trained_tokenizer_has_at_most_the_tokens_asked_for(scratch):
    assert id_limit(scratch) == len(scratch) == 320
    assert 259 <= id_limit(trained_tokenizer(["ab"], 5000)) < 300


def test_a_trained_tokenizer_can_spell_what_it_never_saw(scratch):
    unseen = "\x00 Zażółć 日本\t🤖\r\n"
    (document,) = documents(scratch, [text(unseen)])
    assert scratch.decode(document.tokens.tolist()) == f"<|begin|>{unseen}<|end|>"


def test_a_text_is_learned_to_its_end(scratch):
    (document,) = documents(scratch, [text("the fox")])
    assert document.tokens[0] == scratch.bos_token_id
    assert document.tokens[-1] == scratch.eos_token_id
    assert document.num_targets == len(document) - 1


def test_only_the_response_and_the_end_of_turn_are_learned(scratch, chatty):
    (plain,) = documents(scratch, [instruction("who?", "the dog")])
    assert learned_text(scratch, plain) == "the dog<|end|>"
    assert scratch.decode(plain.tokens.tolist()) == "<|begin|>### Question\nwho?\n\n### Answer\nthe dog<|end|>"
    (chat,) = documents(chatty, [instruction("who?", "the dog")])
    assert learned_text(chatty, chat) == "the dog<|im_end|>"
    rendered = "<|im_start|>user\nwho?<|im_end|>\n<|im_start|>assistant\nthe dog<|im_end|>"
    assert chatty.decode(chat.tokens.tolist()) == rendered


@pytest.mark.parametrize("name", ["scratch", "chatty"])
def test_an_answer_is_asked_for_with_the_tokens_seen_in_training(name, request):
    tokenizer = request.getfixturevalue(name)
    (document,) = documents(tokenizer, [instruction("who?", "the dog")])
    assert prompt_ids(tokenizer, "who?") == document.tokens[~document.learned].tolist()


def test_a_base_model_that_begins_texts_with_a_token_gets_it(chatty):
    backend = Tokenizer.from_str(chatty.backend_tokenizer.to_str())
    backend.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 0)])
    begins = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>")
    tokens = [next(documents(tokenizer, [text("ab")])).tokens.tolist() for tokenizer in (begins, chatty)]
    assert tokens[0] == [0, *tokens[1]]


def test_records_come_out_in_order_over_many_batches(scratch, monkeypatch):
    monkeypatch.setattr(subject, "_BATCH_CHARACTERS", 20)
    records = [text(f"record {i}") for i in range(17)]
    decoded = [scratch.decode(document.tokens[1:-1].tolist()) for document in documents(scratch, records)]
    assert decoded == [record.text for record in records]


def test_cutting_a_long_text_for_parallel_work_changes_no_token(scratch, monkeypatch):
    long = "".join(CORPUS) * 5
    (whole,) = documents(scratch, [text(long)])
    monkeypatch.setattr(subject, "_PIECE_CHARACTERS", 10)
    assert len(list(subject._pieces(long))) > 5
    (pieced,) = documents(scratch, [text(long)])
    assert pieced.tokens.tolist() == whole.tokens.tolist()


def test_rows_are_padded_with_the_end_of_text_where_there_is_no_padding_token(scratch, chatty):
    assert scratch.decode([pad_id(scratch)]) == "<|pad|>"
    assert pad_id(chatty) == chatty.eos_token_id == 1


def test_a_tokenizer_without_an_end_of_text_is_refused(chatty):
    endless = PreTrainedTokenizerFast(tokenizer_object=chatty.backend_tokenizer)
    with pytest.raises(ConfigError, match="no end-of-text token"):
        list(documents(endless, [text("x")]))


def test_an_answer_to_a_question_has_the_tokens_that_are_learned_of_it(scratch, chatty):
    for tokenizer in (scratch, chatty):
        (document,) = documents(tokenizer, [instruction("why?", "\u56e0\u4e3a 12")])
        same = answered(tokenizer, "why?", "\u56e0\u4e3a 12")
        assert (same.tokens.tolist(), same.learned.tolist()) == (document.tokens.tolist(), document.learned.tolist())


@given(content=st.text())
def test_the_bytes_of_the_tokens_are_those_of_the_text(scratch, content):
    """Also where a token is a part of a character, and with the ends of text, which are none."""
    (document,) = documents(scratch, [text(content)])
    assert token_bytes(scratch)[document.tokens].sum() == len(content.encode())


def test_the_bytes_of_added_tokens_are_those_of_what_they_say():
    tokenizer = trained_tokenizer(CORPUS, 320)
    tokenizer.add_tokens(["\u6f22\u5b57\u5b57"])
    tokenizer.add_special_tokens({"unk_token": "<|huh|>"})
    ids = tokenizer("a\u6f22\u5b57\u5b57<|huh|>")["input_ids"]
    assert token_bytes(tokenizer)[ids].tolist() == [1, 9, 0]


def test_a_tokenizer_whose_tokens_are_not_bytes_of_the_text_has_no_sizes():
    metaspace = Tokenizer(models.BPE())
    metaspace.decoder = decoders.Metaspace()
    spaced = Tokenizer(models.BPE())
    spaced.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(add_prefix_space=True)])
    spaced.decoder = decoders.ByteLevel()
    for backend in (metaspace, spaced):
        assert token_bytes(PreTrainedTokenizerFast(tokenizer_object=backend)) is None
