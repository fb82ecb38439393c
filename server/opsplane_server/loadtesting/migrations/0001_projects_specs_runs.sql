-- Projects, analyzed specifications with their endpoints, and runs with their measured windows.

-- In every table `key` grows with age: lists are ordered and paged by it. It is never shown.

CREATE TABLE loadtesting.projects (
    key         bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    id          text PRIMARY KEY,
    title       text NOT NULL,
    summary     text NOT NULL DEFAULT '',
    description text NOT NULL DEFAULT '',
    revision    bigint NOT NULL DEFAULT 1,
    create_time timestamptz NOT NULL DEFAULT now(),
    update_time timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE loadtesting.specs (
    key            bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    project_id     text NOT NULL REFERENCES loadtesting.projects (id),
    id             text NOT NULL,
    title          text NOT NULL,
    version        text NOT NULL,
    base_url       text NOT NULL,
    source_url     text NOT NULL,
    size_bytes     bigint NOT NULL,
    endpoint_count integer NOT NULL,
    -- What only people read: description, servers, tags, security schemes, warnings.
    document       jsonb NOT NULL,
    create_time    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, id)
);
CREATE INDEX specs_by_age ON loadtesting.specs (project_id, key);

CREATE TABLE loadtesting.endpoints (
    -- In the document's order.
    key          bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    project_id   text NOT NULL,
    spec_id      text NOT NULL,
    id           text NOT NULL,
    method       text NOT NULL,
    path         text NOT NULL,
    operation_id text NOT NULL,
    summary      text NOT NULL,
    tags         text[] NOT NULL,
    -- The whole endpoint, as scripts are made from it.
    definition   jsonb NOT NULL,
    PRIMARY KEY (project_id, spec_id, id),
    FOREIGN KEY (project_id, spec_id) REFERENCES loadtesting.specs (project_id, id) ON DELETE CASCADE
);
CREATE INDEX endpoints_by_age ON loadtesting.endpoints (project_id, spec_id, key);
CREATE INDEX endpoints_by_tag ON loadtesting.endpoints USING gin (tags);

CREATE TABLE loadtesting.runs (
    key               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project_id        text NOT NULL REFERENCES loadtesting.projects (id),
    id                text NOT NULL,
    title             text NOT NULL,
    description       text NOT NULL,
    creator           text NOT NULL,
    trace_id          text NOT NULL,
    -- The operation that supervises it.
    operation         text NOT NULL,
    -- The run as it was asked for, with its endpoints as they were then: deleting a specification changes no history.
    plan              jsonb NOT NULL,
    script            text NOT NULL,
    -- Credentials for the API under test, encrypted with the run's name as context.
    credentials       bytea,
    -- SHA-256 of the token with which load generators deliver figures; null when none may any more.
    token_hash        bytea UNIQUE,
    state             text NOT NULL,
    verdict           text NOT NULL DEFAULT '',
    failure_reason    text NOT NULL DEFAULT '',
    failure_message   text NOT NULL DEFAULT '',
    notes             text[] NOT NULL DEFAULT '{}',
    generator_version text NOT NULL DEFAULT '',
    -- Results and missed targets, set at the end.
    outcome           jsonb,
    create_time       timestamptz NOT NULL DEFAULT now(),
    start_time        timestamptz,
    end_time          timestamptz,
    UNIQUE (project_id, id),
    CHECK (state IN ('PENDING', 'RUNNING', 'STOPPING', 'COMPLETED', 'CANCELLED', 'FAILED'))
);
CREATE INDEX runs_by_age ON loadtesting.runs (project_id, key);
CREATE INDEX runs_active ON loadtesting.runs (project_id) WHERE state IN ('PENDING', 'RUNNING', 'STOPPING');

-- One packed row for each export of a load generator: about a second of all its series.
CREATE TABLE loadtesting.windows (
    run_key   bigint NOT NULL REFERENCES loadtesting.runs (key) ON DELETE CASCADE,
    -- The load generator that measured it.
    instance  text NOT NULL,
    -- End of the export's interval, nanoseconds since 1970. OTLP repeats an export whose answer was lost: the key keeps one.
    time_nano bigint NOT NULL,
    data      bytea NOT NULL,
    id        bigint GENERATED ALWAYS AS IDENTITY,
    xid       xid8 NOT NULL DEFAULT pg_current_xact_id(),
    PRIMARY KEY (run_key, instance, time_nano)
);
-- Followers read in commit-safe order.
CREATE INDEX windows_by_position ON loadtesting.windows (run_key, xid, id);
ALTER TABLE loadtesting.windows ALTER COLUMN data SET STORAGE EXTERNAL;

-- What load generators wrote on their console, and the run's own events.
CREATE TABLE loadtesting.run_log (
    key      bigint GENERATED ALWAYS AS IDENTITY,
    run_key  bigint NOT NULL REFERENCES loadtesting.runs (key) ON DELETE CASCADE,
    log_time timestamptz NOT NULL,
    source   text NOT NULL,
    level    text NOT NULL,
    message  text NOT NULL,
    PRIMARY KEY (run_key, key)
);
