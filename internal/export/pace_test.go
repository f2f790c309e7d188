package export

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hyper2kvm/hyper2kvm/internal/output"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
	"github.com/hyper2kvm/hyper2kvm/progress"
)

// places is a Pace with a number of places, which counts.
type places struct {
	free chan struct{} // holds what is free

	mu             sync.Mutex
	held, acquired int
	took           int
	hosts          map[string]bool
}

func newPlaces(n int) *places {
	p := &places{free: make(chan struct{}, n), hosts: map[string]bool{}}
	for range n {
		p.free <- struct{}{}
	}
	return p
}

func (p *places) Acquire(ctx context.Context, host string) (func(), error) {
	select {
	case <-p.free:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held++
	p.acquired++
	p.hosts[host] = true
	return sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.held--
		p.free <- struct{}{}
	}), nil
}

func (p *places) Wait(ctx context.Context, n int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.took += n
	return ctx.Err()
}

// counts gives how many places are held and how many were ever acquired.
func (p *places) counts() (held, acquired int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held, p.acquired
}

func (h *host) openings() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.opened)
}

// paced begins an export in a bubble.
func paced(ctx context.Context, t *testing.T, h *host, p *places) (*progress.Tracker, <-chan error) {
	t.Helper()
	folder, err := output.Hold(t.TempDir(), testVM.Path)
	if err != nil {
		t.Fatal(err)
	}
	tracker := progress.NewTracker(nil)
	done := make(chan error, 1)
	go func() {
		_, err := Run(ctx, h, Plan{VM: testVM, Folder: folder, Parallel: 4, Version: "test", Pace: p}, tracker)
		done <- errors.Join(err, folder.Close())
	}()
	synctest.Wait()
	return tracker, done
}

func states(tracker *progress.Tracker) (states []progress.FileState) {
	for _, f := range tracker.Snapshot().Files {
		states = append(states, f.State)
	}
	return states
}

// TestPlaces: every attempt holds a place at its host, none while it waits for
// the next attempt; who waits for a place says so.
func TestPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := disk(t, 3*mib, 1), disk(t, 2*mib, 2)
		h := &host{disks: [][]byte{a, b}, faults: map[int][]fault{0: {{cut: mib}}, 1: {{err: io.ErrUnexpectedEOF}}}}
		p := newPlaces(1)
		<-p.free // somebody else's
		tracker, done := paced(t.Context(), t, h, p)
		if got := fmt.Sprint(states(tracker)); got != "[waiting waiting]" || h.openings() != 0 {
			t.Errorf("without a place: states %s, %d disks opened", got, h.openings())
		}
		time.Sleep(time.Hour) // longer than any stall
		p.free <- struct{}{}
		synctest.Wait() // both attempts have failed and wait for the next
		held, acquired := p.counts()
		if got := fmt.Sprint(states(tracker)); got != "[retrying retrying]" || held != 0 || acquired != 2 {
			t.Errorf("between attempts: states %s, %d held, %d acquired", got, held, acquired)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if want := len(a) + len(b) + mib; p.acquired != 4 || p.held != 0 || p.took != want || !p.hosts["esx1"] || len(p.hosts) != 1 {
			t.Errorf("%d acquired, %d held, %d bytes (want %d), hosts %v", p.acquired, p.held, p.took, want, p.hosts)
		}
	})
}

// TestCancelWithoutPlace: who waits for a place can be told to stop.
func TestCancelWithoutPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{disks: [][]byte{disk(t, mib, 1), disk(t, mib, 2)}}
		p := newPlaces(0)
		ctx, cancel := context.WithCancel(t.Context())
		tracker, done := paced(ctx, t, h, p)
		cancel()
		if err := <-done; problem.KindOf(err) != problem.Cancelled {
			t.Errorf("error %v", err)
		}
		if got := fmt.Sprint(states(tracker)); got != "[waiting waiting]" || !h.leases[0].closed || h.openings() != 0 {
			t.Errorf("states %s, lease closed %v, %d disks opened", got, h.leases[0].closed, h.openings())
		}
	})
}
