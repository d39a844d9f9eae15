"""The PostgreSQL and Redis that `kronos-db dev` and the tests start."""
