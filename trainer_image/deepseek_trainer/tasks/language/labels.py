"""Which of a job's labels a model chooses for each prompt.

A label's score is its log-probability as the whole response, end of text included; nothing is generated.
Shapes: B pairs of a prompt and a label in a batch, P prompts, L labels.
"""

from collections.abc import Sequence

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerFast

from deepseek_trainer.model.modes import answering
from deepseek_trainer.tasks.language.batch import TokenBatch, collate
from deepseek_trainer.tasks.language.loss import row_losses
from deepseek_trainer.tasks.language.packing import Document, packed_row, row_dtype
from deepseek_trainer.tasks.language.prompts import Prompt
from deepseek_trainer.tasks.language.tokenizer import answered, id_limit, pad_id


def label_scores(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Prompt],
    labels: Sequence[str],
    batch_size: int,
) -> list[list[float]]:
    """The log-probability [nats] of each label as the response to each prompt: P lists of L numbers.

    A forward pass takes at most `batch_size` pairs of a prompt and a label, padded to the longest of them.
    """
    pairs = [answered(tokenizer, prompt.prompt, label, prompt.tools) for prompt in prompts for label in labels]
    scores: list[float] = []
    with answering(model):
        for start in range(0, len(pairs), batch_size):
            scores += (-row_losses(model, _batch(pairs[start : start + batch_size], tokenizer))).tolist()
    return [scores[i : i + len(labels)] for i in range(0, len(scores), len(labels))]


def _batch(pairs: Sequence[Document], tokenizer: PreTrainedTokenizerFast) -> TokenBatch:
    """One pair a row, as training sees them."""
    dtype = row_dtype(max(map(len, pairs)), id_limit(tokenizer))
    rows = np.concatenate([packed_row([pair], dtype, pad_id(tokenizer)) for pair in pairs])
    return collate(rows)
