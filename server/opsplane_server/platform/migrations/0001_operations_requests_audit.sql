-- Long-running operations. The row is the operation: who works on it, how far it came, how it ended.
CREATE TABLE platform.operations (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE CHECK (name ~ '^operations/[a-z0-9-]{1,63}$'),
    kind text NOT NULL,
    verb text NOT NULL,
    target text NOT NULL,
    -- Kinds that are a resource of their own (a run) are not listed as operations.
    hidden boolean NOT NULL,
    request_type text,
    request bytea,
    request_id text NOT NULL,
    principal text NOT NULL,
    -- The only machine that may work on it; NULL for any.
    node text,

    state text NOT NULL DEFAULT 'PENDING'
        CHECK (state IN ('PENDING', 'RUNNING', 'SUCCEEDED', 'FAILED', 'CANCELLED')),
    -- The last checkpoint: where the next process goes on.
    step text NOT NULL DEFAULT '',
    data jsonb NOT NULL DEFAULT '{}',
    stage text NOT NULL DEFAULT '',
    progress_percent integer NOT NULL DEFAULT 0 CHECK (progress_percent BETWEEN 0 AND 100),
    cancel_requested boolean NOT NULL DEFAULT false,

    -- Each take-over raises the generation, and every write names the generation that it belongs to.
    lease_owner text,
    lease_until timestamptz,
    generation bigint NOT NULL DEFAULT 0,
    attempt integer NOT NULL DEFAULT 0,
    -- Take-overs from a process that died or hung, as against one that gave the lease back.
    crashes integer NOT NULL DEFAULT 0,

    -- The result, as the parts of google.protobuf.Any and of google.rpc.Status.
    response_type text,
    response bytea,
    error_code integer,
    error_message text,
    -- Each a serialized google.protobuf.Any.
    error_details bytea[],

    -- Grows by one with each change that a watcher should see.
    revision bigint NOT NULL DEFAULT 1,
    create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    update_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    end_time timestamptz,
    CHECK ((end_time IS NULL) = (state IN ('PENDING', 'RUNNING')))
);

-- The executor's question, "what is due?", looks at unfinished operations alone, however long the history.
CREATE INDEX operations_unfinished ON platform.operations (id) WHERE end_time IS NULL;
CREATE INDEX operations_cancelled ON platform.operations (lease_owner) WHERE end_time IS NULL AND cancel_requested;
CREATE INDEX operations_finished ON platform.operations (end_time) WHERE end_time IS NOT NULL;
CREATE INDEX operations_target ON platform.operations (target, id);

-- What was answered to a request_id, so that a repeated call gets the same answer.
CREATE TABLE platform.requests (
    principal text NOT NULL,
    method text NOT NULL,
    request_id text NOT NULL,
    -- SHA-256 of the request without its request_id.
    body_hash bytea NOT NULL,
    -- Written in the transaction that inserts the row, so nobody else ever reads NULL here.
    response bytea,
    create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (principal, method, request_id)
);

CREATE INDEX requests_create_time ON platform.requests (create_time);

-- Who changed what. Rows are written in the transaction of the change and never updated or removed.
CREATE TABLE platform.audit_events (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    principal text NOT NULL,
    method text NOT NULL,
    resource text NOT NULL,
    request_id text NOT NULL,
    peer text NOT NULL,
    trace_id text NOT NULL
);

CREATE INDEX audit_events_principal ON platform.audit_events (principal, id);
CREATE INDEX audit_events_resource ON platform.audit_events (resource, id);
