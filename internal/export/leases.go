package export

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// A busy VM is asked again after 1, 2, 4 seconds and so on, for a little longer
// than a lease lives that nobody renews: the one of a process that was killed.
const (
	busyWait    = time.Second
	busyMaxWait = 15 * time.Second
	busyAtMost  = 330 * time.Second
)

// leases owns every lease of one run: what is opened here is closed here. A
// host may want a fresh lease for one disk while the others go on under the
// one they have, so there can be several.
type leases struct {
	origin  Origin
	onBusy  func(err error, wait time.Duration) // hears of each wait; may be nil
	opening chan struct{}                       // holds a token while a lease is being opened

	mu      sync.Mutex
	current Lease
	all     []Lease
}

func newLeases(origin Origin) *leases {
	return &leases{origin: origin, opening: make(chan struct{}, 1)}
}

// open opens a lease and makes it the current one. It waits for a VM that is
// busy: a task, a lease that the host is still taking down, or one that a
// killed process has left.
func (s *leases) open(ctx context.Context) (Lease, error) {
	l, err := s.openOnce(ctx)
	waited := time.Duration(0)
	for wait := busyWait; errors.Is(err, ErrBusy) && waited < busyAtMost; wait = min(2*wait, busyMaxWait) {
		if s.onBusy != nil {
			s.onBusy(err, wait)
		}
		waited += wait
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, context.Cause(ctx)
		case <-timer.C:
		}
		l, err = s.openOnce(ctx)
	}
	return l, err
}

func (s *leases) openOnce(ctx context.Context) (Lease, error) {
	l, err := s.origin.OpenLease(ctx)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = l
	s.all = append(s.all, l)
	return l, nil
}

// instead gives a lease other than old: the current one if somebody has
// opened one in the meantime, a new one otherwise. Disks that lose a lease
// together wait here for one another and share the next.
func (s *leases) instead(ctx context.Context, old Lease) (Lease, error) {
	select {
	case s.opening <- struct{}{}:
		defer func() { <-s.opening }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	s.mu.Lock()
	current := s.current
	s.mu.Unlock()
	if current != old && current.Err() == nil {
		return current, nil
	}
	if cause := old.Err(); cause != nil {
		// A lost lease may still occupy the VM on the host. When even this
		// fails, opening the next one tells.
		_ = old.Close(ctx, cause)
	}
	return s.openOnce(ctx)
}

// replaceAll aborts every lease and opens a new one, for hosts that allow
// only one at a time.
func (s *leases) replaceAll(ctx context.Context, cause error) (Lease, error) {
	if err := s.closeAll(ctx, cause); err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return s.open(ctx)
}

// closeAll completes all leases when cause is nil and aborts them otherwise.
// Leases that are lost already are closed without complaint.
func (s *leases) closeAll(ctx context.Context, cause error) error {
	var errs []error
	for _, l := range s.take() {
		lost := l.Err()
		why := cause
		if why == nil {
			why = lost
		}
		if err := l.Close(ctx, why); err != nil && lost == nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (s *leases) take() []Lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.all
	s.all = nil
	return all
}

func (s *leases) setPercent(p int) {
	s.mu.Lock()
	all := slices.Clone(s.all)
	s.mu.Unlock()
	for _, l := range all {
		l.SetPercent(p)
	}
}
