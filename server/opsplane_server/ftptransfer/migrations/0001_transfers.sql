-- Connections, transfers and their queue.

-- In every table `key` grows with age: lists are ordered and paged by it. It is never shown.

-- No two settings that a connection of one name ever had carry the same revision, not even after it was deleted and made
-- anew: who keeps sessions can tell by it whether they still fit.
CREATE SEQUENCE ftptransfer.revisions;

CREATE TABLE ftptransfer.connections (
    key         bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    id          text COLLATE "C" PRIMARY KEY,
    title       text NOT NULL,
    -- `ftp` or `local`.
    kind        text NOT NULL CHECK (kind IN ('ftp', 'local')),
    -- Empty for a local folder.
    host        text NOT NULL,
    -- The rest but the password.
    settings    jsonb NOT NULL,
    -- Encrypted with the connection's name as context; null without one.
    password    bytea,
    revision    bigint NOT NULL DEFAULT nextval('ftptransfer.revisions'),
    create_time timestamptz NOT NULL DEFAULT now(),
    update_time timestamptz NOT NULL DEFAULT now()
);

-- A transfer is a row here, which stays as it was submitted; one of `queue` until it ends; then one of `endings`. So what
-- changes often is narrow, and each of the others is written once, without a dead row to clean up.
CREATE TABLE ftptransfer.transfers (
    key                    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id                     text COLLATE "C" NOT NULL UNIQUE,
    task_id                text COLLATE "C" NOT NULL,
    -- What makes it the same task when it comes again: the task_id, or what begins with a control character.
    task_key               text COLLATE "C",
    group_name             text COLLATE "C" NOT NULL,
    parent_key             bigint,
    -- Ids of connections; of a task that came wrong from Kafka, what its message had.
    source_connection      text NOT NULL,
    source_path            text NOT NULL,
    destination_connection text NOT NULL,
    destination_path       text NOT NULL,
    -- The one of the two that is the FTP server; empty for a task that came wrong.
    remote                 text COLLATE "C" NOT NULL,
    selection              text NOT NULL,
    priority               text NOT NULL,
    existing_file          text NOT NULL,
    max_attempts           smallint NOT NULL,
    retry_count            smallint NOT NULL,
    sha256                 text NOT NULL,
    -- A JSON object; as text, because JSON may hold what jsonb can not.
    metadata               text,
    origin_kind            text NOT NULL,
    submitter              text NOT NULL,
    topic_partition        integer NOT NULL,
    topic_offset           bigint NOT NULL,
    -- The message from Kafka, which its result repeats.
    message                jsonb,
    create_time            timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX transfers_by_task ON ftptransfer.transfers (task_key) WHERE task_key IS NOT NULL;
CREATE INDEX transfers_by_other_task ON ftptransfer.transfers (task_id)
    WHERE task_id <> '' AND task_key IS DISTINCT FROM task_id;
CREATE INDEX transfers_by_group ON ftptransfer.transfers (group_name, key) WHERE group_name <> '';
CREATE INDEX transfers_by_parent ON ftptransfer.transfers (parent_key, key) WHERE parent_key IS NOT NULL;

CREATE TABLE ftptransfer.endings (
    key                bigint PRIMARY KEY,
    state              text NOT NULL CHECK (state IN ('SUCCEEDED', 'FAILED', 'CANCELLED')),
    -- An object with code, reason, message, ftp_code, retryable and time.
    failure            jsonb,
    attempt_count      smallint NOT NULL DEFAULT 0,
    size_bytes         bigint,
    bytes_transferred  bigint NOT NULL DEFAULT 0,
    resumed_bytes      bigint NOT NULL DEFAULT 0,
    skipped            boolean NOT NULL DEFAULT false,
    source_modify_time timestamptz,
    start_time         timestamptz,
    end_time           timestamptz NOT NULL DEFAULT now(),
    duration           interval
);
CREATE INDEX endings_failed ON ftptransfer.endings (key) WHERE state = 'FAILED';

-- The transfers that have not ended, in narrow rows that change often.
CREATE TABLE ftptransfer.queue (
    key               bigint PRIMARY KEY,
    remote            text COLLATE "C" NOT NULL,
    parent_key        bigint,
    -- Its end is to be told to Kafka.
    to_tell           boolean NOT NULL DEFAULT false,
    -- 0 goes first: HIGH, NORMAL, LOW.
    rank              smallint NOT NULL,
    -- When it was submitted, when its next attempt is due, or since when it is cancelled and waits.
    due               timestamptz NOT NULL,
    -- RUNNING without a worker is a glob or tree whose files are all in the queue.
    state             text NOT NULL CHECK (state IN ('PENDING', 'RUNNING', 'WAITING')),
    cancelled         boolean NOT NULL DEFAULT false,
    -- Who has it; the lease itself is the worker's, in `workers`. Each taking raises the generation, and who writes must
    -- name both.
    worker            text,
    generation        integer NOT NULL DEFAULT 0,
    attempt_count     smallint NOT NULL DEFAULT 0,
    -- How often a worker died that had it.
    crashes           smallint NOT NULL DEFAULT 0,
    failure           jsonb,
    size_bytes        bigint,
    -- Of the source that has `size_bytes`, when what an attempt left at the destination was begun; null while nothing is
    -- known of that. The next attempt goes on from there when the source is still the same.
    source_modify_time timestamptz,
    bytes_transferred bigint NOT NULL DEFAULT 0,
    bytes_per_second  double precision NOT NULL DEFAULT 0,
    start_time        timestamptz,
    update_time       timestamptz NOT NULL DEFAULT now()
) WITH (
    fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_insert_scale_factor = 0.2, autovacuum_vacuum_cost_delay = 0
);
-- Work is looked for connection by connection, so that those whose tasks can not be done now cost nothing.
CREATE INDEX queue_ready ON ftptransfer.queue (remote, rank, due, key) WHERE state <> 'RUNNING' AND NOT cancelled;
CREATE INDEX queue_taken ON ftptransfer.queue (worker, key) WHERE worker IS NOT NULL;
CREATE INDEX queue_expanded ON ftptransfer.queue (key) WHERE state = 'RUNNING' AND worker IS NULL;
CREATE INDEX queue_cancelled ON ftptransfer.queue (key) WHERE cancelled;
-- Those of which something may be left at the destination.
CREATE INDEX queue_left_over ON ftptransfer.queue (due, key) WHERE cancelled AND generation > 0 AND state <> 'RUNNING';
CREATE INDEX queue_by_parent ON ftptransfer.queue (parent_key) WHERE parent_key IS NOT NULL;

-- Globs and trees: counts of what was made of them.
CREATE TABLE ftptransfer.families (
    key               bigint PRIMARY KEY,
    total             bigint NOT NULL DEFAULT 0,
    succeeded         bigint NOT NULL DEFAULT 0,
    failed            bigint NOT NULL DEFAULT 0,
    cancelled         bigint NOT NULL DEFAULT 0,
    skipped           bigint NOT NULL DEFAULT 0,
    size_bytes        bigint NOT NULL DEFAULT 0,
    bytes_transferred bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

-- Processes that serve FtpTransfer, with their figures, and the leases of those that do transfers.
CREATE TABLE ftptransfer.workers (
    worker            text PRIMARY KEY,
    -- Null: it takes no tasks.
    lease_until       timestamptz,
    version           text NOT NULL DEFAULT '',
    start_time        timestamptz NOT NULL DEFAULT now(),
    seen_time         timestamptz NOT NULL DEFAULT now(),
    draining          boolean NOT NULL DEFAULT false,
    tasks_in_progress integer NOT NULL DEFAULT 0,
    bytes_per_second  double precision NOT NULL DEFAULT 0,
    files_per_second  double precision NOT NULL DEFAULT 0,
    -- An object with an object for each connection, by its id.
    pools             jsonb NOT NULL DEFAULT '{}'
) WITH (fillfactor = 50);

-- What has ended since the database was made: a row for each worker, added up in the same transaction as what it counts,
-- and one without a name for all that are gone.
CREATE TABLE ftptransfer.totals (
    worker           text PRIMARY KEY,
    succeeded        bigint NOT NULL DEFAULT 0,
    cancelled        bigint NOT NULL DEFAULT 0,
    invalid_config   bigint NOT NULL DEFAULT 0,
    file_not_found   bigint NOT NULL DEFAULT 0,
    connection_error bigint NOT NULL DEFAULT 0,
    io_error         bigint NOT NULL DEFAULT 0,
    unknown_error    bigint NOT NULL DEFAULT 0,
    malformed        bigint NOT NULL DEFAULT 0,
    bytes            bigint NOT NULL DEFAULT 0,
    create_time      timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);
INSERT INTO ftptransfer.totals (worker) VALUES ('');

-- Which transfers were submitted or changed their state, for those who follow them: a row for each transaction, in
-- commit-safe order (see storage/followers.py), for some minutes.
CREATE TABLE ftptransfer.changes (
    id   bigint GENERATED ALWAYS AS IDENTITY,
    xid  xid8 NOT NULL DEFAULT pg_current_xact_id(),
    time timestamptz NOT NULL DEFAULT now(),
    keys bigint[] NOT NULL,
    PRIMARY KEY (xid, id)
);
