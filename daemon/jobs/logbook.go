package jobs

import (
	"slices"
	"sync"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
)

const (
	// jobLines is how many log lines of one job are kept: the last ones.
	jobLines = 10_000
	// allLines bounds the lines of all jobs together; beyond it the jobs that
	// ended first lose theirs.
	allLines = 200_000
)

// logbook holds the log lines of jobs in memory.
type logbook struct {
	mu    sync.Mutex
	lines map[string][]models.LogLine
	total int
	ended []string // jobs in the order of their end
}

func newLogbook() *logbook { return &logbook{lines: map[string][]models.LogLine{}} }

func (b *logbook) add(id string, l models.LogLine) {
	b.mu.Lock()
	defer b.mu.Unlock()
	lines := b.lines[id]
	if len(lines) >= jobLines {
		// A tenth at once, so that the copy is paid for rarely.
		n := jobLines / 10
		lines = append(lines[:0:0], lines[n:]...)
		b.total -= n
	}
	b.lines[id] = append(lines, l)
	b.total++
	for b.total > allLines && len(b.ended) > 0 {
		b.total -= len(b.lines[b.ended[0]])
		delete(b.lines, b.ended[0])
		b.ended = b.ended[1:]
	}
}

// end marks a job's log as the next to go when memory is short.
func (b *logbook) end(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.lines[id]; ok {
		b.ended = append(b.ended, id)
	}
}

func (b *logbook) get(id string) []models.LogLine {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.lines[id])
}
