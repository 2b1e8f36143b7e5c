"""The pure core: tickets, policies, events, errors, and the ledger that decides.

No trio, no mlx, no structlog, no clock: time comes in as `now`, and what is to be done goes out
as effects.
"""
