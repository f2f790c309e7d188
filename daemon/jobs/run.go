package jobs

import (
	"context"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/daemon/store"
	"github.com/hyper2kvm/hyper2kvm/internal/logging"
	"github.com/hyper2kvm/hyper2kvm/internal/pace"
	"github.com/hyper2kvm/hyper2kvm/progress"
)

// progressEvery is the shortest time between two progress events of a job.
const progressEvery = 500 * time.Millisecond

// run is a job while it runs in this process.
type run struct {
	m         *Manager
	ctx       context.Context //nolint:containedctx // the Runner's: a job's life, ended by cancel
	cancel    context.CancelCauseFunc
	pace      *pace.Job
	before    store.Record // as it waited
	job       models.Job   // as it was when claimed; constant from then on
	scrub     scrubber     // constant, as job
	cancelled bool         // somebody asked for it; guarded by the manager's mu

	mu      sync.Mutex
	last    *models.Progress // constant once stored here; replaced as a whole
	at      time.Time        // of last
	sent    time.Time        // of the last progress event
	trail   *time.Timer      // sends what the limit held back
	stopped bool
}

func newRun(m *Manager, id string) *run {
	r := &run{m: m, job: models.Job{ID: id}, pace: m.opts.Limits.Job(0)}
	r.ctx, r.cancel = context.WithCancelCause(m.ctx)
	return r
}

// report is the Runner's progress.Sink.
func (r *run) report(e progress.Event) {
	p := wireProgress(e.Snapshot, r.scrub)
	r.mu.Lock()
	if r.stopped {
		r.mu.Unlock()
		return
	}
	r.last, r.at = p, time.Now().UTC()
	wait := progressEvery - time.Since(r.sent)
	switch {
	case wait <= 0:
		r.send()
	case r.trail == nil:
		r.trail = time.AfterFunc(wait, func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.trail != nil && !r.stopped {
				r.send()
			}
		})
	}
	r.mu.Unlock()
	if e.Message != "" {
		r.m.noteScrubbed(r.job.ID, r.scrub, e.Level, e.Message, e.Attrs...)
	}
}

// send publishes the newest progress. The caller holds mu: events of one job
// leave in the order of their making.
func (r *run) send() {
	if r.trail != nil {
		r.trail.Stop()
		r.trail = nil
	}
	r.sent = time.Now()
	job := r.job
	job.Progress, job.UpdatedAt = r.last, r.at
	r.m.hub.publish(models.Event{Type: models.ProgressEvent, JobID: job.ID, Time: r.at, Job: &job})
}

// snapshot gives the newest progress, nil before the first.
func (r *run) snapshot() (*models.Progress, time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last, r.at
}

// stop ends the reporting and gives the last progress. What a Runner reports
// later, against its contract, is ignored.
func (r *run) stop() *models.Progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopped = true
	if r.trail != nil {
		r.trail.Stop()
		r.trail = nil
	}
	return r.last
}

// note writes one line to the job's log, to its readers and to the daemon's.
func (m *Manager) note(id string, level slog.Level, message string, attrs ...slog.Attr) {
	m.noteScrubbed(id, m.vault.scrubber(id), level, message, attrs...)
}

func (m *Manager) noteScrubbed(id string, scrub scrubber, level slog.Level, message string, attrs ...slog.Attr) {
	line := models.LogLine{
		Time: time.Now().UTC(), Level: logging.Level(level),
		Message: scrub.text(message), Attrs: scrub.text(logging.Attrs(attrs)),
	}
	m.publish(models.Event{Type: models.LogEvent, JobID: id, Time: line.Time, Log: &line})
	all := make([]slog.Attr, 0, len(attrs)+1)
	all = append(all, slog.String("job", id))
	for _, a := range attrs {
		all = append(all, scrub.attr(a))
	}
	m.log.LogAttrs(m.ctx, level, line.Message, all...) //nolint:sloglint // the callers give constants
}

// attr scrubs an attribute's value. Numbers, times and the like stay as they
// are; everything else becomes text.
func (s scrubber) attr(a slog.Attr) slog.Attr {
	if s.replacer == nil {
		return a
	}
	a.Value = a.Value.Resolve()
	switch a.Value.Kind() {
	case slog.KindString, slog.KindAny:
		a.Value = slog.StringValue(s.text(a.Value.String()))
	case slog.KindGroup:
		group := a.Value.Group()
		out := make([]slog.Attr, len(group))
		for i, g := range group {
			out[i] = s.attr(g)
		}
		a.Value = slog.GroupValue(out...)
	}
	return a
}

// wireProgress turns a snapshot into what the API gives.
func wireProgress(s progress.Snapshot, scrub scrubber) *models.Progress {
	p := &models.Progress{
		Phase: string(s.Phase), CurrentFile: s.Current, FilesDownloaded: s.FilesDone, TotalFiles: len(s.Files),
		BytesDownloaded: s.Received, TotalBytes: s.Total, PercentComplete: min(100, max(0, s.Percent)),
		BytesPerSecond: max(0, s.BytesPerSecond), Files: make([]models.FileProgress, len(s.Files)),
	}
	if math.IsNaN(p.PercentComplete) {
		p.PercentComplete = 0 // JSON has no word for it
	}
	if s.Remaining >= 0 {
		p.EstimatedRemaining = s.Remaining.Round(time.Second).String()
	}
	for i, f := range s.Files {
		p.Files[i] = models.FileProgress{
			Name: f.Name, State: string(f.State), Position: f.Position, Capacity: f.Capacity,
			Bytes: f.Received, Attempt: f.Attempt, Problem: scrub.text(f.Problem),
		}
	}
	return p
}
