"""One process of a job among others: its config, its signals, its rank, and how it ends.

On each node the launcher, PID 1, keeps torchrun's agent, and the agent keeps the ranks.  Ranks agree before one of them
acts (`agreement`, `distributed`), processes of a node leave each other small files (`scratch`), and agents watch the
other nodes (`heartbeat`).  Signals flow down.  Failures flow up, and the one closest to the cause ends the worker
(`failure`) with its exit code.
"""
