"""Pushes the changes of a log to those who watch it."""
