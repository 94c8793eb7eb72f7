"""What a job leaves behind: the model, its card and its report, committed as one directory.

The trained model, the event log and the scores from before and after training come in.  `export` writes weights and
what the task adds to them, `card` a README without a sample of the data, `report` a page with charts and answers.  All
of it goes through the job's vault, and replaces an earlier result in one step.
"""
