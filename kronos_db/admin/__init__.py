"""The domain of operators: status, restricted SQL, slow queries, indexes, backups, and the audit log."""
