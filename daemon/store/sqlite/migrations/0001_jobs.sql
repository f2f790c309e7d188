-- Jobs. Body is the whole job as the API gives it; the columns beside it are
-- what is searched and compared. Times are nanoseconds since 1970, UTC; 0 is none.
CREATE TABLE jobs (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT, -- order of submission
    id          TEXT    NOT NULL UNIQUE,
    status      TEXT    NOT NULL,
    owner       TEXT    NOT NULL DEFAULT '',
    alive_until INTEGER NOT NULL DEFAULT 0,
    output_path TEXT    NOT NULL,
    completed   INTEGER NOT NULL DEFAULT 0,
    body        TEXT    NOT NULL
) STRICT;

-- One unfinished job for each output folder.
CREATE UNIQUE INDEX jobs_output ON jobs (output_path) WHERE status IN ('pending', 'running');
CREATE INDEX jobs_status ON jobs (status, seq);
