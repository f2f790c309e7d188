package memory

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/daemon/store"
)

// maxEvents bounds the events of all jobs together; beyond it the jobs that
// were submitted first, of those that have ended, lose theirs.
const maxEvents = 200_000

// Append implements store.Store.
func (s *Store) Append(ctx context.Context, events []models.Event) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("store %d events: %w", len(events), err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range events {
		if _, ok := s.byID[e.JobID]; !ok {
			continue
		}
		list := append(s.events[e.JobID], e)
		s.total++
		if e.Type == models.LogEvent {
			if s.lines[e.JobID]++; s.lines[e.JobID] > store.MaxLines {
				// A tenth at once, so that the copy is paid for rarely.
				drop := store.MaxLines / 10
				s.lines[e.JobID] -= drop
				s.total -= drop
				list = slices.DeleteFunc(list, func(e models.Event) bool {
					drop--
					return e.Type == models.LogEvent && drop >= 0
				})
			}
		}
		s.events[e.JobID] = list
		s.last = max(s.last, e.ID)
	}
	for _, r := range s.order {
		if s.total <= maxEvents {
			break
		}
		if r.Job.Status.Final() {
			s.dropEvents(r.Job.ID)
		}
	}
	return nil
}

// dropEvents forgets a job's events. The caller holds mu.
func (s *Store) dropEvents(id string) {
	s.total -= len(s.events[id])
	delete(s.events, id)
	delete(s.lines, id)
}

// Events implements store.Store.
func (s *Store) Events(ctx context.Context, f store.EventFilter) ([]models.Event, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("load events: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []models.Event
	take := func(list []models.Event) {
		for _, e := range list {
			if e.ID > f.After && (f.Type == "" || e.Type == f.Type) {
				out = append(out, e)
			}
		}
	}
	if f.JobID != "" {
		take(s.events[f.JobID])
	} else {
		for _, list := range s.events {
			take(list)
		}
		slices.SortFunc(out, func(a, b models.Event) int { return cmp.Compare(a.ID, b.ID) })
	}
	if f.Limit > 0 && len(out) > f.Limit {
		out = out[:f.Limit]
	}
	return out, nil
}

// LastEvent implements store.Store.
func (s *Store) LastEvent(context.Context) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last, nil
}

// Prune implements store.Store.
func (s *Store) Prune(ctx context.Context, before time.Time, keep int) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("remove old jobs: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	removed := 0
	if !before.IsZero() {
		removed += s.remove(func(r *store.Record) bool { return r.Job.CompletedAt != nil && r.Job.CompletedAt.Before(before) })
	}
	if keep > 0 {
		removed += s.removeBeyond(keep)
	}
	return removed, nil
}

// removeBeyond drops all ended jobs but the keep that ended last; of those that
// ended together the last submitted stays. The caller holds mu.
func (s *Store) removeBeyond(keep int) int {
	ended := slices.DeleteFunc(slices.Clone(s.order), func(r *store.Record) bool { return !r.Job.Status.Final() })
	slices.Reverse(ended)
	slices.SortStableFunc(ended, func(a, b *store.Record) int { return endOf(b).Compare(endOf(a)) })
	over := map[*store.Record]bool{}
	for _, r := range ended[min(keep, len(ended)):] {
		over[r] = true
	}
	return s.remove(func(r *store.Record) bool { return over[r] })
}

func endOf(r *store.Record) time.Time {
	if r.Job.CompletedAt == nil {
		return time.Time{}
	}
	return *r.Job.CompletedAt
}

// remove drops the ended jobs that old names, and counts them. The caller holds
// mu.
func (s *Store) remove(old func(*store.Record) bool) int {
	removed := 0
	s.order = slices.DeleteFunc(s.order, func(r *store.Record) bool {
		if !r.Job.Status.Final() || !old(r) {
			return false
		}
		removed++
		s.count[r.Job.Status]--
		delete(s.byID, r.Job.ID)
		s.dropEvents(r.Job.ID)
		return true
	})
	return removed
}
