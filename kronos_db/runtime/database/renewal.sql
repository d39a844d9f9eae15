-- name: lose_positions
-- Lets nobody go on from a position before now.
UPDATE {schema}.change_horizon
SET purged = GREATEST(purged, pg_current_xact_id());

-- name: expel_all
-- Counts out all who keep copies.
DELETE FROM {schema}.copy_holder;
