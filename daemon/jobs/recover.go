package jobs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/daemon/store"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

// lostPassword is why a job that depended on a password in memory ends with
// the daemon.
const lostPassword = "the daemon stopped, and the job's vCenter password was held in its memory only: submit it again"

// recoverJobs takes up what an earlier process left: it had the store for
// itself, so nobody runs its jobs any more. They go back to the queue, in their
// places, and continue with what lies in their folders. It is repeated until
// the store answers.
func (m *Manager) recoverJobs() {
	for m.ctx.Err() == nil {
		err := m.recoverOnce()
		if err == nil {
			return
		}
		m.log.Error("could not take up the jobs of the last run", slog.String("error", err.Error()))
		select {
		case <-m.ctx.Done():
		case <-time.After(storeRetry):
		}
	}
}

func (m *Manager) recoverOnce() error {
	recs, err := m.store.Load(m.ctx, store.Filter{Status: []models.Status{models.Pending, models.Running}})
	if err != nil {
		return err
	}
	for _, r := range recs {
		if r.Owner == "" || r.Owner == m.owner {
			continue
		}
		switch {
		case r.Job.Status == models.Pending:
			err = m.endPending(m.ctx, r.Job.ID, lostPassword)
		case held(r.Job.Definition):
			err = m.cancelLost(r.Job.ID)
		default:
			err = m.requeue(m.ctx, r.Job.ID, r.Owner, nil)
			if err == nil {
				m.note(r.Job.ID, slog.LevelWarn, "the daemon ended while the job ran; it continues")
			}
		}
		if err != nil && !notOurs(err) {
			return err
		}
	}
	return nil
}

// held reports whether a job brought a password of its own, which no store
// keeps.
func held(d models.Definition) bool { return d.VCenter != nil && d.VCenter.Name == "" }

// requeue puts a running job back into the queue; last is its progress, nil to
// leave what is stored.
func (m *Manager) requeue(ctx context.Context, id, owner string, last *models.Progress) error {
	rec, err := m.move(ctx, id, models.Running, models.Pending, func(r *store.Record) error {
		if r.Owner != owner {
			return ErrClaimLost
		}
		r.Owner, r.AliveUntil = "", time.Time{}
		r.Job.UpdatedAt = time.Now().UTC()
		if last != nil {
			r.Job.Progress = last
		}
		return nil
	})
	if err == nil {
		m.publishState(rec.Job)
	}
	return err
}

// cancelLost ends a running job that cannot be taken up, as a stop would have.
func (m *Manager) cancelLost(id string) error {
	rec, err := m.move(m.ctx, id, models.Running, models.Cancelled, func(r *store.Record) error {
		now := time.Now().UTC()
		r.Owner, r.AliveUntil = "", time.Time{}
		r.Job.Error, r.Job.CompletedAt, r.Job.UpdatedAt = lostPassword, &now, now
		return nil
	})
	if err == nil {
		m.note(id, slog.LevelWarn, "job cancelled", slog.String("reason", lostPassword))
		m.ended(rec.Job)
	}
	return err
}

// Retry puts failed and cancelled jobs back into the queue, at the place they
// had; they continue with what lies in their folders. The response names each
// job that could not be, and why. The error is a problem.Invalid when no id
// was given.
func (m *Manager) Retry(ctx context.Context, ids []string) (models.RetryResponse, error) {
	if len(ids) == 0 {
		return models.RetryResponse{}, problem.New(problem.Invalid, "retry jobs", errors.New("no job id was given"), "give job_ids")
	}
	out := models.RetryResponse{Retried: []string{}, Failed: []string{}, Errors: map[string]string{}}
	seen := map[string]bool{}
	for _, given := range ids {
		id := given
		rec, err := m.find(ctx, given)
		if err == nil {
			id = rec.Job.ID
		}
		if seen[id] {
			continue
		}
		seen[id] = true
		if err == nil {
			err = m.retryOne(ctx, rec)
		}
		if err != nil {
			out.Failed = append(out.Failed, id)
			out.Errors[id] = err.Error()
			continue
		}
		out.Retried = append(out.Retried, id)
	}
	out.Timestamp = time.Now().UTC()
	m.poke()
	m.record.flush(ctx)
	return out, nil
}

func (m *Manager) retryOne(ctx context.Context, rec store.Record) error {
	id := rec.Job.ID
	what := "retry job " + id
	m.mu.Lock()
	closing := m.closing
	m.mu.Unlock()
	switch {
	case closing:
		return problem.New(problem.Unreachable, what, ErrStopping, "retry it once the daemon is back")
	case rec.Job.Status != models.Failed && rec.Job.Status != models.Cancelled:
		return problem.New(problem.Conflict, what, fmt.Errorf("it is %s", rec.Job.Status), "only failed and cancelled jobs can be retried")
	case held(rec.Job.Definition):
		return problem.New(problem.Conflict, what, errors.New("its vCenter password is not kept"), "submit it again")
	}
	next, err := m.move(ctx, id, rec.Job.Status, models.Pending, func(r *store.Record) error {
		r.Owner, r.AliveUntil = "", time.Time{}
		r.Job.Error, r.Job.Progress, r.Job.StartedAt, r.Job.CompletedAt = "", nil, nil, nil
		r.Job.UpdatedAt = time.Now().UTC()
		return nil
	})
	if busy, ok := errors.AsType[*store.OutputError](err); ok {
		return problem.New(problem.Conflict, what, busy, "wait for that job to end")
	}
	if errors.Is(err, store.ErrStale) {
		return problem.New(problem.Conflict, what, errors.New("it is changing its state"), "look at it again")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	m.note(id, slog.LevelInfo, "job is retried")
	m.publishState(next.Job)
	return nil
}
