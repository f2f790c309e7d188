package models

import (
	"fmt"
	"time"
)

// The ranges of Limits.
const (
	MaxRunningJobs = 64
	MaxStreams     = 1024
)

// Limits answers GET /limits and POST /limits/change: what bounds the daemon's
// work, and what of it is in use. Of everything but MaxRunningJobs 0 is no
// limit.
type Limits struct {
	MaxRunningJobs int       `json:"max_running_jobs"` // 1 to MaxRunningJobs
	StreamsPerHost int       `json:"streams_per_host"` // of one ESXi host at once
	MaxStreams     int       `json:"max_streams"`      // at once in all
	Bandwidth      Bandwidth `json:"bandwidth"`        // of all streams together
	RunningJobs    int       `json:"running_jobs"`
	Streams        int       `json:"streams"` // open now
	// Hosts are the hosts with open or waiting streams, by name.
	Hosts map[string]HostStreams `json:"hosts"`
	// Jobs are the running jobs that have a bandwidth of their own, by id.
	Jobs      map[string]Bandwidth `json:"jobs"`
	Timestamp time.Time            `json:"timestamp"`
}

// HostStreams counts the streams of one host.
type HostStreams struct {
	Open    int `json:"open"`
	Waiting int `json:"waiting"`
}

// LimitsRequest asks POST /limits/change for other limits; what is nil stays.
// They hold until the next change, or until the daemon reads its configuration
// again.
type LimitsRequest struct {
	MaxRunningJobs *int       `json:"max_running_jobs,omitempty"`
	StreamsPerHost *int       `json:"streams_per_host,omitempty"`
	MaxStreams     *int       `json:"max_streams,omitempty"`
	Bandwidth      *Bandwidth `json:"bandwidth,omitempty"`
	// JobIDs are running jobs, whose own bandwidth JobBandwidth is from now on.
	// Neither goes without the other.
	JobIDs       []string   `json:"job_ids,omitempty"`
	JobBandwidth *Bandwidth `json:"job_bandwidth,omitempty"`
}

// Check names what is wrong with a request; nil means nothing.
func (r LimitsRequest) Check() (bad []FieldProblem) {
	add := func(field, why string) {
		if why != "" {
			bad = append(bad, FieldProblem{field, why})
		}
	}
	number := func(field string, v *int, low, high int) {
		if v != nil && (*v < low || *v > high) {
			add(field, fmt.Sprintf("is %d, want %d to %d", *v, low, high))
		}
	}
	number("max_running_jobs", r.MaxRunningJobs, 1, MaxRunningJobs)
	number("streams_per_host", r.StreamsPerHost, 0, MaxStreams)
	number("max_streams", r.MaxStreams, 0, MaxStreams)
	if r.Bandwidth != nil {
		add("bandwidth", r.Bandwidth.Check())
	}
	switch {
	case r.JobIDs != nil && r.JobBandwidth == nil:
		add("job_bandwidth", "is missing: job_ids need it")
	case len(r.JobIDs) == 0 && r.JobBandwidth != nil:
		add("job_ids", "are missing: job_bandwidth needs them")
	case r.JobBandwidth != nil:
		add("job_bandwidth", r.JobBandwidth.Check())
	}
	if len(bad) == 0 && r.MaxRunningJobs == nil && r.StreamsPerHost == nil && r.MaxStreams == nil && r.Bandwidth == nil && r.JobBandwidth == nil {
		add("request", "changes nothing")
	}
	return bad
}
