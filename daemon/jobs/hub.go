package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
)

const (
	// ringSize is how many events are remembered for readers that come back.
	ringSize = 1024
	// readerQueue is how many events a reader may lie behind before it is
	// dropped. It can come back and read the rest from the ring.
	readerQueue = 256
	// maxMissed is how many stored events a reader that comes back is given.
	maxMissed = 50_000
)

// Why a Subscription ends before its job does.
var (
	// ErrLagged: the reader was too slow. It may subscribe again with the id
	// of the last event it saw.
	ErrLagged = errors.New("event reader too slow")
	// ErrClosed: the manager was closed, or the subscription.
	ErrClosed = errors.New("event stream closed")
)

// Event is an event as it is handed to readers, of which there may be hundreds:
// its JSON is made once, by the first who asks for it.
type Event struct {
	models.Event
	encoded *encoding
}

type encoding struct {
	once sync.Once
	data []byte
	err  error
}

func newEvent(e models.Event) Event { return Event{e, &encoding{}} }

// JSON is the event as the API gives it. The bytes are shared: they must not
// be changed.
func (e Event) JSON() ([]byte, error) {
	e.encoded.once.Do(func() { e.encoded.data, e.encoded.err = json.Marshal(e.Event) })
	return e.encoded.data, e.encoded.err
}

// hub numbers events and hands them to readers. Publishing never waits for a
// reader.
type hub struct {
	mu      sync.Mutex
	last    uint64
	ring    []Event // the last events, at most ringSize, oldest first from start
	start   int
	readers map[*Subscription]struct{}
	closed  bool
}

// newHub begins its ids at the time of day, so that an id of an earlier
// process is always below those of this one and a reader that resumes is not
// given the wrong events. They stay below 2^53, where JSON numbers are exact.
func newHub(now time.Time) *hub {
	return &hub{last: uint64(max(0, now.Unix())) << 20 & (1<<53 - 1), readers: map[*Subscription]struct{}{}}
}

// publish numbers e, hands it on and gives it; false when the hub is closed.
func (h *hub) publish(e models.Event) (models.Event, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return e, false
	}
	h.last++
	e.ID = h.last
	shared := newEvent(e)
	if len(h.ring) < ringSize {
		h.ring = append(h.ring, shared)
	} else {
		h.ring[h.start] = shared
		h.start = (h.start + 1) % ringSize
	}
	for s := range h.readers {
		if s.jobID != "" && s.jobID != e.JobID {
			continue
		}
		select {
		case s.events <- shared:
		default:
			h.drop(s, ErrLagged)
		}
	}
	return e, true
}

// subscribe adds a reader. Missed holds the events after last when the ring
// still has all of them (whole); at is the id of the newest event so far.
func (h *hub) subscribe(jobID string, last uint64) (s *Subscription, missed []Event, whole bool, at uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s = &Subscription{hub: h, jobID: jobID, events: make(chan Event, readerQueue)}
	if h.closed {
		s.err = ErrClosed
		close(s.events)
		return s, nil, false, h.last
	}
	h.readers[s] = struct{}{}
	oldest := h.last - uint64(len(h.ring)) // the newest id that is gone
	if last == 0 || last < oldest || last > h.last {
		return s, nil, false, h.last
	}
	for i := range h.ring {
		e := h.ring[(h.start+i)%len(h.ring)]
		if e.ID > last && (jobID == "" || jobID == e.JobID) {
			missed = append(missed, e)
		}
	}
	return s, missed, true, h.last
}

// drop ends one reader. The caller holds mu.
func (h *hub) drop(s *Subscription, why error) {
	if _, ok := h.readers[s]; !ok {
		return
	}
	delete(h.readers, s)
	s.err = why
	close(s.events)
}

// close ends all readers. What is queued for them can still be read.
func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for s := range h.readers {
		h.drop(s, ErrClosed)
	}
}

// Subscription is one reader of events. Next must be called by one goroutine
// at a time; Close may be called by any.
type Subscription struct {
	hub   *hub
	jobID string

	first  []Event   // before what comes from events
	asOf   time.Time // job events older than this are behind first's state
	done   bool
	events chan Event
	err    error // why events was closed; guarded by hub.mu until then
}

// Next gives the next event. It returns io.EOF after the final state of the
// one job that is followed, ErrLagged or ErrClosed when there will be no more
// events, and the context's error when ctx ends first; then it can be called
// again.
func (s *Subscription) Next(ctx context.Context) (Event, error) {
	if s.done {
		return Event{}, io.EOF
	}
	if len(s.first) > 0 {
		e := s.first[0]
		s.first = s.first[1:]
		return s.seen(e), nil
	}
	for {
		select {
		case e, ok := <-s.events:
			if !ok {
				return Event{}, s.err
			}
			if e.Job != nil && e.Job.UpdatedAt.Before(s.asOf) {
				continue
			}
			return s.seen(e), nil
		case <-ctx.Done():
			return Event{}, ctx.Err()
		}
	}
}

// More gives the next event if one is there already; when there will be no
// more, Next says why.
func (s *Subscription) More() (Event, bool) {
	if s.done {
		return Event{}, false
	}
	if len(s.first) > 0 {
		e := s.first[0]
		s.first = s.first[1:]
		return s.seen(e), true
	}
	for {
		select {
		case e, ok := <-s.events:
			if !ok {
				return Event{}, false
			}
			if e.Job != nil && e.Job.UpdatedAt.Before(s.asOf) {
				continue
			}
			return s.seen(e), true
		default:
			return Event{}, false
		}
	}
}

func (s *Subscription) seen(e Event) Event {
	s.done = s.jobID != "" && e.Type == models.StateEvent && e.Job != nil && e.Job.Status.Final()
	return e
}

// Close ends the subscription and lets go of what it holds.
func (s *Subscription) Close() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	s.hub.drop(s, ErrClosed)
}
