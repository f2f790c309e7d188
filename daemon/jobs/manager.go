// Package jobs runs exports: a queue in the order of submission, one
// goroutine for each running job, one table of states, and a hub that tells
// readers what happens. What a job does is a Runner's business and where jobs
// are kept a Store's: this package knows neither vSphere nor SQL.
package jobs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/daemon/store"
	"github.com/hyper2kvm/hyper2kvm/internal/pace"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
	"github.com/hyper2kvm/hyper2kvm/progress"
)

const (
	// DefaultMaxRunning is how many jobs run at once unless told otherwise.
	DefaultMaxRunning = 4
	// DefaultMaxPending bounds the queue unless told otherwise.
	DefaultMaxPending = 10_000

	// claimTime is how long a claim on a job holds; it is renewed three times
	// as often.
	claimTime = 30 * time.Second
	// storeTimeout bounds the store's part in what must happen whatever else
	// ended.
	storeTimeout = 10 * time.Second
	// storeRetry is the pause after the store failed.
	storeRetry = time.Second

	// minPrefix is the shortest prefix of an id that is looked up.
	minPrefix = 4
	// maxCandidates is how many ids an ambiguous prefix's error lists.
	maxCandidates = 10
)

// Why a running job's context ended, as context.Cause gives it.
var (
	// ErrCancelled: somebody cancelled the job.
	ErrCancelled = errors.New("cancelled on request")
	// ErrStopping: the daemon stops. Submissions fail with it, too.
	ErrStopping = errors.New("the daemon is stopping")
	// ErrClaimLost: the store says that the job is no longer this manager's.
	ErrClaimLost = errors.New("the claim on the job was lost")
)

// Spec is what a Runner needs to know of a job. Definition has the daemon's
// defaults filled in; Definition.VCenter.Password is filled in here only.
type Spec struct {
	ID         string
	Definition models.Definition
	// Pace is the job's share of the manager's Limits. Before the Runner does
	// anything to the VM it enters the VM's host there; when that is busy it
	// returns the error, and is called again when the host has room.
	Pace *pace.Job
	// OutputRoot is the folder which the output folder must lie below, through
	// no symbolic link that leads out of it; empty for none.
	OutputRoot string
}

// Runner does one job. Run blocks until the export has ended. It honours ctx
// within a second and has released everything when it returns. Sink must not
// be used after Run has returned.
type Runner interface {
	Run(ctx context.Context, spec Spec, sink progress.Sink) (models.Result, error)
}

// Store keeps the jobs; see package store for the contract.
type Store = store.Store

// Options say how a Manager works. Runner and Store are required.
type Options struct {
	Runner Runner
	Store  Store
	Logger *slog.Logger // nil discards
	// MaxRunning is how many jobs run at once; 0 means DefaultMaxRunning.
	// ChangeLimits changes it.
	MaxRunning int
	// Limits bound streams and bandwidth of all jobs; nil does not.
	Limits *pace.Limits
	// OnEnd, which may be nil, hears of every job that has ended. It must not
	// wait.
	OnEnd func(models.Job)
	// MaxPending is how many jobs may wait; 0 means DefaultMaxPending.
	MaxPending int
	// Defaults fill in the options that a job does not give.
	Defaults models.Options
	// Durable says that the store outlives this process and is its own alone:
	// jobs that ran when the last one ended are taken up, and those that run
	// when this one is closed wait for the next.
	Durable bool
	// VCenters are the names that a job's vcenter block may use; nil means
	// any.
	VCenters []string
}

// Manager takes jobs and runs them. All methods are safe for concurrent use.
type Manager struct {
	opts    Options
	log     *slog.Logger
	store   Store
	owner   string // this manager's name in the store
	started time.Time
	hub     *hub
	record  *recorder
	vault   *vault

	ctx    context.Context //nolint:containedctx // of all running jobs: the manager's life, ended by Close
	cancel context.CancelCauseFunc
	wake   chan struct{} // something may have become claimable
	idle   chan struct{} // closed when the dispatcher and all jobs have ended

	// births is held for reading from a job's insertion until that has been
	// told, so that no reader of events hears of its start before.
	births sync.RWMutex

	limits sync.Mutex // held while they change

	mu      sync.Mutex
	active  map[string]*run
	working int               // jobs that take one of maxRunning places
	max     int               // jobs at once
	waits   map[string]string // the busy host that a waiting job waits for, by its id
	closing bool
	submits sync.WaitGroup // submissions under way; Add under mu while !closing
}

// NewManager returns a Manager that has started to work on what the store
// holds. Close ends it.
func NewManager(opts Options) *Manager {
	if opts.MaxRunning <= 0 {
		opts.MaxRunning = DefaultMaxRunning
	}
	if opts.MaxPending <= 0 {
		opts.MaxPending = DefaultMaxPending
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Limits == nil {
		opts.Limits = pace.New(pace.Settings{})
	}
	now := time.Now()
	m := &Manager{
		opts: opts, log: opts.Logger, store: opts.Store, owner: uuid.NewString(), started: now,
		hub: newHub(now), record: newRecorder(opts.Store, opts.Logger), vault: newVault(),
		wake: make(chan struct{}, 1), idle: make(chan struct{}), active: map[string]*run{},
		max: opts.MaxRunning, waits: map[string]string{},
	}
	opts.Limits.OnRoom(m.poke)
	m.ctx, m.cancel = context.WithCancelCause(context.Background())
	// Before anything is published: ids never repeat, also when the clock was
	// set back between two runs.
	if last, err := opts.Store.LastEvent(m.ctx); err != nil {
		m.log.Error("could not read the last event", slog.String("error", err.Error()))
	} else {
		m.hub.last = max(m.hub.last, last)
	}
	go m.dispatch()
	return m
}

// Submit takes a job: it checks it, fills in the defaults and queues it. The
// error is a problem.Invalid for a bad definition, a problem.Conflict when
// another unfinished job has the same output path or the queue is full, and
// matches ErrStopping once Close was called.
func (m *Manager) Submit(ctx context.Context, def models.Definition) (models.Job, error) {
	const what = "submit job"
	if bad := def.Check(); bad != nil {
		errs := make([]string, len(bad))
		for i, b := range bad {
			errs[i] = b.Error()
		}
		return models.Job{}, problem.New(problem.Invalid, what, errors.New(strings.Join(errs, "; ")), "")
	}
	if v := def.VCenter; v != nil && v.Name != "" && m.opts.VCenters != nil && !slices.Contains(m.opts.VCenters, v.Name) {
		known := strings.Join(m.opts.VCenters, ", ")
		if known == "" {
			known = "none"
		}
		return models.Job{}, problem.New(problem.Invalid, what,
			fmt.Errorf("vcenter.name: the daemon's configuration knows no vCenter %q", v.Name), "known: "+known)
	}
	m.mu.Lock()
	if m.closing {
		m.mu.Unlock()
		return models.Job{}, problem.New(problem.Unreachable, what, ErrStopping, "submit it again once the daemon is back")
	}
	m.submits.Add(1)
	m.mu.Unlock()
	defer m.submits.Done()

	count, err := m.store.Count(ctx)
	if err != nil {
		return models.Job{}, fmt.Errorf("%s: %w", what, err)
	}
	if count[models.Pending] >= m.opts.MaxPending {
		return models.Job{}, problem.New(problem.Conflict, what,
			fmt.Errorf("%d jobs are waiting already", m.opts.MaxPending), "wait until some have ended, or cancel some")
	}
	def.OutputPath = path.Clean(def.OutputPath)
	def.Options = withDefaults(withDefaults(def.Options, m.opts.Defaults), builtin())
	if def.Name == "" {
		def.Name = path.Base(def.VMPath)
	}
	id := uuid.NewString()
	now := time.Now().UTC()
	rec := store.Record{Job: models.Job{ID: id, Status: models.Pending, CreatedAt: now, UpdatedAt: now}}
	held := m.vault.take(id, &def)
	if held {
		rec.Owner = m.owner
	}
	rec.Job.Definition = def
	if err := m.insert(ctx, rec, held); err != nil {
		m.vault.wipe(id)
		if busy, ok := errors.AsType[*store.OutputError](err); ok {
			return models.Job{}, problem.New(problem.Conflict, what, busy, "give each job a folder of its own, or wait for that job to end")
		}
		return models.Job{}, fmt.Errorf("%s: %w", what, err)
	}
	m.poke()
	m.record.flush(ctx) // an accepted job keeps its first lines, whatever comes
	return rec.Job, nil
}

// insert stores a new job and publishes that it exists.
func (m *Manager) insert(ctx context.Context, rec store.Record, held bool) error {
	m.births.RLock()
	defer m.births.RUnlock()
	if err := m.store.Insert(ctx, rec); err != nil {
		return err
	}
	id, def := rec.Job.ID, rec.Job.Definition
	m.note(id, slog.LevelInfo, "job submitted", slog.String("name", def.Name), slog.String("vm", def.VMPath), slog.String("output", def.OutputPath))
	if held {
		m.note(id, slog.LevelInfo, "the vCenter password is held in memory only: this job does not outlive a restart of the daemon")
	}
	m.publishState(rec.Job)
	return nil
}

// withDefaults fills in the options of o that are nil.
func withDefaults(o, d models.Options) models.Options {
	fill(&o.ParallelDownloads, d.ParallelDownloads)
	fill(&o.RemoveCDROM, d.RemoveCDROM)
	fill(&o.ShowIndividualProgress, d.ShowIndividualProgress)
	fill(&o.Format, d.Format)
	fill(&o.Compress, d.Compress)
	fill(&o.Snapshot, d.Snapshot)
	fill(&o.Shutdown, d.Shutdown)
	fill(&o.IncludeMedia, d.IncludeMedia)
	fill(&o.Overwrite, d.Overwrite)
	fill(&o.SkipSpaceCheck, d.SkipSpaceCheck)
	fill(&o.KeepVMDK, d.KeepVMDK)
	fill(&o.VerifyGrains, d.VerifyGrains)
	fill(&o.Hardware, d.Hardware)
	fill(&o.NVMe, d.NVMe)
	fill(&o.Bandwidth, d.Bandwidth)
	if o.Networks == nil {
		o.Networks = maps.Clone(d.Networks)
	}
	fill(&o.Priority, d.Priority)
	return o
}

func fill[T any](p **T, d *T) {
	if *p == nil && d != nil {
		v := *d
		*p = &v
	}
}

// builtin are the options of a job that neither the job nor the configuration
// gives.
func builtin() models.Options {
	return models.Options{
		ParallelDownloads: new(4), RemoveCDROM: new(false), ShowIndividualProgress: new(false),
		Format: new(models.OVF), Compress: new(false), Snapshot: new(false), Shutdown: new(false),
		IncludeMedia: new(false), Overwrite: new(false), SkipSpaceCheck: new(false),
		KeepVMDK: new(false), VerifyGrains: new(false), Hardware: new(models.SameHardware), NVMe: new(false),
		Networks: map[string]string{}, Priority: new(0), Bandwidth: new(models.Bandwidth(0)),
	}
}

// Get gives one job by its id or an unambiguous prefix of at least four
// characters. The error is a problem.NotFound or, for an ambiguous prefix, a
// problem.Invalid that lists the candidates.
func (m *Manager) Get(ctx context.Context, id string) (models.Job, error) {
	rec, err := m.find(ctx, id)
	if err != nil {
		return models.Job{}, err
	}
	return m.view(rec.Job), nil
}

// find resolves an id or prefix. It is the one place that does.
func (m *Manager) find(ctx context.Context, id string) (store.Record, error) {
	what := fmt.Sprintf("find job %.80q", id)
	low := strings.ToLower(id)
	missing := problem.New(problem.NotFound, what, errors.New("there is no such job"), "query all jobs to see their ids")
	if strings.Trim(low, "0123456789abcdef-") != "" || len(low) > len(uuid.Nil.String()) {
		return store.Record{}, missing
	}
	if len(low) < minPrefix {
		return store.Record{}, problem.New(problem.Invalid, what,
			fmt.Errorf("an id needs at least %d characters", minPrefix), "query all jobs to see their ids")
	}
	recs, err := m.store.Load(ctx, store.Filter{Prefix: low, Limit: maxCandidates + 1})
	switch {
	case err != nil:
		return store.Record{}, fmt.Errorf("%s: %w", what, err)
	case len(recs) == 0:
		return store.Record{}, missing
	case len(recs) > 1:
		var ids []string
		for _, r := range recs[:min(len(recs), maxCandidates)] {
			ids = append(ids, r.Job.ID)
		}
		if len(recs) > maxCandidates {
			ids = append(ids, "…")
		}
		return store.Record{}, problem.New(problem.Invalid, what,
			fmt.Errorf("it is ambiguous: %s", strings.Join(ids, ", ")), "give more characters of the id")
	}
	return recs[0], nil
}

// Query gives the jobs that match, in the order of their submission. At least
// one of ids, status and all must be asked for; ids and status narrow it. An
// unknown id is a problem.NotFound that names all unknown ones.
func (m *Manager) Query(ctx context.Context, q models.QueryRequest) (models.QueryResponse, error) {
	const what = "query jobs"
	if len(q.JobIDs) == 0 && len(q.Status) == 0 && !q.All {
		return models.QueryResponse{}, problem.New(problem.Invalid, what, errors.New("nothing was asked for"), "give job_ids, status or all")
	}
	if q.Limit < 0 {
		return models.QueryResponse{}, problem.New(problem.Invalid, what, fmt.Errorf("limit is %d", q.Limit), "give 0 for no limit")
	}
	var filter store.Filter
	for _, s := range q.Status {
		if !s.Valid() {
			return models.QueryResponse{}, problem.New(problem.Invalid, what, fmt.Errorf("unknown status %.40q", s),
				"known: pending, running, completed, failed, cancelled")
		}
		filter.Status = append(filter.Status, s)
	}
	if len(q.JobIDs) > 0 {
		var missing []string
		for _, id := range q.JobIDs {
			rec, err := m.find(ctx, id)
			if problem.KindOf(err) == problem.NotFound {
				missing = append(missing, fmt.Sprintf("%.80q", id))
				continue
			}
			if err != nil {
				return models.QueryResponse{}, err
			}
			filter.IDs = append(filter.IDs, rec.Job.ID)
		}
		if missing != nil {
			return models.QueryResponse{}, problem.New(problem.NotFound, what,
				fmt.Errorf("no such job: %s", strings.Join(missing, ", ")), "query all jobs to see their ids")
		}
	}
	total := -1
	if q.Limit > 0 && filter.IDs == nil {
		// Of thousands of jobs only those asked for are read.
		count, err := m.store.Count(ctx)
		if err != nil {
			return models.QueryResponse{}, fmt.Errorf("%s: %w", what, err)
		}
		total = 0
		for s, n := range count {
			if filter.Status == nil || slices.Contains(filter.Status, s) {
				total += n
			}
		}
		filter.Limit, filter.Last = q.Limit, true
	}
	recs, err := m.store.Load(ctx, filter)
	if err != nil {
		return models.QueryResponse{}, fmt.Errorf("%s: %w", what, err)
	}
	if q.Limit > 0 && len(recs) > q.Limit {
		total = len(recs)
		recs = recs[len(recs)-q.Limit:]
	}
	out := models.QueryResponse{Jobs: []models.Job{}, Total: max(total, len(recs)), Timestamp: time.Now().UTC()}
	for _, r := range recs {
		out.Jobs = append(out.Jobs, m.view(r.Job))
	}
	return out, nil
}

// Cancel stops jobs. A pending one is cancelled at once; a running one is told
// to stop and is cancelled when its Runner has returned. The response names
// each job that could not be cancelled and why. The error is a
// problem.Invalid when no id was given.
func (m *Manager) Cancel(ctx context.Context, ids []string) (models.CancelResponse, error) {
	if len(ids) == 0 {
		return models.CancelResponse{}, problem.New(problem.Invalid, "cancel jobs", errors.New("no job id was given"), "give job_ids")
	}
	out := models.CancelResponse{Cancelled: []string{}, Failed: []string{}, Errors: map[string]string{}}
	seen := map[string]bool{}
	for _, given := range ids {
		id := given
		rec, err := m.find(ctx, given)
		if err == nil {
			id = rec.Job.ID
			if seen[id] {
				continue
			}
			err = m.cancelOne(ctx, rec)
		}
		if seen[id] {
			continue
		}
		seen[id] = true
		if err != nil {
			out.Failed = append(out.Failed, id)
			out.Errors[id] = err.Error()
			continue
		}
		out.Cancelled = append(out.Cancelled, id)
	}
	out.Timestamp = time.Now().UTC()
	return out, nil
}

func (m *Manager) cancelOne(ctx context.Context, rec store.Record) error {
	id := rec.Job.ID
	what := "cancel job " + id
	// The job may move on between the look and the change; its life has two
	// steps, so that three looks are enough.
	for range 3 {
		switch rec.Job.Status {
		case models.Pending:
			err := m.endPending(ctx, id, ErrCancelled.Error())
			if !errors.Is(err, store.ErrStale) {
				return err
			}
		case models.Running:
			m.mu.Lock()
			r := m.active[id]
			if r != nil {
				r.cancelled = true
			}
			m.mu.Unlock()
			if r != nil {
				m.note(id, slog.LevelInfo, "job is being cancelled")
				r.cancel(ErrCancelled)
				return nil
			}
			if rec.Owner != m.owner {
				return problem.New(problem.Conflict, what, errors.New("it runs in another daemon"), "cancel it there")
			}
		default:
			return problem.New(problem.Conflict, what, fmt.Errorf("it is %s already", rec.Job.Status), "nothing is left to stop")
		}
		recs, err := m.store.Load(ctx, store.Filter{IDs: []string{id}})
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if len(recs) == 0 {
			return problem.New(problem.NotFound, what, store.ErrNotFound, "query all jobs to see their ids")
		}
		rec = recs[0]
	}
	return problem.New(problem.Conflict, what, errors.New("it is changing its state"), "try again")
}

// endPending cancels a job that has not begun.
func (m *Manager) endPending(ctx context.Context, id, why string) error {
	rec, err := m.move(ctx, id, models.Pending, models.Cancelled, func(r *store.Record) error {
		now := time.Now().UTC()
		r.Owner = ""
		r.Job.Error, r.Job.CompletedAt, r.Job.UpdatedAt = why, &now, now
		return nil
	})
	if err != nil {
		return err
	}
	m.vault.wipe(id)
	m.awaitBirths()
	m.note(id, slog.LevelInfo, "job cancelled", slog.String("reason", why))
	m.ended(rec.Job)
	return nil
}

// Status counts the jobs.
func (m *Manager) Status(ctx context.Context) (models.DaemonStatus, error) {
	count, err := m.store.Count(ctx)
	if err != nil {
		return models.DaemonStatus{}, fmt.Errorf("count jobs: %w", err)
	}
	now := time.Now()
	s := models.DaemonStatus{
		Version: models.Version, Uptime: now.Sub(m.started).Truncate(time.Second).String(),
		PendingJobs: count[models.Pending], RunningJobs: count[models.Running], CompletedJobs: count[models.Completed],
		FailedJobs: count[models.Failed], CancelledJobs: count[models.Cancelled], Timestamp: now.UTC(),
	}
	s.TotalJobs = s.PendingJobs + s.RunningJobs + s.CompletedJobs + s.FailedJobs + s.CancelledJobs
	return s, nil
}

// OldestPending is when the job was submitted that waits longest; zero when
// none does.
func (m *Manager) OldestPending(ctx context.Context) (time.Time, error) {
	recs, err := m.store.Load(ctx, store.Filter{Status: []models.Status{models.Pending}, Limit: 1})
	if err != nil {
		return time.Time{}, fmt.Errorf("read the oldest waiting job: %w", err)
	}
	if len(recs) == 0 {
		return time.Time{}, nil
	}
	return recs[0].Job.CreatedAt, nil
}

// Logs gives a job's log lines, at most the last 10,000. Those of jobs that
// were removed are gone.
func (m *Manager) Logs(ctx context.Context, id string) (models.LogsResponse, error) {
	rec, err := m.find(ctx, id)
	if err != nil {
		return models.LogsResponse{}, err
	}
	m.record.flush(ctx)
	events, err := m.store.Events(ctx, store.EventFilter{JobID: rec.Job.ID, Type: models.LogEvent})
	if err != nil {
		return models.LogsResponse{}, fmt.Errorf("read log of job %s: %w", rec.Job.ID, err)
	}
	lines := make([]models.LogLine, 0, len(events))
	for _, e := range events {
		if e.Log != nil {
			lines = append(lines, *e.Log)
		}
	}
	return models.LogsResponse{JobID: rec.Job.ID, Lines: lines}, nil
}

// Subscribe follows the events of one job, or of all when jobID is empty. With
// the id of an event that is still remembered the reader gets what it missed
// since; otherwise it begins with the state of the job, or of every job that
// runs. The caller closes the subscription.
func (m *Manager) Subscribe(ctx context.Context, jobID string, lastEventID uint64) (*Subscription, error) {
	filter := store.Filter{Status: []models.Status{models.Running}}
	if jobID != "" {
		rec, err := m.find(ctx, jobID)
		if err != nil {
			return nil, err
		}
		jobID = rec.Job.ID
		filter = store.Filter{IDs: []string{jobID}}
	}
	s, missed, whole, at := m.hub.subscribe(jobID, lastEventID)
	if !whole && lastEventID > 0 && lastEventID < at {
		// Gone from memory, or of an earlier process: what was stored since.
		m.record.flush(ctx)
		stored, err := m.store.Events(ctx, store.EventFilter{After: lastEventID, JobID: jobID, Limit: maxMissed})
		if err != nil {
			s.Close()
			return nil, fmt.Errorf("read missed events: %w", err)
		}
		for _, e := range stored {
			if e.ID <= at {
				missed = append(missed, newEvent(e))
			}
		}
	}
	s.first = missed
	// The state is read after the subscription began, so that no change falls
	// between the two.
	recs, err := m.store.Load(ctx, filter)
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("read state of jobs: %w", err)
	}
	for _, r := range recs {
		// A reader that comes back after the last event of an ended job would
		// wait for ever: it gets the state once more.
		ended := jobID != "" && r.Job.Status.Final() && !slices.ContainsFunc(missed, func(e Event) bool {
			return e.Type == models.StateEvent && e.Job.Status.Final()
		})
		if whole && !ended {
			continue
		}
		job := m.view(r.Job)
		s.first = append(s.first, newEvent(models.Event{ID: at, Type: models.StateEvent, JobID: job.ID, Time: time.Now().UTC(), Job: &job}))
		if jobID != "" {
			s.asOf = job.UpdatedAt
		}
	}
	return s, nil
}

// Close ends the Manager: it takes no more jobs, cancels the running ones with
// the cause ErrStopping and waits until their Runners have returned or ctx
// ends; then the error says how many are left. Waiting jobs stay in the store,
// except those whose password goes with this process: they are cancelled.
// Close may be called again.
func (m *Manager) Close(ctx context.Context) error {
	m.mu.Lock()
	m.closing = true
	m.mu.Unlock()
	m.cancel(ErrStopping)
	defer m.hub.close()
	select {
	case <-m.idle:
		return nil
	case <-ctx.Done():
		m.mu.Lock()
		left := len(m.active)
		m.mu.Unlock()
		return fmt.Errorf("wait for %d running job(s) to stop: %w", left, ctx.Err())
	}
}

// dispatch claims waiting jobs while there is room, in the order of the queue,
// until the manager is closed; then it waits for what runs.
func (m *Manager) dispatch() {
	defer close(m.idle)
	defer m.record.close() // nothing is published any more
	if m.opts.Durable {
		m.recoverJobs()
	}
	var running sync.WaitGroup
	retry := time.NewTimer(0)
	defer retry.Stop()
	for m.ctx.Err() == nil {
		var r *run
		var err error
		if m.takePlace() {
			if r, err = m.claim(); r != nil {
				running.Go(func() {
					m.run(r)
					m.givePlace()
				})
				continue
			}
			m.freePlace()
		}
		var again <-chan time.Time
		if err != nil && m.ctx.Err() == nil {
			m.log.Error("could not take a job from the store", slog.String("error", err.Error()))
			retry.Reset(storeRetry)
			again = retry.C
		}
		select {
		case <-m.ctx.Done():
		case <-m.wake:
		case <-again:
		}
	}
	m.submits.Wait()
	m.releaseHeld()
	running.Wait()
}

// takePlace takes one of the places of running jobs, if one is free.
func (m *Manager) takePlace() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.working >= m.max {
		return false
	}
	m.working++
	return true
}

// freePlace undoes takePlace.
func (m *Manager) freePlace() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.working--
}

// givePlace frees a place for the next job.
func (m *Manager) givePlace() {
	m.freePlace()
	m.poke()
}

// releaseHeld cancels the waiting jobs whose password ends with this process.
func (m *Manager) releaseHeld() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.ctx), storeTimeout)
	defer cancel()
	recs, err := m.store.Load(ctx, store.Filter{Status: []models.Status{models.Pending}, Owner: m.owner})
	if err != nil {
		m.log.Error("could not read the waiting jobs", slog.String("error", err.Error()))
		return
	}
	for _, r := range recs {
		if r.Owner == "" {
			continue
		}
		err := m.endPending(ctx, r.Job.ID, lostPassword)
		if err != nil && !errors.Is(err, store.ErrStale) {
			m.log.Error("could not cancel a waiting job", slog.String("job", r.Job.ID), slog.String("error", err.Error()))
		}
	}
}

// next gives the first waiting job whose host is not known to be busy; false
// means that there is none.
func (m *Manager) next() (store.Record, bool, error) {
	busy := m.busy()
	recs, err := m.store.Load(m.ctx, store.Filter{Status: []models.Status{models.Pending}, Owner: m.owner, Queue: true, Limit: len(busy) + 1})
	if err != nil {
		return store.Record{}, false, err
	}
	for _, r := range recs {
		if !busy[r.Job.ID] {
			return r, true, nil
		}
		delete(busy, r.Job.ID)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for id := range busy { // they were cancelled meanwhile
		delete(m.waits, id)
	}
	return store.Record{}, false, nil
}

// busy gives the waiting jobs whose host is full. The others of m.waits may
// look again.
func (m *Manager) busy() map[string]bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	ids := map[string]bool{}
	for id, host := range m.waits {
		if m.opts.Limits.Full(host) {
			ids[id] = true
		} else {
			delete(m.waits, id)
		}
	}
	return ids
}

// claim takes the first waiting job that may run; nil means that there is
// none.
func (m *Manager) claim() (*run, error) {
	for {
		found, ok, err := m.next()
		if err != nil || !ok {
			return nil, err
		}
		id := found.Job.ID
		r := newRun(m, id)
		r.before = found
		// Before the state says running, so that a cancellation finds it.
		m.mu.Lock()
		m.active[id] = r
		m.mu.Unlock()
		rec, err := m.move(m.ctx, id, models.Pending, models.Running, func(rec *store.Record) error {
			now := time.Now().UTC()
			rec.Owner, rec.AliveUntil = m.owner, now.Add(claimTime)
			rec.Job.UpdatedAt = now
			if rec.Job.StartedAt == nil { // it is set in a job that continues
				rec.Job.StartedAt = &now
			}
			return nil
		})
		if err == nil {
			r.job = rec.Job
			r.scrub = m.vault.scrubber(id)
			if b := r.job.Definition.Options.Bandwidth; b != nil {
				r.pace.SetBandwidth(int64(*b))
			}
			return r, nil
		}
		r.cancel(nil)
		m.drop(r)
		if !errors.Is(err, store.ErrStale) && !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
		// Another manager or a cancellation was first: the next one.
	}
}

// move changes a job's state. It is the one place that does.
func (m *Manager) move(ctx context.Context, id string, from, to models.Status, change func(*store.Record) error) (store.Record, error) {
	if err := checkTransition(from, to); err != nil {
		return store.Record{}, err
	}
	return m.store.Transition(ctx, id, from, to, change)
}

// run does one claimed job, from the state running to the final one.
func (m *Manager) run(r *run) {
	defer r.cancel(nil)
	id := r.job.ID
	m.awaitBirths()
	m.note(id, slog.LevelInfo, "job started")
	m.publishState(m.view(r.job))

	kept := make(chan struct{})
	go func() {
		defer close(kept)
		m.keepAlive(r)
	}()
	result, err := m.invoke(r)
	cause := context.Cause(r.ctx)
	last := r.stop()
	r.cancel(nil) // ends keepAlive
	<-kept

	if busy, ok := errors.AsType[*pace.HostBusyError](err); ok && cause == nil {
		m.postpone(r, busy.Host)
		return
	}
	to := models.Completed
	var text string
	switch {
	case err == nil:
		// Also when it was cancelled at the last moment: the export is whole.
	case errors.Is(cause, ErrCancelled) || errors.Is(cause, ErrStopping):
		to, text = models.Cancelled, cause.Error()
		if errors.Is(cause, ErrStopping) && m.opts.Durable && held(r.job.Definition) {
			text = lostPassword
		}
		if !errors.Is(err, context.Canceled) && !errors.Is(err, cause) {
			// What else went wrong while it stopped: a lease not released, say.
			text += ": " + r.scrub.text(err.Error())
		}
	default:
		to, text = models.Failed, r.scrub.text(err.Error())
		if errors.Is(cause, ErrClaimLost) {
			text = ErrClaimLost.Error() + ": " + text
		}
	}
	if to == models.Cancelled && errors.Is(cause, ErrStopping) && m.opts.Durable && !held(r.job.Definition) {
		m.interrupt(r, text, last)
		return
	}
	m.finish(r, to, result, text, last)
}

// postpone puts a job that found its host busy back to its place in the queue,
// as it was: others may run meanwhile.
func (m *Manager) postpone(r *run, host string) {
	id := r.job.ID
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.ctx), storeTimeout)
	defer cancel()
	m.note(id, slog.LevelInfo, "job waits: others take all streams of the host", slog.String("host", host))
	m.mu.Lock()
	m.waits[id] = host
	m.mu.Unlock()
	rec, err := m.settle(ctx, id, models.Pending, func(rec *store.Record) error {
		if rec.Owner != m.owner {
			return ErrClaimLost
		}
		rec.Owner, rec.AliveUntil = r.before.Owner, time.Time{}
		rec.Job.StartedAt, rec.Job.Progress, rec.Job.UpdatedAt = r.before.Job.StartedAt, r.before.Job.Progress, time.Now().UTC()
		return nil
	})
	if err != nil {
		m.drop(r)
		m.log.Error("could not put a job back into the queue", slog.String("job", id), slog.String("error", err.Error()))
		return
	}
	m.publishState(rec.Job)
	m.endIfCancelled(ctx, r)
}

// drop forgets a run and reports whether somebody cancelled it.
func (m *Manager) drop(r *run) (cancelled bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.active, r.job.ID)
	return r.cancelled
}

// endIfCancelled drops a run whose job waits again, and cancels that job if
// somebody wanted it to end in the meantime.
func (m *Manager) endIfCancelled(ctx context.Context, r *run) {
	if !m.drop(r) {
		return
	}
	if err := m.endPending(ctx, r.job.ID, ErrCancelled.Error()); err != nil && !notOurs(err) {
		m.log.Error("could not cancel a waiting job", slog.String("job", r.job.ID), slog.String("error", err.Error()))
	}
}

// interrupt puts a job that was stopped with the daemon back into the queue.
func (m *Manager) interrupt(r *run, text string, last *models.Progress) {
	id := r.job.ID
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.ctx), storeTimeout)
	defer cancel()
	m.note(id, slog.LevelWarn, "job interrupted, it continues when the daemon starts again", slog.String("reason", text))
	if err := m.requeue(ctx, id, m.owner, last); err != nil {
		m.drop(r)
		// It is found running at the next start, and taken up then.
		m.log.Error("could not put a job back into the queue", slog.String("job", id), slog.String("error", err.Error()))
		return
	}
	m.endIfCancelled(ctx, r)
}

// settle moves a job on that runs no more. A store that fails is asked again
// until ctx ends: such a job must not look as if it ran.
func (m *Manager) settle(ctx context.Context, id string, to models.Status, change func(*store.Record) error) (store.Record, error) {
	for {
		rec, err := m.move(ctx, id, models.Running, to, change)
		if err == nil || notOurs(err) {
			return rec, err
		}
		m.log.Error("could not record the state of a job", slog.String("job", id), slog.String("status", string(to)), slog.String("error", err.Error()))
		wait := time.NewTimer(storeRetry)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return rec, err
		}
	}
}

// finish records how a job ended and tells it.
func (m *Manager) finish(r *run, to models.Status, result models.Result, text string, last *models.Progress) {
	id := r.job.ID
	end := func(rec *store.Record) error {
		if rec.Owner != m.owner {
			return ErrClaimLost
		}
		now := time.Now().UTC()
		rec.Owner, rec.AliveUntil = "", time.Time{}
		rec.Job.CompletedAt, rec.Job.UpdatedAt = &now, now
		rec.Job.Error, rec.Job.Progress = text, last
		if to == models.Completed {
			for i, w := range result.Warnings {
				result.Warnings[i] = r.scrub.text(w)
			}
			for i, n := range result.Notes {
				result.Notes[i] = r.scrub.text(n)
			}
			rec.Job.Result = &result
			if last != nil {
				p := *last
				p.PercentComplete, p.CurrentFile, p.EstimatedRemaining = 100, "", "0s"
				rec.Job.Progress = &p
			}
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.ctx), storeTimeout)
	defer cancel()
	rec, err := m.settle(ctx, id, to, end)
	m.vault.wipe(id)
	m.drop(r)
	if err != nil {
		m.log.Error("the end of a job is not recorded", slog.String("job", id), slog.String("status", string(to)), slog.String("error", err.Error()))
		return
	}
	switch to {
	case models.Completed:
		m.note(id, slog.LevelInfo, "job completed", slog.Int64("totalSize", result.TotalSize), slog.Bool("verified", result.Verified))
	case models.Cancelled:
		m.note(id, slog.LevelWarn, "job cancelled", slog.String("reason", text))
	default:
		m.note(id, slog.LevelError, "job failed", slog.String("error", text))
	}
	m.ended(rec.Job)
	m.record.flush(ctx) // how a job ended should not wait for a batch
}

// invoke calls the Runner. A panic is that job's failure and nobody else's.
func (m *Manager) invoke(r *run) (result models.Result, err error) {
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		m.log.Error("a job panicked", slog.String("job", r.job.ID),
			slog.String("panic", r.scrub.text(fmt.Sprint(p))), slog.String("stack", r.scrub.text(string(debug.Stack()))))
		err = problem.New(problem.Failed, "run job", errors.New("internal error"), "the daemon's log holds the details; please report it")
	}()
	def := m.vault.give(r.job.ID, r.job.Definition)
	return m.opts.Runner.Run(r.ctx, Spec{ID: r.job.ID, Definition: def, Pace: r.pace}, progress.SinkFunc(r.report))
}

// keepAlive renews the claim on a job until its context ends. When the store
// says that the job is somebody else's, the run is stopped.
func (m *Manager) keepAlive(r *run) {
	ticker := time.NewTicker(claimTime / 3)
	defer ticker.Stop()
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-ticker.C:
		}
		_, err := m.store.Transition(r.ctx, r.job.ID, models.Running, models.Running, func(rec *store.Record) error {
			if rec.Owner != m.owner {
				return ErrClaimLost
			}
			rec.AliveUntil = time.Now().UTC().Add(claimTime)
			if p, at := r.snapshot(); p != nil {
				rec.Job.Progress, rec.Job.UpdatedAt = p, at // a checkpoint
			}
			return nil
		})
		switch {
		case err == nil || r.ctx.Err() != nil:
		case notOurs(err):
			r.cancel(ErrClaimLost)
			return
		default:
			m.log.Warn("could not renew the claim on a job", slog.String("job", r.job.ID), slog.String("error", err.Error()))
		}
	}
}

// notOurs reports whether the store says that a job is no longer this
// manager's to run.
func notOurs(err error) bool {
	return errors.Is(err, ErrClaimLost) || errors.Is(err, store.ErrStale) || errors.Is(err, store.ErrNotFound)
}

// view adds to a stored job what only this process knows.
func (m *Manager) view(j models.Job) models.Job {
	if j.Status != models.Running {
		return j
	}
	m.mu.Lock()
	r := m.active[j.ID]
	m.mu.Unlock()
	if r != nil {
		if p, at := r.snapshot(); p != nil {
			j.Progress, j.UpdatedAt = p, at
		}
	}
	return j
}

// awaitBirths returns when every job that is in the store by now has been
// told of.
func (m *Manager) awaitBirths() {
	m.births.Lock()
	defer m.births.Unlock()
}

// poke wakes the dispatcher.
func (m *Manager) poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// ended tells that a job has ended.
func (m *Manager) ended(j models.Job) {
	if m.opts.OnEnd != nil {
		m.opts.OnEnd(j)
	}
	m.publishState(j)
}

func (m *Manager) publishState(j models.Job) {
	m.publish(models.Event{Type: models.StateEvent, JobID: j.ID, Time: time.Now().UTC(), Job: &j})
}

// publish tells an event and has it stored.
func (m *Manager) publish(e models.Event) {
	if e, ok := m.hub.publish(e); ok {
		m.record.add(e)
	}
}
