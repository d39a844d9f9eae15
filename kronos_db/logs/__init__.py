"""The logs domain: structured log records, taken in, found, followed, counted and dropped by age."""
