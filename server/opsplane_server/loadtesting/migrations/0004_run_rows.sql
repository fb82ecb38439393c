-- The rows that users of a run draw from, prepared before it starts: it starts again with the same after a crash.

CREATE TABLE loadtesting.run_rows (
    run_key bigint NOT NULL REFERENCES loadtesting.runs (key) ON DELETE CASCADE,
    pool    text NOT NULL,
    -- A JSON array of objects, compressed.
    data    bytea NOT NULL,
    PRIMARY KEY (run_key, pool)
);
ALTER TABLE loadtesting.run_rows ALTER COLUMN data SET STORAGE EXTERNAL;
