// Package memory is a job store that ends with its process. It is what the
// daemon uses without a database, and what tests use.
package memory

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/daemon/store"
)

// DefaultKeep is how many ended jobs a Store holds unless told otherwise.
const DefaultKeep = 10_000

// Store keeps jobs in memory. New gives one.
type Store struct {
	keep int

	mu      sync.Mutex
	order   []*store.Record // by insertion
	byID    map[string]*store.Record
	outputs map[string]string // output path to the unfinished job that has it
	count   map[models.Status]int

	events map[string][]models.Event // by job, rising
	lines  map[string]int            // log lines among them
	total  int                       // events of all jobs
	last   uint64                    // the greatest id
}

var _ store.Store = (*Store)(nil)

// New returns an empty store. Of the ended jobs it holds the keep that were
// submitted last, so that a daemon which runs for years does not grow without
// end; 0 means DefaultKeep.
func New(keep int) *Store {
	if keep <= 0 {
		keep = DefaultKeep
	}
	return &Store{
		keep: keep, byID: map[string]*store.Record{},
		outputs: map[string]string{}, count: map[models.Status]int{},
		events: map[string][]models.Event{}, lines: map[string]int{},
	}
}

// Insert implements store.Store.
func (s *Store) Insert(ctx context.Context, r store.Record) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("insert job: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.byID[r.Job.ID]; ok {
		return fmt.Errorf("insert job %s: %w", r.Job.ID, store.ErrExists)
	}
	path := r.Job.Definition.OutputPath
	if other, ok := s.outputs[path]; ok && !r.Job.Status.Final() {
		return &store.OutputError{ID: other, Path: path}
	}
	c := clone(r)
	s.order = append(s.order, &c)
	s.byID[c.Job.ID] = &c
	s.count[c.Job.Status]++
	if !c.Job.Status.Final() {
		s.outputs[path] = c.Job.ID
	}
	s.forget()
	return nil
}

// Transition implements store.Store.
func (s *Store) Transition(ctx context.Context, id string, from, to models.Status, change func(*store.Record) error) (store.Record, error) {
	if err := ctx.Err(); err != nil {
		return store.Record{}, fmt.Errorf("change job %s: %w", id, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.byID[id]
	if !ok {
		return store.Record{}, fmt.Errorf("change job %s: %w", id, store.ErrNotFound)
	}
	if r.Job.Status != from {
		return store.Record{}, fmt.Errorf("change job %s: %w: it is %s, not %s", id, store.ErrStale, r.Job.Status, from)
	}
	next := clone(*r)
	next.Job.Status = to
	if change != nil {
		if err := change(&next); err != nil {
			return store.Record{}, fmt.Errorf("change job %s: %w", id, err)
		}
	}
	next = clone(next)
	bandwidth := next.Job.Definition.Options.Bandwidth
	next.Job.ID, next.Job.Status = r.Job.ID, to
	next.Job.Definition, next.Job.CreatedAt = r.Job.Definition, r.Job.CreatedAt
	next.Job.Definition.Options.Bandwidth = bandwidth
	if other, ok := s.outputs[r.Job.Definition.OutputPath]; ok && other != id && !to.Final() {
		return store.Record{}, fmt.Errorf("change job %s: %w", id, &store.OutputError{ID: other, Path: r.Job.Definition.OutputPath})
	}
	*r = next
	s.count[from]--
	s.count[to]++
	path := r.Job.Definition.OutputPath
	switch {
	case !to.Final():
		s.outputs[path] = id
	case s.outputs[path] == id:
		delete(s.outputs, path)
	}
	out := clone(*r)
	s.forget()
	return out, nil
}

// Load implements store.Store.
func (s *Store) Load(ctx context.Context, f store.Filter) ([]store.Record, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("load jobs: %w", err)
	}
	var ids map[string]bool
	if f.IDs != nil {
		ids = make(map[string]bool, len(f.IDs))
		for _, id := range f.IDs {
			ids[id] = true
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	order := s.order
	if len(f.IDs) == 1 {
		order = nil
		if r, ok := s.byID[f.IDs[0]]; ok {
			order = []*store.Record{r}
		}
	}
	if f.Queue {
		order = slices.Clone(order)
		slices.SortStableFunc(order, func(a, b *store.Record) int { return cmp.Compare(b.Job.Priority(), a.Job.Priority()) })
	}
	if f.Last {
		order = slices.Clone(order)
		slices.Reverse(order)
	}
	var out []store.Record
	for _, r := range order {
		if ids != nil && !ids[r.Job.ID] ||
			!strings.HasPrefix(r.Job.ID, f.Prefix) ||
			f.Status != nil && !slices.Contains(f.Status, r.Job.Status) ||
			f.Owner != "" && r.Owner != "" && r.Owner != f.Owner {
			continue
		}
		out = append(out, clone(*r))
		if f.Limit > 0 && len(out) == f.Limit {
			break
		}
	}
	if f.Last {
		slices.Reverse(out)
	}
	return out, nil
}

// Count implements store.Store.
func (s *Store) Count(ctx context.Context) (map[models.Status]int, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("count jobs: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[models.Status]int, len(s.count))
	for status, n := range s.count {
		if n > 0 {
			out[status] = n
		}
	}
	return out, nil
}

// forget drops the jobs beyond keep that ended first. It waits for a tenth too
// many, so that the list is not rebuilt for every job. The caller holds mu.
func (s *Store) forget() {
	ended := s.count[models.Completed] + s.count[models.Failed] + s.count[models.Cancelled]
	if ended <= s.keep+s.keep/10 {
		return
	}
	s.removeBeyond(s.keep)
}

// clone copies everything a holder of the record could change.
func clone(r store.Record) store.Record {
	j := &r.Job
	o := &j.Definition.Options
	o.ParallelDownloads = copied(o.ParallelDownloads)
	o.RemoveCDROM = copied(o.RemoveCDROM)
	o.ShowIndividualProgress = copied(o.ShowIndividualProgress)
	o.Format = copied(o.Format)
	o.Compress = copied(o.Compress)
	o.Snapshot = copied(o.Snapshot)
	o.Shutdown = copied(o.Shutdown)
	o.IncludeMedia = copied(o.IncludeMedia)
	o.Overwrite = copied(o.Overwrite)
	o.SkipSpaceCheck = copied(o.SkipSpaceCheck)
	o.KeepVMDK = copied(o.KeepVMDK)
	o.VerifyGrains = copied(o.VerifyGrains)
	o.Hardware = copied(o.Hardware)
	o.NVMe = copied(o.NVMe)
	o.Networks = maps.Clone(o.Networks)
	o.Priority = copied(o.Priority)
	o.Bandwidth = copied(o.Bandwidth)
	if v := copied(j.Definition.VCenter); v != nil {
		v.Password = "" // no store keeps one, whoever hands it in
		v.Insecure = copied(v.Insecure)
		j.Definition.VCenter = v
	}
	if p := copied(j.Progress); p != nil {
		p.Files = slices.Clone(p.Files)
		j.Progress = p
	}
	if p := copied(j.Result); p != nil {
		p.Files, p.Warnings, p.Notes = slices.Clone(p.Files), slices.Clone(p.Warnings), slices.Clone(p.Notes)
		j.Result = p
	}
	j.StartedAt, j.CompletedAt = copied(j.StartedAt), copied(j.CompletedAt)
	return r
}

func copied[T any](p *T) *T {
	if p == nil {
		return nil
	}
	v := *p
	return &v
}
