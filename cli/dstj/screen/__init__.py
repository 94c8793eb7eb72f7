"""What people see of a job: a panel, lines, a table, its outcome, an error.

The job's manifest comes in.  `view` picks the facts that a person asks for, and the other modules lay them out.
Nothing here changes a job or waits for one.
"""
