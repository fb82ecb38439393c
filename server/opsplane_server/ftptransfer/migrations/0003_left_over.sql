-- A transfer that failed when what it left at the destination could not be removed: it goes the way of those that are
-- cancelled, and ends as FAILED.
ALTER TABLE ftptransfer.queue ADD COLUMN failed boolean NOT NULL DEFAULT false CHECK (cancelled OR NOT failed);
