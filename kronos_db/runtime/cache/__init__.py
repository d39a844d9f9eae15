"""Copies of data in process memory and in Redis that are never answered from when they are old."""
