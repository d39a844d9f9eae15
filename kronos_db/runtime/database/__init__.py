"""PostgreSQL: pools, transactions and retries, named queries, migrations, idempotency."""
