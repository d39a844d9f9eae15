-- Whether copies depend on what a change changed. Who keeps them does not read the others.
ALTER TABLE change ADD COLUMN copied boolean NOT NULL DEFAULT true;
