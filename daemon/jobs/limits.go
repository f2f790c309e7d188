package jobs

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/daemon/store"
	"github.com/hyper2kvm/hyper2kvm/internal/pace"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

// Limits says what bounds the work, and what of it is in use.
func (m *Manager) Limits(context.Context) (models.Limits, error) {
	stats := m.opts.Limits.Stats()
	out := models.Limits{
		StreamsPerHost: stats.Settings.StreamsPerHost, MaxStreams: stats.Settings.Streams, Bandwidth: models.Bandwidth(stats.Settings.Bandwidth),
		Streams: stats.Streams, Hosts: map[string]models.HostStreams{}, Jobs: map[string]models.Bandwidth{}, Timestamp: time.Now().UTC(),
	}
	for host, n := range stats.Hosts {
		out.Hosts[host] = models.HostStreams{Open: n}
	}
	for host, n := range stats.Waiting {
		h := out.Hosts[host]
		h.Waiting = n
		out.Hosts[host] = h
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	out.MaxRunningJobs, out.RunningJobs = m.max, len(m.active)
	for id, r := range m.active {
		if b := r.pace.Bandwidth(); b > 0 {
			out.Jobs[id] = models.Bandwidth(b)
		}
	}
	return out, nil
}

// ChangeLimits puts other limits in force, or none of them: the error is a
// problem.Invalid when one is out of range, and a problem.NotFound or
// problem.Conflict when one of the jobs does not exist or does not run.
func (m *Manager) ChangeLimits(ctx context.Context, r models.LimitsRequest) (models.Limits, error) {
	const what = "change limits"
	if bad := r.Check(); bad != nil {
		texts := make([]string, len(bad))
		for i, b := range bad {
			texts[i] = b.Error()
		}
		return models.Limits{}, problem.New(problem.Invalid, what, errors.New(strings.Join(texts, "; ")), "")
	}
	var runs []*run
	for _, given := range r.JobIDs {
		rec, err := m.find(ctx, given)
		if err != nil {
			return models.Limits{}, err
		}
		m.mu.Lock()
		run := m.active[rec.Job.ID]
		m.mu.Unlock()
		if run == nil {
			return models.Limits{}, problem.New(problem.Conflict, what, errors.New("job "+rec.Job.ID+" is "+string(rec.Job.Status)),
				"a bandwidth can be changed while the job runs")
		}
		runs = append(runs, run)
	}
	for _, run := range runs {
		if err := m.changeBandwidth(ctx, run, *r.JobBandwidth); err != nil {
			return models.Limits{}, problem.New(problem.KindOf(err), what, fmt.Errorf("of job %s: %w", run.job.ID, err), "look at it with h2kvmctl limits")
		}
	}
	m.limits.Lock() // two changes at once must not undo each other
	defer m.limits.Unlock()
	s := m.opts.Limits.Stats().Settings
	if r.StreamsPerHost != nil {
		s.StreamsPerHost = *r.StreamsPerHost
	}
	if r.MaxStreams != nil {
		s.Streams = *r.MaxStreams
	}
	if r.Bandwidth != nil {
		s.Bandwidth = int64(*r.Bandwidth)
	}
	m.opts.Limits.Set(s)
	if r.MaxRunningJobs != nil {
		m.setMaxRunning(*r.MaxRunningJobs)
	}
	return m.Limits(ctx)
}

// changeBandwidth makes a bandwidth the job's own, so that it still has it when
// it goes on after a stop.
func (m *Manager) changeBandwidth(ctx context.Context, r *run, b models.Bandwidth) error {
	_, err := m.store.Transition(ctx, r.job.ID, models.Running, models.Running, func(rec *store.Record) error {
		if rec.Owner != m.owner {
			return ErrClaimLost
		}
		rec.Job.Definition.Options.Bandwidth = &b
		rec.Job.UpdatedAt = time.Now().UTC()
		return nil
	})
	if err != nil {
		return err
	}
	r.pace.SetBandwidth(int64(b))
	return nil
}

// SetLimits puts limits in force, all of them. Jobs and streams beyond them run
// to their end.
func (m *Manager) SetLimits(maxRunning int, s pace.Settings) {
	m.limits.Lock()
	defer m.limits.Unlock()
	m.opts.Limits.Set(s)
	m.setMaxRunning(maxRunning)
}

func (m *Manager) setMaxRunning(n int) {
	m.mu.Lock()
	m.max = n
	m.mu.Unlock()
	m.poke()
}
