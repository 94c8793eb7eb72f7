"""What operator and trainer agree on: the job file, names, paths, exit codes, failures and progress.

The models here become the CRD's schema, the messages of `dstj validate` and the trainer's config.json: the three
cannot disagree.  The operator writes the config and reads failures and progress; the trainer does the reverse.
The room imports neither torch nor kopf nor the rest of the trainer, so that both sides can afford it.
"""
