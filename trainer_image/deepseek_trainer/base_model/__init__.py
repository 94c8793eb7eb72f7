"""A base model as files on a claim: found, checked, and copied to where training reads it.

No code that the user gave is run, and torch is not needed.  `source` finds the model (`place`) and compares it with the
digest that the job names (`digest`) and its weights with config.json (`directory`, `headers`).  It copies them through
the job's vault, translating GGUF on the way (`gguf_file`, `gguf_model`), and records where they came from.

Nothing in the files is trusted.  Settings have bounds (`bounds`); tokenizer and template are tried in a process that
may be killed (`examination`, `confined`); and whatever else goes wrong while they are read is a refusal (`guard`).
"""
