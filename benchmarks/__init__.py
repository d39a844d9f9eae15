"""Measures this server beside its floors, side by side in one run."""
