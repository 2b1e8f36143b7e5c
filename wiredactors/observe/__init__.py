"""Reads events only: log records, the board for a live view, timelines and pictures."""
