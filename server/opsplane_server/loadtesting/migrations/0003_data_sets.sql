-- Data sets: rows that simulated users draw from.

CREATE TABLE loadtesting.data_sets (
    key         bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    project_id  text NOT NULL REFERENCES loadtesting.projects (id),
    id          text NOT NULL,
    title       text NOT NULL,
    -- Format of an uploaded file; empty for a query.
    format      text NOT NULL DEFAULT '',
    -- A query, without its password.
    clickhouse  jsonb,
    -- The query's password, encrypted with the data set's name as context.
    password    bytea,
    -- What a query gave at its last use, or what was uploaded.
    fields      text[] NOT NULL DEFAULT '{}',
    row_count   bigint NOT NULL DEFAULT 0,
    sha256      text NOT NULL DEFAULT '',
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, id),
    CHECK ((format = '') = (clickhouse IS NOT NULL))
);
CREATE INDEX data_sets_by_age ON loadtesting.data_sets (project_id, key);

-- Rows of uploaded data sets, each a line of JSON, compressed with zstd.
CREATE TABLE loadtesting.data_set_rows (
    project_id text NOT NULL,
    id         text NOT NULL,
    lines      bytea NOT NULL,
    PRIMARY KEY (project_id, id),
    FOREIGN KEY (project_id, id) REFERENCES loadtesting.data_sets (project_id, id) ON DELETE CASCADE
);
ALTER TABLE loadtesting.data_set_rows ALTER COLUMN lines SET STORAGE EXTERNAL;
