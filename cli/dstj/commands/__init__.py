"""What the commands do: a function for each, which arguments.py names as "module:function".

A command reads its arguments, works through the other rooms, prints, and returns an exit code.  What goes wrong is
raised as a JobError, which cli.py prints as one line and a hint.  A module is imported when its command runs, so that a
heavy import costs only the command that needs it.
"""
