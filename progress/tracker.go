package progress

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// rateWindow is how far back the rate looks. Ten seconds smooth over one
// host's pauses between grains and still show a stall soon.
const rateWindow = 10 * time.Second

// Tracker counts what an export does and reports it to one Sink. The counting
// methods of its Handles touch atomics only, so the hot path may call them for
// every buffer. All methods are safe for concurrent use.
type Tracker struct {
	sink Sink

	report sync.Mutex // one Report at a time, as Sink demands

	mu      sync.Mutex
	phase   Phase
	files   []*Handle
	samples []sample
}

type sample struct {
	at        time.Time
	network   int64
	positions []int64
}

// NewTracker returns a Tracker that reports to sink; nil means Discard.
func NewTracker(sink Sink) *Tracker {
	if sink == nil {
		sink = Discard
	}
	return &Tracker{sink: sink, phase: Connecting}
}

// Handle counts for one file. Its zero value is not usable; Tracker.Add gives
// one. All methods are safe for concurrent use.
type Handle struct {
	name     string
	position atomic.Int64
	capacity atomic.Int64
	weight   atomic.Int64
	received atomic.Int64
	network  atomic.Int64
	size     atomic.Int64 // real size once the stream has ended, else -1

	mu      sync.Mutex
	state   FileState
	attempt int
	problem string
}

// Add announces a file. Capacity is what its position will end at, in bytes;
// 0 while unknown.
func (t *Tracker) Add(name string, capacity int64) *Handle {
	h := &Handle{name: name, state: Waiting, attempt: 1}
	h.capacity.Store(capacity)
	h.size.Store(-1)
	t.mu.Lock()
	t.files = append(t.files, h)
	t.samples = nil // positions are indexed by file
	t.mu.Unlock()
	return h
}

// Enter begins a phase and reports it.
func (t *Tracker) Enter(p Phase) {
	t.mu.Lock()
	changed := t.phase != p
	t.phase = p
	t.mu.Unlock()
	if changed {
		t.emit(Step, slog.LevelDebug, "phase", slog.String("phase", string(p)))
	}
}

// Remark reports something a log should hold. The message is a constant; what
// varies goes into attrs.
func (t *Tracker) Remark(level slog.Level, message string, attrs ...slog.Attr) {
	t.emit(Remark, level, message, attrs...)
}

// Run reports a Tick every interval until ctx ends.
func (t *Tracker) Run(ctx context.Context, interval time.Duration) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			t.emit(Tick, slog.LevelDebug, "")
		}
	}
}

func (t *Tracker) emit(kind Kind, level slog.Level, message string, attrs ...slog.Attr) {
	t.report.Lock()
	defer t.report.Unlock()
	t.sink.Report(Event{
		Time: time.Now(), Kind: kind, Level: level,
		Message: message, Attrs: attrs, Snapshot: t.Snapshot(),
	})
}

// Snapshot returns the state of this moment.
func (t *Tracker) Snapshot() Snapshot {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := Snapshot{Phase: t.phase, Files: make([]File, 0, len(t.files)), Remaining: -1}
	now := sample{at: time.Now(), positions: make([]int64, len(t.files))}
	for i, h := range t.files {
		f := h.file()
		s.Files = append(s.Files, f)
		size := h.size.Load()
		switch {
		case size >= 0:
			s.Total += size
		default:
			s.Total += max(f.Capacity, f.Received)
		}
		s.Received += f.Received
		now.network += h.network.Load()
		now.positions[i] = f.Position
		switch f.State {
		case Done, Kept:
			s.FilesDone++
		case Downloading, Retrying, Checking:
			if s.Current == "" {
				s.Current = f.Name
			}
		}
	}
	weights := t.weights(s.Files)
	var done, all float64
	for i, f := range s.Files {
		all += weights[i]
		if f.Capacity > 0 {
			done += weights[i] * min(1, float64(f.Position)/float64(f.Capacity))
		}
	}
	if all > 0 {
		s.Percent = min(100, 100*done/all)
	}
	t.remember(now)
	t.estimate(&s, now, weights)
	return s
}

// weights says how much of the whole each file is; files are those of t.
func (t *Tracker) weights(files []File) []float64 {
	unknown := slices.ContainsFunc(t.files, func(h *Handle) bool { return h.weight.Load() <= 0 })
	weights := make([]float64, len(files))
	for i, f := range files {
		weights[i] = float64(t.files[i].weight.Load())
		if unknown {
			weights[i] = float64(f.Capacity)
		}
	}
	return weights
}

// remember keeps the samples of the last rateWindow, at most one for every
// hundredth of it, so that frequent snapshots cost no memory.
func (t *Tracker) remember(now sample) {
	if n := len(t.samples); n == 0 || now.at.Sub(t.samples[n-1].at) >= rateWindow/100 {
		t.samples = append(t.samples, now)
	}
	old := 0
	for old < len(t.samples)-1 && now.at.Sub(t.samples[old].at) > rateWindow {
		old++
	}
	t.samples = t.samples[old:]
}

// estimate fills in the rate and the time left. Disks run in parallel, so the
// whole ends with the slowest of them; files that still wait run after it.
func (t *Tracker) estimate(s *Snapshot, now sample, weights []float64) {
	if len(t.samples) == 0 {
		return
	}
	first := t.samples[0]
	elapsed := now.at.Sub(first.at).Seconds()
	if elapsed <= 0 {
		return
	}
	s.BytesPerSecond = int64(float64(now.network-first.network) / elapsed)
	var left, moved, longest float64 // left and moved by weight, longest in seconds
	for i, f := range s.Files {
		if f.State == Done || f.State == Kept {
			continue
		}
		if f.Capacity == 0 {
			left += weights[i]
			continue
		}
		rest := float64(f.Capacity - f.Position)
		if rest <= 0 {
			continue
		}
		share := weights[i] / float64(f.Capacity)
		left += rest * share
		gone := float64(now.positions[i] - first.positions[i])
		if gone <= 0 {
			continue
		}
		moved += gone * share
		longest = max(longest, rest/(gone/elapsed))
	}
	switch {
	case left == 0:
		s.Remaining = 0
	case moved > 0:
		seconds := max(left/(moved/elapsed), longest)
		if seconds < float64(1<<62)/float64(time.Second) {
			s.Remaining = time.Duration(seconds * float64(time.Second))
		}
	}
}

func (h *Handle) file() File {
	h.mu.Lock()
	defer h.mu.Unlock()
	return File{
		Name: h.name, State: h.state, Attempt: h.attempt, Problem: h.problem,
		Position: h.position.Load(), Capacity: h.capacity.Load(), Received: h.received.Load(),
	}
}

// Name returns the file's name.
func (h *Handle) Name() string { return h.name }

// Took counts n bytes that came from the network.
func (h *Handle) Took(n int64) { h.network.Add(n) }

// Holds says how many bytes of the stream are held and where they end in the
// guest's disk.
func (h *Handle) Holds(received, position int64) {
	h.received.Store(received)
	h.position.Store(position)
}

// SetCapacity says what the position will end at, in bytes.
func (h *Handle) SetCapacity(n int64) { h.capacity.Store(n) }

// Weigh says how much work the file is beside the others, in any unit that they
// share: a thin disk is less than its capacity. A weight that is not positive
// is unknown, and then all files count by their capacities.
func (h *Handle) Weigh(n int64) { h.weight.Store(n) }

// SetState moves the file to a state that needs no further word.
func (h *Handle) SetState(s FileState) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state = s
	if s != Retrying && s != Broken {
		h.problem = ""
	}
}

// Retry says that attempt number attempt is about to begin because of problem.
func (h *Handle) Retry(attempt int, problem string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state, h.attempt, h.problem = Retrying, attempt, problem
}

// Fail says that the file could not be had.
func (h *Handle) Fail(problem string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state, h.problem = Broken, problem
}

// Finish says that the file is whole with size bytes; state is Done or Kept.
func (h *Handle) Finish(state FileState, size int64) {
	if h.capacity.Load() == 0 {
		h.capacity.Store(size)
	}
	h.position.Store(h.capacity.Load())
	h.received.Store(size)
	h.size.Store(size)
	h.SetState(state)
}

// Rest is how many bytes of guest address space are still to come; 0 when
// that is not known.
func (h *Handle) Rest() int64 {
	return max(0, h.capacity.Load()-h.position.Load())
}
