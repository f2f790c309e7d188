// Package sqlite is the job store that outlives its process: one SQLite
// database in the daemon's state folder. It is the only room that speaks SQL.
package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	sqlite "modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/daemon/store"
)

// Store keeps jobs in a database. Open gives one. Every method that changes
// something returns when the change is on the disk (synchronous=FULL): a job
// that was accepted is not lost with the power.
type Store struct {
	db   *sql.DB
	path string
	lock *lock
}

var _ store.Store = (*Store)(nil)

// Close ends the store. It may be called again.
func (s *Store) Close() error {
	if s.lock == nil {
		return nil
	}
	// The last connection brings the log of writes home (WAL checkpoint).
	err := errors.Join(s.db.Close(), s.lock.release())
	s.lock = nil
	return err
}

const columns = "id, status, owner, alive_until, body"

// Insert implements store.Store.
func (s *Store) Insert(ctx context.Context, r store.Record) error {
	body, err := encode(r.Job)
	if err != nil {
		return fmt.Errorf("insert job %s: %w", r.Job.ID, err)
	}
	err = s.write(ctx, func(tx *sql.Tx) error {
		if err := outputFree(ctx, tx, r); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO jobs (id, status, owner, alive_until, output_path, priority, completed, body) VALUES (?,?,?,?,?,?,?,?)`,
			r.Job.ID, r.Job.Status, r.Owner, stamp(r.AliveUntil), r.Job.Definition.OutputPath, r.Job.Priority(), completed(r.Job), body)
		return err
	})
	if isUnique(err, "jobs.id") {
		return fmt.Errorf("insert job %s: %w", r.Job.ID, store.ErrExists)
	}
	if err != nil {
		return fmt.Errorf("insert job %s: %w", r.Job.ID, err)
	}
	return nil
}

// outputFree fails when another unfinished job has the record's output path.
func outputFree(ctx context.Context, tx *sql.Tx, r store.Record) error {
	if r.Job.Status.Final() {
		return nil
	}
	path := r.Job.Definition.OutputPath
	var other string
	err := tx.QueryRowContext(ctx, `SELECT id FROM jobs WHERE output_path = ? AND status IN ('pending', 'running') AND id <> ?`, path, r.Job.ID).Scan(&other)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil
	case err != nil:
		return err
	}
	return &store.OutputError{ID: other, Path: path}
}

// Transition implements store.Store.
func (s *Store) Transition(ctx context.Context, id string, from, to models.Status, change func(*store.Record) error) (store.Record, error) {
	var next store.Record
	err := s.write(ctx, func(tx *sql.Tx) error {
		r, err := scan(tx.QueryRowContext(ctx, `SELECT `+columns+` FROM jobs WHERE id = ?`, id))
		if errors.Is(err, sql.ErrNoRows) {
			return store.ErrNotFound
		}
		if err != nil {
			return err
		}
		if r.Job.Status != from {
			return fmt.Errorf("%w: it is %s, not %s", store.ErrStale, r.Job.Status, from)
		}
		next = r
		next.Job.Status = to
		if change != nil {
			if err := change(&next); err != nil {
				return err
			}
		}
		bandwidth := next.Job.Definition.Options.Bandwidth
		next.Job.ID, next.Job.Status, next.Job.Definition, next.Job.CreatedAt = r.Job.ID, to, r.Job.Definition, r.Job.CreatedAt
		next.Job.Definition.Options.Bandwidth = bandwidth
		if err := outputFree(ctx, tx, next); err != nil {
			return err
		}
		body, err := encode(next.Job)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `UPDATE jobs SET status = ?, owner = ?, alive_until = ?, completed = ?, body = ? WHERE id = ?`,
			to, next.Owner, stamp(next.AliveUntil), completed(next.Job), body, id)
		return err
	})
	if err != nil {
		return store.Record{}, fmt.Errorf("change job %s: %w", id, err)
	}
	// What change put into the record is the caller's: give what was stored.
	return clone(next)
}

// Load implements store.Store.
func (s *Store) Load(ctx context.Context, f store.Filter) ([]store.Record, error) {
	where, args := []string{"1"}, []any{}
	and := func(clause string, values ...any) {
		where = append(where, clause)
		args = append(args, values...)
	}
	if f.IDs != nil {
		list, err := json.Marshal(f.IDs)
		if err != nil {
			return nil, fmt.Errorf("load jobs: %w", err)
		}
		and("id IN (SELECT value FROM json_each(?))", string(list))
	}
	if f.Prefix != "" {
		// A range, which an index answers; U+10FFFF sorts behind every id.
		and("id >= ? AND id < ? || char(1114111)", f.Prefix, f.Prefix)
	}
	if f.Status != nil {
		marks := make([]string, len(f.Status))
		values := make([]any, len(f.Status))
		for i, st := range f.Status {
			marks[i], values[i] = "?", st
		}
		and("status IN ("+strings.Join(marks, ",")+")", values...)
	}
	if f.Owner != "" {
		and("owner IN ('', ?)", f.Owner)
	}
	order := "seq"
	switch {
	case f.Queue && f.Last:
		order = "priority, seq DESC"
	case f.Queue:
		order = "priority DESC, seq"
	case f.Last:
		order = "seq DESC"
	}
	query := `SELECT ` + columns + ` FROM jobs WHERE ` + strings.Join(where, " AND ") + ` ORDER BY ` + order //nolint:gosec // the clauses are constants
	if f.Limit > 0 {
		query += " LIMIT ?"
		args = append(args, f.Limit)
	}
	rows, err := s.db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("load jobs: %w", err)
	}
	defer rows.Close()
	var out []store.Record
	for rows.Next() {
		r, err := scan(rows)
		if err != nil {
			return nil, fmt.Errorf("load jobs: %w", err)
		}
		out = append(out, r)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("load jobs: %w", err)
	}
	if f.Last {
		slices.Reverse(out)
	}
	return out, nil
}

// Count implements store.Store.
func (s *Store) Count(ctx context.Context) (map[models.Status]int, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT status, count(*) FROM jobs GROUP BY status`)
	if err != nil {
		return nil, fmt.Errorf("count jobs: %w", err)
	}
	defer rows.Close()
	count := map[models.Status]int{}
	for rows.Next() {
		var st models.Status
		var n int
		if err := rows.Scan(&st, &n); err != nil {
			return nil, fmt.Errorf("count jobs: %w", err)
		}
		count[st] = n
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("count jobs: %w", err)
	}
	return count, nil
}

// Append implements store.Store.
func (s *Store) Append(ctx context.Context, events []models.Event) error {
	err := s.write(ctx, func(tx *sql.Tx) error {
		stmt, err := tx.PrepareContext(ctx, `INSERT INTO events (id, job_id, type, body) SELECT ?,?,?,? WHERE EXISTS (SELECT 1 FROM jobs WHERE id = ?)`)
		if err != nil {
			return err
		}
		defer stmt.Close()
		logs := map[string]bool{}
		for _, e := range events {
			body, err := json.Marshal(e)
			if err != nil {
				return err
			}
			if _, err := stmt.ExecContext(ctx, int64(e.ID), e.JobID, e.Type, string(body), e.JobID); err != nil { // ids stay below 2^53
				return err
			}
			if e.Type == models.LogEvent {
				logs[e.JobID] = true
			}
		}
		for id := range logs {
			if _, err := tx.ExecContext(ctx, `DELETE FROM events WHERE job_id = ?1 AND type = ?2 AND id <= (
				SELECT id FROM events WHERE job_id = ?1 AND type = ?2 ORDER BY id DESC LIMIT 1 OFFSET ?3)`, id, models.LogEvent, store.MaxLines); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("store %d events: %w", len(events), err)
	}
	return nil
}

// Events implements store.Store.
func (s *Store) Events(ctx context.Context, f store.EventFilter) ([]models.Event, error) {
	query, args := `SELECT body FROM events WHERE id > ?`, []any{int64(f.After)} // ids stay below 2^53
	if f.JobID != "" {
		query += ` AND job_id = ?`
		args = append(args, f.JobID)
	}
	if f.Type != "" {
		query += ` AND type = ?`
		args = append(args, f.Type)
	}
	query += ` ORDER BY id`
	if f.Limit > 0 {
		query += ` LIMIT ?`
		args = append(args, f.Limit)
	}
	rows, err := s.db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("load events: %w", err)
	}
	defer rows.Close()
	var out []models.Event
	for rows.Next() {
		var body string
		var e models.Event
		if err := rows.Scan(&body); err != nil {
			return nil, fmt.Errorf("load events: %w", err)
		}
		if err := json.Unmarshal([]byte(body), &e); err != nil {
			return nil, fmt.Errorf("load events: %w", err)
		}
		out = append(out, e)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("load events: %w", err)
	}
	return out, nil
}

// LastEvent implements store.Store.
func (s *Store) LastEvent(ctx context.Context) (uint64, error) {
	var id int64
	if err := s.db.QueryRowContext(ctx, `SELECT coalesce(max(id), 0) FROM events`).Scan(&id); err != nil {
		return 0, fmt.Errorf("load the last event: %w", err)
	}
	return uint64(max(0, id)), nil
}

// Prune implements store.Store.
func (s *Store) Prune(ctx context.Context, before time.Time, keep int) (int, error) {
	var removed int64
	err := s.write(ctx, func(tx *sql.Tx) error {
		for _, q := range []struct {
			on    bool
			where string
			arg   any
		}{
			{!before.IsZero(), `completed > 0 AND completed < ?`, stamp(before)},
			{keep > 0, `seq IN (SELECT seq FROM jobs WHERE status IN ('completed', 'failed', 'cancelled') ORDER BY completed DESC, seq DESC LIMIT -1 OFFSET ?)`, keep},
		} {
			if !q.on {
				continue
			}
			res, err := tx.ExecContext(ctx, `DELETE FROM jobs WHERE status IN ('completed', 'failed', 'cancelled') AND `+q.where, q.arg) //nolint:gosec // the clauses are constants
			if err != nil {
				return err
			}
			n, err := res.RowsAffected()
			if err != nil {
				return err
			}
			removed += n
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("remove old jobs: %w", err)
	}
	return int(removed), nil
}

// write runs f in a transaction that holds the write lock from its beginning
// (_txlock=immediate): one that took it later could fail half way.
func (s *Store) write(ctx context.Context, f func(*sql.Tx) error) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := f(tx); err != nil {
		if rerr := tx.Rollback(); rerr != nil && !errors.Is(rerr, sql.ErrTxDone) {
			err = errors.Join(err, rerr)
		}
		return err
	}
	return tx.Commit()
}

type scanner interface{ Scan(dest ...any) error }

func scan(row scanner) (store.Record, error) {
	var r store.Record
	var id, body string
	var status models.Status
	var alive int64
	if err := row.Scan(&id, &status, &r.Owner, &alive, &body); err != nil {
		return store.Record{}, err
	}
	if err := json.Unmarshal([]byte(body), &r.Job); err != nil {
		return store.Record{}, fmt.Errorf("job %s: its record is damaged: %w", id, err)
	}
	r.Job.ID, r.Job.Status = id, status
	if alive != 0 {
		r.AliveUntil = time.Unix(0, alive).UTC()
	}
	return r, nil
}

// encode writes a job as JSON, which has no place for a password.
func encode(j models.Job) (string, error) {
	b, err := json.Marshal(j)
	return string(b), err
}

func clone(r store.Record) (store.Record, error) {
	body, err := encode(r.Job)
	if err != nil {
		return store.Record{}, err
	}
	id, status := r.Job.ID, r.Job.Status
	r.Job = models.Job{}
	if err := json.Unmarshal([]byte(body), &r.Job); err != nil {
		return store.Record{}, err
	}
	r.Job.ID, r.Job.Status = id, status
	return r, nil
}

func stamp(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func completed(j models.Job) int64 {
	if j.CompletedAt == nil {
		return 0
	}
	return stamp(*j.CompletedAt)
}

func isUnique(err error, what string) bool {
	e, ok := errors.AsType[*sqlite.Error](err)
	return ok && (e.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || e.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY) && strings.Contains(e.Error(), what)
}
