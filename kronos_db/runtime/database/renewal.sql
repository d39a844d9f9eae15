-- name: lose_positions
-- Lets nobody go on from a position before now.
UPDATE {schema}.change_horizon
SET purged = GREATEST(purged, pg_current_xact_id());

-- name: raise_fences
-- Lets leases be taken at once, with fences above all that were ever given: what is in the table may be older than these.
UPDATE {schema}.lease
SET expire_time = clock_timestamp(), fence = fence + extract(epoch FROM clock_timestamp())::bigint;

-- name: expel_all
-- Counts out all who keep copies.
DELETE FROM {schema}.copy_holder;
