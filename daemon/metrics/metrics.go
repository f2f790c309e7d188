// Package metrics counts what the daemon does and tells it to Prometheus, in a
// registry of its own. Labels are bounded: vCenters by their names in the
// configuration, hosts up to a number, never VMs or jobs.
package metrics

import (
	"context"
	"log/slog"
	"net/http"
	"runtime"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
)

const (
	// maxHosts bounds how many hosts have counters of their own; names come
	// from vCenters. The others share those of otherHost.
	maxHosts  = 1024
	otherHost = "other"
	// scrapeTimeout bounds what a scrape asks the job store.
	scrapeTimeout = 5 * time.Second
)

// Metrics are the daemon's counters. Its methods are safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry

	ends         *prometheus.CounterVec
	queueWait    prometheus.Histogram
	duration     *prometheus.HistogramVec
	bytes        *prometheus.CounterVec
	retries      *prometheus.CounterVec
	renewals     *prometheus.CounterVec
	renewalFails *prometheus.CounterVec
	verified     *prometheus.CounterVec
	mismatches   *prometheus.CounterVec

	mu    sync.Mutex
	hosts map[[2]string]*Host
}

// New gives counters that stand at zero.
func New() *Metrics {
	perHost := []string{"vcenter", "host"}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "hyper2kvm_" + name, Help: help}, labels)
	}
	m := &Metrics{
		registry: prometheus.NewRegistry(), hosts: map[[2]string]*Host{},
		ends: counter("job_ends_total", "Jobs that ended, by how.", "vcenter", "status"),
		queueWait: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "hyper2kvm_job_queue_wait_seconds", Help: "Time from the submission of a job to its begin, counted at its end.",
			Buckets: []float64{1, 10, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600},
		}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "hyper2kvm_job_duration_seconds", Help: "Time from the begin of a job to its end.",
			Buckets: []float64{10, 60, 300, 900, 1800, 3600, 2 * 3600, 6 * 3600, 12 * 3600, 24 * 3600, 48 * 3600},
		}, []string{"status"}),
		bytes:        counter("transfer_bytes_total", "Bytes read from hosts.", perHost...),
		retries:      counter("transfer_retries_total", "Transfers of a file that were tried again.", perHost...),
		renewals:     counter("lease_renewals_total", "Renewals of leases that the host took.", perHost...),
		renewalFails: counter("lease_renewal_failures_total", "Renewals of leases that failed; each is tried again while the lease lives.", perHost...),
		verified:     counter("files_verified_total", "Files that are whole, by what proved them.", append(perHost, "proof")...),
		mismatches:   counter("verification_failures_total", "Streams whose bytes disagreed with the host's manifest or their own checksums.", perHost...),
	}
	m.registry.MustRegister(m.ends, m.queueWait, m.duration, m.bytes, m.retries, m.renewals, m.renewalFails, m.verified, m.mismatches,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "hyper2kvm_build_info", Help: "Always 1; what runs is in the labels.",
			ConstLabels: prometheus.Labels{"version": models.Version, "goversion": runtime.Version()},
		}, func() float64 { return 1 }))
	m.Know("default")
	m.Know("own")
	return m
}

// Know lets the ends of jobs of a vCenter be counted from zero: how much a
// counter has grown is not known of one that begins at 1.
func (m *Metrics) Know(vcenter string) {
	for _, s := range []models.Status{models.Completed, models.Failed, models.Cancelled} {
		m.ends.WithLabelValues(vcenter, string(s))
	}
}

// Host counts what happens with one host. Its methods are safe for concurrent
// use, and cost little more than an addition.
type Host struct {
	bytes, retries, renewals, renewalFails, mismatches prometheus.Counter
	verified                                           func(proof string) prometheus.Counter
}

// Host gives the counters of a host of a vCenter.
func (m *Metrics) Host(vcenter, host string) *Host {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := [2]string{vcenter, host}
	h := m.hosts[key]
	if h == nil && len(m.hosts) >= maxHosts {
		key = [2]string{otherHost, otherHost}
		h = m.hosts[key]
	}
	if h == nil {
		h = &Host{
			bytes: m.bytes.WithLabelValues(key[:]...), retries: m.retries.WithLabelValues(key[:]...),
			renewals: m.renewals.WithLabelValues(key[:]...), renewalFails: m.renewalFails.WithLabelValues(key[:]...),
			mismatches: m.mismatches.WithLabelValues(key[:]...),
			verified:   func(proof string) prometheus.Counter { return m.verified.WithLabelValues(key[0], key[1], proof) },
		}
		m.hosts[key] = h
	}
	return h
}

// Took counts n bytes read from the host.
func (h *Host) Took(n int) { h.bytes.Add(float64(n)) }

// Retried counts a transfer that is tried again.
func (h *Host) Retried() { h.retries.Inc() }

// Proved counts a file that is whole.
func (h *Host) Proved(proof string) { h.verified(proof).Inc() }

// Damaged counts a stream whose bytes were not what they should be.
func (h *Host) Damaged() { h.mismatches.Inc() }

// Renewed counts a renewal of a lease, or a failed one.
func (h *Host) Renewed(err error) {
	if err != nil {
		h.renewalFails.Inc()
		return
	}
	h.renewals.Inc()
}

// Ended counts a job that has ended.
func (m *Metrics) Ended(j models.Job) {
	m.ends.WithLabelValues(j.Definition.VCenterName(), string(j.Status)).Inc()
	if j.StartedAt == nil || j.CompletedAt == nil {
		return // it never began
	}
	m.queueWait.Observe(max(0, j.StartedAt.Sub(j.CreatedAt).Seconds()))
	m.duration.WithLabelValues(string(j.Status)).Observe(max(0, j.CompletedAt.Sub(*j.StartedAt).Seconds()))
}

// Jobs is what a scrape asks of the job manager.
type Jobs interface {
	Status(ctx context.Context) (models.DaemonStatus, error)
	Query(ctx context.Context, q models.QueryRequest) (models.QueryResponse, error)
	Limits(ctx context.Context) (models.Limits, error)
	// OldestPending is when the job was submitted that waits longest; zero when
	// none does.
	OldestPending(ctx context.Context) (time.Time, error)
}

// Handler answers scrapes with the counters and with what jobs says at that
// moment. What cannot be asked is left out, and logged.
func (m *Metrics) Handler(jobs Jobs, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// A registry of its own for each scrape: it has a context.
		now := prometheus.NewRegistry()
		now.MustRegister(&moment{r.Context(), jobs, log})
		promhttp.HandlerFor(prometheus.Gatherers{m.registry, now}, promhttp.HandlerOpts{
			ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelError), ErrorHandling: promhttp.ContinueOnError,
		}).ServeHTTP(w, r)
	})
}

// moment is what jobs says during one scrape.
type moment struct {
	ctx  context.Context //nolint:containedctx // of the one scrape it lives for
	jobs Jobs
	log  *slog.Logger
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("hyper2kvm_"+name, help, labels, nil)
}

var (
	jobsDesc      = desc("jobs", "Jobs that are kept, by state.", "status")
	maxJobsDesc   = desc("max_running_jobs", "Jobs that may run at once.")
	oldestDesc    = desc("job_queue_oldest_seconds", "How long the job has waited that waits longest; 0 when none does.")
	rateDesc      = desc("transfer_bytes_per_second", "Recent rate of the running jobs.", "vcenter")
	streamsDesc   = desc("host_streams", "Streams of a host, open or waiting for a place.", "host", "state")
	perHostDesc   = desc("host_streams_limit", "Streams of a host that may be open at once; 0 is no limit.")
	streamMaxDesc = desc("streams_limit", "Streams that may be open at once in all; 0 is no limit.")
	bandwidthDesc = desc("bandwidth_limit_bytes_per_second", "Bytes per second that all streams may take; 0 is no limit.")
)

// Describe is part of prometheus.Collector.
func (*moment) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{jobsDesc, maxJobsDesc, oldestDesc, rateDesc, streamsDesc, perHostDesc, streamMaxDesc, bandwidthDesc} {
		ch <- d
	}
}

// Collect is part of prometheus.Collector.
func (m *moment) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(m.ctx, scrapeTimeout)
	defer cancel()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for what, ask := range map[string]func() error{
		"status": func() error {
			s, err := m.jobs.Status(ctx)
			if err != nil {
				return err
			}
			for status, n := range map[models.Status]int{
				models.Pending: s.PendingJobs, models.Running: s.RunningJobs, models.Completed: s.CompletedJobs,
				models.Failed: s.FailedJobs, models.Cancelled: s.CancelledJobs,
			} {
				gauge(jobsDesc, float64(n), string(status))
			}
			return nil
		},
		"queue": func() error {
			since, err := m.jobs.OldestPending(ctx)
			if err != nil {
				return err
			}
			waited := 0.0
			if !since.IsZero() {
				waited = max(0, time.Since(since).Seconds())
			}
			gauge(oldestDesc, waited)
			return nil
		},
		"rates": func() error {
			running, err := m.jobs.Query(ctx, models.QueryRequest{Status: []models.Status{models.Running}})
			if err != nil {
				return err
			}
			rates := map[string]int64{}
			for _, j := range running.Jobs {
				name := j.Definition.VCenterName()
				rates[name] += 0
				if j.Progress != nil {
					rates[name] += j.Progress.BytesPerSecond
				}
			}
			for name, rate := range rates {
				gauge(rateDesc, float64(rate), name)
			}
			return nil
		},
		"limits": func() error {
			l, err := m.jobs.Limits(ctx)
			if err != nil {
				return err
			}
			for host, s := range l.Hosts {
				gauge(streamsDesc, float64(s.Open), host, "open")
				gauge(streamsDesc, float64(s.Waiting), host, "waiting")
			}
			gauge(maxJobsDesc, float64(l.MaxRunningJobs))
			gauge(perHostDesc, float64(l.StreamsPerHost))
			gauge(streamMaxDesc, float64(l.MaxStreams))
			gauge(bandwidthDesc, float64(l.Bandwidth))
			return nil
		},
	} {
		if err := ask(); err != nil {
			m.log.Error("a scrape has gaps", slog.String("missing", what), slog.String("error", err.Error()))
		}
	}
}
