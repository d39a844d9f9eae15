"""The tests, laid out as `kronos_db` is."""
