"""LVM as a backend needs it: reports as data, one function per verb, one lock per volume group.

`report` reads a volume group in one call, `commands` changes it, `blocks` works on what is in an LV,
`room` says how much more fits, `locking` keeps many commands from waiting on each other inside LVM.
"""
