// Package progress is how long work says where it stands: a Tracker counts,
// a Snapshot is what it counted at one moment, an Event carries a snapshot or
// a remark to a Sink. It knows no vSphere and no terminal; renderers in this
// package turn events into bars or lines.
package progress

import (
	"log/slog"
	"time"
)

// Phase is the stage an export is in.
type Phase string

// The phases, in the order an export passes them. A conversion of local files
// is Converting where an export is Exporting.
const (
	Connecting  Phase = "connecting"
	Discovering Phase = "discovering"
	Preparing   Phase = "preparing"
	Exporting   Phase = "exporting"
	Converting  Phase = "converting"
	Verifying   Phase = "verifying"
	Finalizing  Phase = "finalizing"
)

// FileState is where one file of an export stands.
type FileState string

// The states of a file. Kept means that an earlier run had finished it.
const (
	Waiting     FileState = "waiting"
	Downloading FileState = "downloading"
	Retrying    FileState = "retrying"
	Checking    FileState = "checking"
	Done        FileState = "done"
	Kept        FileState = "kept"
	Broken      FileState = "failed"
)

// File is one file's share of a snapshot.
type File struct {
	Name  string
	State FileState
	// Position is how far the stream has come in the guest's disk, in bytes
	// of guest address space (for a file that is no disk: in bytes of the
	// file). For a thin disk it is the only honest measure.
	Position int64
	// Capacity is what Position ends at; 0 while unknown.
	Capacity int64
	// Received is how many bytes of this file have been taken, those that an
	// earlier attempt left and that were proved to be right included.
	Received int64
	// Attempt counts from 1; a higher number means the transfer was retried.
	Attempt int
	// Problem is the last error met, while the file is being retried or when
	// it failed; empty otherwise.
	Problem string
}

// Snapshot is the state of an export at one moment. It is a value: its
// receiver may keep it.
type Snapshot struct {
	Phase     Phase
	Current   string // name of a file in transfer; empty when none
	FilesDone int
	Files     []File
	// Received is the sum of the files' Received.
	Received int64
	// Total is the upper bound of Received: the disks' capacities until a
	// stream has ended, its real size from then on. It shrinks as thin disks
	// end and equals Received when the export is whole.
	Total int64
	// Percent runs from 0 to 100 and comes from positions, not from bytes
	// received. Each file counts by its weight when all have one, else by its
	// capacity. It never falls while one file set is in transfer, except when
	// a disk has to start again.
	Percent float64
	// BytesPerSecond is the recent rate of bytes received from the network.
	BytesPerSecond int64
	// Remaining is the estimated time left, from the recent rate of the
	// positions; negative while unknown.
	Remaining time.Duration
}

// Kind says what an Event is about.
type Kind string

// The kinds of events.
const (
	Tick   Kind = "tick"   // numbers moved; carries a snapshot, no message
	Step   Kind = "step"   // a phase began or a file changed state
	Remark Kind = "remark" // something a log should hold: a retry, a warning, a result
)

// Event is one report. Snapshot is always filled in. Message is empty for a
// Tick; for the others it is a constant sentence with the details in Attrs.
type Event struct {
	Time     time.Time
	Kind     Kind
	Level    slog.Level
	Message  string
	Attrs    []slog.Attr
	Snapshot Snapshot
}

// Sink hears events. Report must not block for long and is called by one
// goroutine at a time.
type Sink interface {
	Report(Event)
}

// SinkFunc makes a function a Sink.
type SinkFunc func(Event)

// Report calls f.
func (f SinkFunc) Report(e Event) { f(e) }

// Discard is a Sink that forgets everything.
var Discard Sink = SinkFunc(func(Event) {})
