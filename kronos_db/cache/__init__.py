"""Indexed, tagged, fast copies of data, for callers to keep."""
