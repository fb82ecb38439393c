-- How far a background task has come in logingest.groups, by their place (xid, id): 'folded' into the rollups, and
-- 'pruned': groups up to here are no longer kept; its id is that of the last record.
CREATE TABLE logingest.positions (
    name text PRIMARY KEY,
    xid xid8 NOT NULL,
    id bigint NOT NULL
);
INSERT INTO logingest.positions (name, xid, id) VALUES ('folded', '0', 0), ('pruned', '0', 0);

-- How many records of a service and level lie in `width` minutes (1, 60 and 1440) from `start` (minutes since 1970).
CREATE TABLE logingest.rollups (
    width smallint NOT NULL,
    start integer NOT NULL,
    service text NOT NULL,
    level smallint NOT NULL,
    count bigint NOT NULL,
    PRIMARY KEY (width, start, service, level)
) WITH (fillfactor = 70);

-- A text whose words PostgreSQL's parser takes apart: it would keep addresses, paths and compounds as one word.
-- replace() many times, because translate() costs five times as much.
CREATE FUNCTION logingest.loosened(part text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN replace(replace(replace(replace(replace(replace(replace(replace(replace(replace(replace(part,
    '-', ' '), '.', ' '), '/', ' '), '@', ' '), '<', ' '), '>', ' '), '&', ' '), '~', ' '), '+', ' '), '_', ' '), ':', ' ');

-- The words of a record, as indexes of past days hold them. 65,536 characters of each text fit into a tsvector whatever
-- they are.
CREATE FUNCTION logingest.words(message text, error_type text, stack_trace text) RETURNS tsvector
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN to_tsvector('pg_catalog.simple'::regconfig, logingest.loosened(
    left(message, 65536) || coalesce(' ' || error_type, '') || coalesce(' ' || left(stack_trace, 65536), '')));

-- The same words in order, lower case, each between single blanks: in it a phrase is found as a piece of text.
CREATE FUNCTION logingest.spoken(part text) RETURNS text LANGUAGE sql STABLE PARALLEL SAFE COST 2000
RETURN (SELECT ' ' || string_agg(lower(token), ' ' ORDER BY place) || ' '
        FROM ts_parse('default', logingest.loosened(left(part, 65536))) WITH ORDINALITY AS parsed (tokid, token, place)
        WHERE tokid <> 12);
