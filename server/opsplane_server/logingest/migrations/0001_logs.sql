-- Log records, by day of their own time. A partition is dropped as a whole when its day is no longer kept.
-- What a COPY costs decides this table: no default, no constraint but NOT NULL, and no btree.
CREATE TABLE logingest.records (
    id bigint NOT NULL,                  -- the group's id plus the place in the group
    received_at timestamptz NOT NULL,
    timestamp timestamptz NOT NULL,
    level smallint NOT NULL,             -- the number in opsplane.logingest.v1.Level
    service text NOT NULL,
    message text NOT NULL,
    service_version text,
    environment text,
    host text,
    logger text,
    thread text,
    trace_id text,
    span_id text,
    request_id text,
    user_id text,
    session_id text,
    http_method text,
    http_path text,
    http_status smallint,
    duration_ms double precision,
    error_type text,
    stack_trace text,
    metadata jsonb
) PARTITION BY RANGE (timestamp);

-- What one transaction stored: batches of many senders by one COPY. The identities of its records follow its own.
CREATE SEQUENCE logingest.group_ids AS bigint INCREMENT BY 1048576 MINVALUE 1048576;

CREATE TABLE logingest.groups (
    id bigint PRIMARY KEY,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    received_at timestamptz NOT NULL,
    record_count integer NOT NULL,
    first_time timestamptz NOT NULL,
    last_time timestamptz NOT NULL,
    -- How many records of which minute (since 1970), service and level: four parallel arrays, to be added up later.
    minutes integer[] NOT NULL,
    services text[] NOT NULL,
    levels smallint[] NOT NULL,
    counts integer[] NOT NULL
);
CREATE INDEX groups_by_place ON logingest.groups (xid, id);

-- The answers to batches with an id, so that one that is sent again is stored once and answered alike.
CREATE TABLE logingest.batches (
    sender text NOT NULL,
    batch_id text NOT NULL,
    record_count integer NOT NULL,
    result bytea NOT NULL,               -- opsplane.logingest.v1.BatchResult without its sequence
    received_at timestamptz NOT NULL,
    PRIMARY KEY (sender, batch_id)
);
CREATE INDEX batches_by_age ON logingest.batches USING brin (received_at);
