"""A believable shop for whoever wants to look around: `make demo` fills it, `make demo-remove` takes it out again.

It stands beside the rooms and above them: nothing of the program knows of it.
"""
