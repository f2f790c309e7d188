-- What happened to jobs: changes of state and log lines. Body is the event as
-- the API gives it.
CREATE TABLE events (
    id     INTEGER PRIMARY KEY,
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    type   TEXT NOT NULL,
    body   TEXT NOT NULL
) STRICT;

CREATE INDEX events_job ON events (job_id, type, id);

-- Waiting jobs with a higher priority are taken first.
ALTER TABLE jobs ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
CREATE INDEX jobs_queue ON jobs (status, priority DESC, seq);
