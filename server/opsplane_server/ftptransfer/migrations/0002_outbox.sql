-- What is still to be published to Kafka, and who publishes it.

-- A row comes in with the transaction that ends a transfer which has a `message` (success, failed, cancelled), or that takes
-- note of a message which is no task. The publisher reads rows in the order of (xid, id), writes them to Kafka together with
-- its position, in one transaction of Kafka's, and deletes them then.
CREATE TABLE ftptransfer.outbox (
    id                bigint GENERATED ALWAYS AS IDENTITY,
    xid               xid8 NOT NULL DEFAULT pg_current_xact_id(),
    -- 'success', 'failed' or 'cancelled'; all but the first go to the topic of failures.
    status            text NOT NULL,
    -- The message as it came, with its task_id where it had none: the result repeats it. Null for one that is no JSON object.
    message           jsonb,
    bytes_transferred bigint NOT NULL DEFAULT 0,
    duration          interval NOT NULL DEFAULT '0',
    end_time          timestamptz NOT NULL DEFAULT now(),
    error_code        text,
    error_message     text,
    -- Of a message that is no task: where it was, and its text, cut off where it is very long.
    topic             text,
    "partition"       integer,
    "offset"          bigint,
    raw               text,
    PRIMARY KEY (xid, id)
);

-- One row. Its name is part of the names under which Kafka keeps the position: a new database, or one that was taken back
-- to an older state, must not trust the position of another.
CREATE TABLE ftptransfer.publisher (
    single    boolean PRIMARY KEY DEFAULT true CHECK (single),
    name      uuid NOT NULL DEFAULT gen_random_uuid(),
    owner     text NOT NULL DEFAULT '',
    lease_end timestamptz NOT NULL DEFAULT '-infinity',
    -- The last row of the outbox that was published and deleted.
    last_xid  xid8 NOT NULL DEFAULT '0',
    last_id   bigint NOT NULL DEFAULT 0
);

INSERT INTO ftptransfer.publisher DEFAULT VALUES;

-- Messages that are no tasks, so that one which is delivered again does not fail twice; forgotten after 30 days.
-- `time` is the message's: a topic that was made anew counts its offsets from 0 again.
CREATE TABLE ftptransfer.rejected_messages (
    topic       text NOT NULL,
    "partition" integer NOT NULL,
    "offset"    bigint NOT NULL,
    time        bigint NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, "partition", "offset", time)
);

CREATE INDEX rejected_messages_by_age ON ftptransfer.rejected_messages (create_time);
