-- How far the figures of runs have been copied to another store beside this one.

-- Which copy it is. With another one everything is copied anew.
CREATE TABLE loadtesting.metric_copy (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    name   text NOT NULL
);

-- An entry outlives its run until nothing of the run is left in the copy.
CREATE TABLE loadtesting.copied_runs (
    entry      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_key    bigint UNIQUE REFERENCES loadtesting.runs (key) ON DELETE SET NULL,
    project_id text NOT NULL,
    run_id     text NOT NULL,
    -- The last row that was copied, and how many there are.
    xid        xid8 NOT NULL,
    id         bigint NOT NULL,
    rows       bigint NOT NULL,
    -- The series that the copy tells apart: pairs of scenario and name.
    names      jsonb NOT NULL,
    -- Whether these are rows that were joined after the run.
    compacted  boolean NOT NULL,
    -- False when the copy did not take some.
    whole      boolean NOT NULL
);
CREATE INDEX copied_runs_deleted ON loadtesting.copied_runs (project_id, run_id) WHERE run_key IS NULL;

-- True when the copy has all of an ended run.
ALTER TABLE loadtesting.runs ADD COLUMN copied boolean NOT NULL DEFAULT false;
CREATE INDEX runs_to_copy ON loadtesting.runs (key) WHERE NOT copied;
