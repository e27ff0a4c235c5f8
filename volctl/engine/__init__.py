"""The engine: flows of revertible tasks, a journal in the same transactions as the rows, and locks.

`task` is what one writes, `run` drives, undoes and settles, `journal` is the two tables, `locks` the
files under `locks/` in the state directory.
"""
