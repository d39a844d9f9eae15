"""Clients that are not ours against a running server."""
