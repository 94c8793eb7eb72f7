"""A record of a language job: what is asked, and what is learned as the answer.

Its content is private; messages name its place.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field, replace

from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.tasks.language.conversation import (
    ASSISTANT,
    USER,
    Conversation,
    Message,
    Question,
    ToolCall,
    as_text,
)


@dataclass(frozen=True, slots=True)
class Record:
    """A record of Text, Instruction or Preference data.

    Text has no `prompt`.  In Instruction, `text` is the response, or what a conversation's last turn says; that one is
    always learned.  In Preference, it is the chosen response, and `rejected` is the other one.
    """

    prompt: Question | None
    text: str
    source: str
    line: int  # in a table the row
    must_contain: tuple[str, ...] = ()
    label: str | None = None  # its class, with data.balanceBy
    rejected: str | None = None
    tools: tuple[str, ...] = ()  # that the assistant may call: the JSON text of each
    reasoning: str = ""  # what the assistant thought before this answer
    tool_calls: tuple[ToolCall, ...] = ()  # of this answer
    unused: tuple[str, ...] = field(default=(), compare=False)  # names of fields of which nothing was made

    @property
    def place(self) -> str:
        return f"{self.source}:{self.line}"

    @property
    def answer(self) -> Message:
        """The last turn."""
        return Message(ASSISTANT, self.text, self.reasoning, self.tool_calls)

    @property
    def conversation(self) -> Conversation:
        """All turns of a record that has a question."""
        assert self.prompt is not None, "of questions with answers only"
        asked = self.prompt if isinstance(self.prompt, tuple) else (Message(USER, self.prompt),)
        return (*asked, self.answer)

    def texts(self) -> Iterator[str]:
        """All texts in it, in order."""
        yield from self.tools
        if self.prompt is None:
            yield self.text
            return
        for message in self.conversation:
            yield from _texts(message)
        if self.rejected is not None:
            yield self.rejected

    def sides(self) -> "tuple[Record, Record]":
        """A Preference record as two Instruction records: the chosen answer, the rejected one."""
        assert self.rejected is not None, "of pairs only"
        return replace(self, rejected=None), replace(self, text=self.rejected, rejected=None)

    def size_bytes(self) -> int:
        return sum(len(text.encode()) for text in self.texts())

    def key(self) -> int:
        """64 bits of a hash of the content: equal records have equal keys, wherever they stand.

        What is learned of it does not count, so that an answer is never on both sides.
        """
        rejected = "" if self.rejected is None else f"\0{self.rejected}"
        content = f"{as_text(self.prompt or '')}\0{self.text}{rejected}{self._besides()}".encode()
        return int.from_bytes(hashlib.blake2b(content, digest_size=8, person=b"dstj record").digest(), "big")

    def _besides(self) -> str:
        """What plain questions and answers do not have, as JSON; empty for them."""
        turns = () if self.prompt is None else self.conversation
        extras = [[turn.reasoning, [astuple(call) for call in turn.tool_calls]] for turn in turns]
        if not self.tools and not any(part for extra in extras for part in extra):
            return ""
        return "\0" + json_text([self.tools, extras])


def _texts(message: Message) -> Iterator[str]:
    if message.reasoning:
        yield message.reasoning
    yield message.content
    for call in message.tool_calls:
        yield call.name
        yield call.arguments
