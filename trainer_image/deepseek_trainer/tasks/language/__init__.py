"""Teaches a decoder of tokens: texts, questions with answers, conversations, and pairs of answers.

Preparation turns `records` into tokens (`chat`, `tokenizer`), packs these into rows (`packing`, `row_maker`) and keeps
held-out `prompts` beside them.  Training makes a row into a `batch` and takes the `loss` of its learned tokens, or the
`preference` of one answer over another (`odds_ratio`: without a reference).  An assessment lets the model answer the
prompts (`answers`) or choose among labels (`labels`).
"""
