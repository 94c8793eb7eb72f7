"""Tokenizers with chat templates in the style of well-known families."""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from deepseek_trainer.tasks.language.conversation import Message
from deepseek_trainer.tasks.language.records import Record
from deepseek_trainer.tasks.language.tokenizer import documents

TEMPLATES = {
    path.stem: path.read_text() for path in sorted((Path(__file__).parents[1] / "samples/templates").glob("*.jinja"))
}
SPECIAL = [
    "<|im_start|>",
    "<|im_end|>",
    "<|begin|>",
    "<|end|>",
    "<|head|>",
    "<|/head|>",
    "<|eot|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|sep|>",
    "<|start|>",
    "<|message|>",
    "<|channel|>",
    "<|return|>",
    "<|end_of_message|>",
    "[gMASK]",
    "<sop>",
    "[INST]",
    "[/INST]",
    "<|call|>",
    "<|/call|>",
]
ENDS = {"gpt_oss": "<|return|>", "qwen3": "<|im_end|>", "qwen3_thinking": "<|im_end|>", "qwq": "<|im_end|>"}


def a_tokenizer(template, end="<|end|>", merges=()):
    """Bytes, `merges` of them, special tokens, and the marks of thoughts, which are none."""
    pieces = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    backend = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    backend.add_tokens([AddedToken(mark, normalized=False) for mark in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin|>", eos_token=end, chat_template=template
    )


def of_family(name, **options):
    return a_tokenizer(TEMPLATES[name], ENDS.get(name, "<|end|>"), **options)


def talk(*turns):
    """Messages from pairs of role and content; an answer may be a Message."""
    return tuple(turn if isinstance(turn, Message) else Message(*turn) for turn in turns)


def a_record(*turns):
    *before, last = talk(*turns)
    return Record(tuple(before), last.content, "a.jsonl", 3)


def marked(tokenizer, document):
    """What the document says token by token, with « » around what is learned."""
    text, was = "", False
    for learned, tokens in runs(document):
        text += ("«" if learned else "»" if was else "") + tokenizer.decode(tokens, skip_special_tokens=False)
        was = learned
    return text + ("»" if was else "")


def runs(document):
    """Tokens by whether they are learned."""
    found = []
    for token, learned in zip(document.tokens.tolist(), document.learned.tolist(), strict=True):
        if not found or found[-1][0] != learned:
            found.append((learned, []))
        found[-1][1].append(token)
    return found


def all_marked(tokenizer, *turns, **options):
    return [marked(tokenizer, document) for document in documents(tokenizer, [a_record(*turns)], **options)]
