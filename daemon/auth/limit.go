package auth

import (
	"container/list"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxClients bounds how many clients a Limiter remembers. Beyond it the one
// that was silent longest is forgotten, which gives it a full bucket again.
const maxClients = 10_000

// Limiter bounds how often each client may ask, by a token bucket for each.
// Its methods are safe for concurrent use.
type Limiter struct {
	mu      sync.Mutex
	rate    rate.Limit
	burst   int
	clients map[string]*list.Element // of *client
	recent  *list.List               // the client that asked last in front
}

type client struct {
	id     string
	last   time.Time
	bucket *rate.Limiter
}

// NewLimiter allows perSecond requests a second to each client on the long
// run, and burst of them at once. A perSecond of 0 or less allows everything.
func NewLimiter(perSecond float64, burst int) *Limiter {
	l := &Limiter{clients: map[string]*list.Element{}, recent: list.New()}
	l.SetLimits(perSecond, burst)
	return l
}

// SetLimits changes the limits, also for the clients that are known.
func (l *Limiter) SetLimits(perSecond float64, burst int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rate, l.burst = rate.Limit(perSecond), max(1, burst)
	now := time.Now()
	for e := l.recent.Front(); e != nil; e = e.Next() {
		c := e.Value.(*client)
		c.bucket.SetLimitAt(now, l.rate)
		c.bucket.SetBurstAt(now, l.burst)
	}
}

// Allow counts a request of a client. When it is one too many, it is not
// counted and wait says when the next one will be taken.
func (l *Limiter) Allow(id string) (wait time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate <= 0 {
		return 0, true
	}
	now := time.Now()
	l.forget(now)
	e := l.clients[id]
	if e == nil {
		e = l.recent.PushFront(&client{id: id, bucket: rate.NewLimiter(l.rate, l.burst)})
		l.clients[id] = e
	}
	l.recent.MoveToFront(e)
	c := e.Value.(*client)
	c.last = now
	r := c.bucket.ReserveN(now, 1)
	if wait = r.DelayFrom(now); wait > 0 {
		r.CancelAt(now)
		return wait, false
	}
	return 0, true
}

// forget drops the clients whose buckets have filled up again since they last
// asked, and makes room for one more. The caller holds mu.
func (l *Limiter) forget(now time.Time) {
	full := time.Duration(float64(l.burst) / float64(l.rate) * float64(time.Second))
	for e := l.recent.Back(); e != nil; e = l.recent.Back() {
		c := e.Value.(*client)
		if now.Sub(c.last) <= full && l.recent.Len() < maxClients {
			return
		}
		l.recent.Remove(e)
		delete(l.clients, c.id)
	}
}
