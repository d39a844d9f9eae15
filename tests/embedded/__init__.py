"""Tests of kronos_db.embedded."""
