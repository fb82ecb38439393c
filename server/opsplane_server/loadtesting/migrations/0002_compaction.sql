-- Windows of runs that ended some time ago are joined into longer ones, once.

ALTER TABLE loadtesting.runs ADD COLUMN compacted boolean NOT NULL DEFAULT false;
CREATE INDEX runs_to_compact ON loadtesting.runs (end_time) WHERE end_time IS NOT NULL AND NOT compacted;
