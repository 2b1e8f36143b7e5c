"""Pure decisions about steps and rows: which share a batch, what they hold, whose turn it is.

No trio, no mlx: the engine and the simulation drive the same code.
"""
