"""Backups of the whole cluster: sealed base backups, the sealed archive of its WAL, restore, drill."""
