-- Backups, the instances that they are of, schedules, and word of events that waits to be sent.

-- In every table `key` grows with age: lists are ordered and paged by it. It is never shown.

-- One row an instance (by uid). It stays as long as there are backups of it or archived log. Whoever changes backups of an
-- instance locks this row first.
CREATE TABLE backups.sources (
    uid         text PRIMARY KEY,
    name        text NOT NULL,
    -- Whether the instance is still there.
    live        boolean NOT NULL DEFAULT true,
    -- Days of its window of point in time recovery; null when its log is not archived.
    window_days integer,
    -- Location of the copy from which on the archived log is kept; null while all of it is.
    pruned      text,
    create_time timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX sources_by_name ON backups.sources (name, create_time);

CREATE TABLE backups.schedules (
    key           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id            text NOT NULL UNIQUE,
    instances     text[] NOT NULL,
    cron          text NOT NULL,
    time_zone     text NOT NULL,
    tiers         jsonb NOT NULL,
    full_every    integer NOT NULL,
    verify_every  integer NOT NULL,
    overdue_after interval NOT NULL,
    suspended     boolean NOT NULL,
    labels        jsonb NOT NULL,
    -- With their signing keys, encrypted with the schedule's name as context; null without any.
    webhooks      bytea,
    -- Null while it is suspended.
    next_run_time timestamptz,
    last_run_time timestamptz,
    revision      bigint NOT NULL DEFAULT 1,
    create_time   timestamptz NOT NULL DEFAULT now(),
    update_time   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX schedules_due ON backups.schedules (next_run_time) WHERE next_run_time IS NOT NULL;

-- How a schedule stands with each of its instances.
CREATE TABLE backups.schedule_instances (
    schedule_key      bigint NOT NULL REFERENCES backups.schedules (key) ON DELETE CASCADE,
    instance          text NOT NULL,
    last_backup       text NOT NULL DEFAULT '',
    last_success_time timestamptz,
    last_failure_time timestamptz,
    last_error        text NOT NULL DEFAULT '',
    -- Good backups since the last full one and since the last that was verified.
    since_full        integer NOT NULL DEFAULT 0,
    since_verified    integer NOT NULL DEFAULT 0,
    -- The earliest time for which there is no good backup yet, and the one of these that word was sent of.
    pending_due       timestamptz,
    told_due          timestamptz,
    PRIMARY KEY (schedule_key, instance)
);
CREATE INDEX schedule_instances_pending ON backups.schedule_instances (pending_due) WHERE pending_due IS NOT NULL;

CREATE TABLE backups.backups (
    key             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id              text NOT NULL UNIQUE,
    -- Also the id of the copy at the instance's provider.
    uid             text NOT NULL UNIQUE,
    instance        text NOT NULL,
    source_uid      text NOT NULL REFERENCES backups.sources (uid),
    type            text NOT NULL CHECK (type IN ('ON_DEMAND', 'SCHEDULED', 'FINAL', 'PRE_UPGRADE')),
    retention_days  integer NOT NULL,
    incremental     boolean NOT NULL,
    description     text NOT NULL,
    labels          jsonb NOT NULL,
    state           text NOT NULL CHECK (state IN ('QUEUED', 'RUNNING', 'READY', 'FAILED', 'DELETING')),
    -- A google.rpc.Status.
    error           bytea,
    -- The name of the backup that it builds on, empty for a full one.
    base            text NOT NULL,
    -- The name stays when the schedule is deleted, the key does not: another one of that name has nothing to do with it.
    schedule        text NOT NULL,
    schedule_key    bigint REFERENCES backups.schedules (key) ON DELETE SET NULL,
    due_time        timestamptz,
    tiers           text[] NOT NULL DEFAULT '{}',
    engine          text NOT NULL,
    -- What the provider told of the copy: set with state READY. `document` goes back to it as it is.
    location        text,
    engine_version  text,
    provider        text,
    method          text,
    consistency     text,
    node            text,
    databases       text[],
    size_bytes      bigint,
    restore_size_bytes bigint,
    copy_start_time timestamptz,
    cut_time        timestamptz,
    copy_complete_time timestamptz,
    copy_base       text,
    logged          boolean,
    document        bytea,
    start_time      timestamptz,
    complete_time   timestamptz,
    expire_time     timestamptz,
    last_good       boolean NOT NULL DEFAULT false,
    -- The last verification that ended, with its state for filters, and since when one is under way.
    verification    jsonb,
    verification_state text,
    verifying_since timestamptz,
    -- The operation that makes or deletes it.
    operation       text NOT NULL,
    revision        bigint NOT NULL DEFAULT 1,
    create_time     timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX backups_by_source ON backups.backups (source_uid, key);
CREATE INDEX backups_by_instance ON backups.backups (instance, key);
CREATE INDEX backups_by_schedule ON backups.backups (schedule_key) WHERE schedule_key IS NOT NULL;
CREATE INDEX backups_by_base ON backups.backups (base) WHERE base <> '';
CREATE INDEX backups_by_expiry ON backups.backups (expire_time) WHERE expire_time IS NOT NULL;

-- Restores, verifications and exports that need the files of a backup.
CREATE TABLE backups.uses (
    backup_key bigint NOT NULL REFERENCES backups.backups (key) ON DELETE CASCADE,
    operation  text NOT NULL,
    PRIMARY KEY (operation, backup_key)
);
CREATE INDEX uses_by_backup ON backups.uses (backup_key);

-- Restores that were not handed over yet, with the passwords of the new instances: encrypted with the operation's name as context.
CREATE TABLE backups.sealed_requests (
    operation text PRIMARY KEY,
    request   bytea NOT NULL
);

-- Events that the service Instances is still to be told.
CREATE TABLE backups.notices (
    key          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event        jsonb NOT NULL,
    -- Told under the same key twice it is recorded once.
    key_text     text NOT NULL,
    -- Those of a schedule, encrypted with `key_text` as context; null without any.
    webhooks     bytea,
    attempts     integer NOT NULL DEFAULT 0,
    next_time    timestamptz NOT NULL DEFAULT now(),
    create_time  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX notices_by_time ON backups.notices (next_time);

-- The process that looks at the clock, at retention and at what is overdue.
CREATE TABLE backups.lead (
    one   boolean PRIMARY KEY DEFAULT true CHECK (one),
    owner text NOT NULL DEFAULT '',
    until timestamptz NOT NULL DEFAULT '-infinity'
);
INSERT INTO backups.lead DEFAULT VALUES;
