-- Instances, their passwords, what happened to them, what they use.

-- In every table `key` grows with age: lists are ordered and paged by it. It is never shown.

CREATE TABLE instances.instances (
    key                 bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    name                text COLLATE "C" PRIMARY KEY,
    uid                 text COLLATE "C" NOT NULL UNIQUE,
    -- Of the settings, for filters.
    engine              text NOT NULL,
    provider            text NOT NULL,
    -- Whose local provider has it; empty for any.
    machine             text NOT NULL,
    -- As it was asked for; the settings have the exact one.
    version             text NOT NULL,
    -- What is to be (InstanceSpec).
    spec                jsonb NOT NULL,
    -- The same before an update that is under way.
    previous            jsonb,
    state               text NOT NULL,
    state_message       text NOT NULL,
    -- What its provider saw last (Status).
    status              jsonb NOT NULL,
    -- The operation that changes it now; empty for none.
    operation           text NOT NULL,
    deletion_protection boolean NOT NULL,
    expire_time         timestamptz,
    labels              jsonb NOT NULL,
    -- A list of url, kinds and signing_key, that encrypted in base64 with the instance's name as context.
    webhooks            jsonb NOT NULL,
    last_upgrade        jsonb,
    source_backup       text NOT NULL,
    source_time         timestamptz,
    -- Its newest usable backup, and the bytes of all.
    backup              text NOT NULL DEFAULT '',
    backup_cut_time     timestamptz,
    backup_size_bytes   bigint NOT NULL DEFAULT 0,
    -- Scratch instances are not shown.
    hidden              boolean NOT NULL,
    revision            bigint NOT NULL,
    create_time         timestamptz NOT NULL DEFAULT now(),
    update_time         timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);
CREATE INDEX instances_by_machine ON instances.instances (machine, key);

-- Passwords of users, and of the accounts by which the server works, each encrypted with `{instance}/users/{user}` as
-- context.
CREATE TABLE instances.passwords (
    instance text COLLATE "C" NOT NULL REFERENCES instances.instances (name) ON DELETE CASCADE,
    username text COLLATE "C" NOT NULL,
    password bytea NOT NULL,
    set_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (instance, username)
);

-- Passwords that operations are yet to set, encrypted with the operation's name as context.
CREATE TABLE instances.pending_passwords (
    operation text COLLATE "C" PRIMARY KEY,
    password  bytea NOT NULL
);

-- What happened, for ever; followers read it in commit-safe order (see storage/followers.py).
CREATE TABLE instances.events (
    id                bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    xid               xid8 NOT NULL DEFAULT pg_current_xact_id(),
    event_time        timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind              text NOT NULL,
    severity          text NOT NULL,
    instance          text COLLATE "C" NOT NULL,
    instance_uid      text COLLATE "C" NOT NULL,
    node              text NOT NULL,
    resource          text NOT NULL,
    operation         text NOT NULL,
    message           text NOT NULL,
    principal         text NOT NULL,
    trace_id          text NOT NULL,
    deduplication_key text COLLATE "C" UNIQUE
);
CREATE INDEX events_by_instance ON instances.events (instance, id);
CREATE INDEX events_by_position ON instances.events (instance_uid, xid, id);

-- Events that are yet to be posted.
CREATE TABLE instances.webhook_posts (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id      bigint NOT NULL REFERENCES instances.events (id),
    url           text NOT NULL,
    -- Encrypted with the URL as context; null for unsigned posts.
    signing_key   bytea,
    attempt_count integer NOT NULL DEFAULT 0,
    last_error    text NOT NULL DEFAULT '',
    -- When it is due; while a process has it, when another may.
    due           timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX webhook_posts_by_due ON instances.webhook_posts (due);

-- What was read of instances in the last minutes.
CREATE TABLE instances.samples (
    instance_uid text COLLATE "C" NOT NULL,
    sample_time  timestamptz NOT NULL,
    -- InstanceSample.
    sample       jsonb NOT NULL,
    PRIMARY KEY (instance_uid, sample_time)
);
CREATE INDEX samples_by_time ON instances.samples (sample_time);

-- Up to when usage is counted.
CREATE TABLE instances.metering (
    instance_uid text COLLATE "C" PRIMARY KEY,
    until        timestamptz
);

-- Usage, a row for each instance and hour (UTC) in which it used something.
CREATE TABLE instances.usage (
    instance          text COLLATE "C" NOT NULL,
    instance_uid      text COLLATE "C" NOT NULL,
    hour              timestamptz NOT NULL,
    cpu_core_hours    double precision NOT NULL,
    memory_gib_hours  double precision NOT NULL,
    storage_gib_hours double precision NOT NULL,
    backup_gib_hours  double precision NOT NULL,
    cost_micros       double precision NOT NULL,
    PRIMARY KEY (hour, instance_uid)
);
CREATE INDEX usage_by_instance ON instances.usage (instance, hour);
