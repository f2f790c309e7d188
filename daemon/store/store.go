// Package store is the contract between the job manager and whatever keeps
// its jobs. It is the seam at which several daemons may one day share one
// queue: a job is claimed, kept alive and released by compare-and-set here,
// never by a variable in one process. It knows neither SQL nor vSphere; the
// package storetest holds the suite that every implementation passes.
package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
)

// Record is a job as it is kept.
type Record struct {
	// Job never holds a password. Its Progress is kept once the job has ended.
	Job models.Job
	// Owner is the manager that runs the job, or the only one that may: a job
	// that depends on a password in one manager's memory is inserted with its
	// owner. Empty means that any manager may claim it.
	Owner string
	// AliveUntil is when the owner's claim on a running job ends unless it is
	// renewed; zero otherwise.
	AliveUntil time.Time
}

// Filter selects records; every condition that is set must hold.
type Filter struct {
	IDs    []string        // any of these; nil means all
	Prefix string          // the id begins with it
	Status []models.Status // any of these; nil means all
	// Owner selects records that the named manager may run or runs: those of
	// that owner and those of none. Empty means all.
	Owner string
	// Queue orders them as waiting jobs are taken: by falling priority, and by
	// insertion among the same.
	Queue bool
	// Limit is the most records given; 0 means no limit. They are the first, or
	// with Last the last ones; their order is the same.
	Limit int
	Last  bool
}

// EventFilter selects events; every condition that is set must hold.
type EventFilter struct {
	After uint64 // ids greater than it
	JobID string
	Type  models.EventType
	Limit int // 0 means no limit
}

// MaxLines is how many log lines of one job are kept: the last ones.
const MaxLines = 10_000

// Store keeps jobs. Records go in and come out as copies. All methods are
// safe for concurrent use and honour ctx.
type Store interface {
	// Insert adds a record. It refuses an id that exists with ErrExists, and,
	// with an *OutputError, an output path that a pending or running job has
	// already: both checks and the insertion are one step. Transition refuses
	// that as well, when it makes an ended job unfinished again.
	Insert(ctx context.Context, r Record) error

	// Transition moves one job from one status to another, or renews it when
	// both are the same, in one step: it fails with ErrNotFound when there is
	// no such job and with ErrStale when its status is not from. The status is
	// set first; then change, when it is not nil, may alter the rest. An error
	// of change is returned and leaves the record as it was. Change must
	// not call the store and may be called more than once. The id, the time
	// of creation and, but for its bandwidth, the definition cannot be changed.
	// The new record is returned.
	//
	// The store does not judge which transitions make sense; the manager does.
	Transition(ctx context.Context, id string, from, to models.Status, change func(*Record) error) (Record, error)

	// Load gives the records that match, in the order of their insertion unless
	// the filter asks for the queue's.
	Load(ctx context.Context, f Filter) ([]Record, error)

	// Count says how many jobs there are of each status. A status without
	// jobs may be left out.
	Count(ctx context.Context) (map[models.Status]int, error)

	// Append keeps events, whose ids rise. Those of jobs that are not there are
	// dropped, and of a job's log lines all but the last MaxLines.
	Append(ctx context.Context, events []models.Event) error
	// Events gives the events that match, by rising id.
	Events(ctx context.Context, f EventFilter) ([]models.Event, error)
	// LastEvent is the greatest id of an event, 0 when there is none.
	LastEvent(ctx context.Context) (uint64, error)

	// Prune removes jobs that have ended, with their events: those that ended
	// before a time, unless it is zero, and all but the keep that ended last,
	// unless keep is 0. It gives how many.
	Prune(ctx context.Context, before time.Time, keep int) (removed int, err error)
}

// What a store's methods fail with, for errors.Is.
var (
	ErrExists   = errors.New("job exists already")
	ErrNotFound = errors.New("no such job")
	ErrStale    = errors.New("job is in another state")
)

// OutputError says which unfinished job has the output path already.
type OutputError struct {
	ID   string
	Path string
}

// Error names the path and the job.
func (e *OutputError) Error() string {
	return fmt.Sprintf("job %s writes to %s", e.ID, e.Path)
}
