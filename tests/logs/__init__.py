"""Tests of the logs domain."""
