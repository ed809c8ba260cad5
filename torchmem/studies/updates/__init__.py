"""Isolated updates: what one update of the weights changed, beside what training changes anyway.

    isolate.py       isolate_update: branches, nulls, scales, salvage, for one agent
    experiment.py    the same over seeds, in one folder, resumable: `torchmem updates run`
    legacy.py        recorded runs of the program that this replaces
"""
