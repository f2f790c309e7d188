// Package pace holds exports back: it bounds how many streams are open at
// once, at each host and in all, and how many bytes a second they take, in all
// and per job. The exports of a process share one Limits. It knows neither
// HTTP nor vSphere: a host is a name, bytes are a number.
package pace

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
)

// DefaultStreamsPerHost is how many streams one host is asked for unless
// something else is set. An ESXi host gives about 48 in all, to everybody, and
// is faster with few.
const DefaultStreamsPerHost = 8

// Settings are what a Limits holds to. Zero, or less, is no limit.
type Settings struct {
	StreamsPerHost int   // streams at once from one host
	Streams        int   // streams at once in all
	Bandwidth      int64 // bytes per second in all
}

// Default are the settings of a process that was told nothing else.
func Default() Settings { return Settings{StreamsPerHost: DefaultStreamsPerHost} }

// ErrHostBusy is why a job may not enter a host now.
var ErrHostBusy = errors.New("other exports take all streams of the host")

// HostBusyError says which host it is. It matches ErrHostBusy.
type HostBusyError struct{ Host string }

// Error names the host.
func (e *HostBusyError) Error() string { return fmt.Sprintf("host %s: %v", e.Host, ErrHostBusy) }

// Unwrap is ErrHostBusy.
func (e *HostBusyError) Unwrap() error { return ErrHostBusy }

// Limits bounds streams and bandwidth of everything that shares it. Its
// methods are safe for concurrent use.
type Limits struct {
	total Rate

	mu      sync.Mutex
	room    func()         // hears that a host may be entered again; may be nil
	booked  map[string]int // streams that the jobs which have entered a host want; none is 0
	perHost int            // 0 is no limit
	streams int            // 0 is no limit
	used    int
	hosts   map[string]int // streams in use; none is 0
	queue   []*waiter      // in the order they came; none of them could run
}

type waiter struct {
	host  string
	ready chan struct{} // closed, under the lock, when its stream may begin
}

// New returns Limits with these settings.
func New(s Settings) *Limits {
	l := &Limits{hosts: map[string]int{}, booked: map[string]int{}}
	l.Set(s)
	return l
}

// Set changes all settings at once. Streams that have begun run to their end
// under lower limits, too; those that wait begin at once where higher ones let
// them. A new bandwidth counts from now on, also for who waits for it.
func (l *Limits) Set(s Settings) {
	l.mu.Lock()
	l.perHost, l.streams = max(0, s.StreamsPerHost), max(0, s.Streams)
	l.total.Set(s.Bandwidth)
	l.dispatch()
	room := l.room
	l.mu.Unlock()
	if room != nil {
		room()
	}
}

// OnRoom has f called whenever a host that was full may have room again. F must
// not wait; only the last one given is called.
func (l *Limits) OnRoom(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.room = f
}

// Full reports whether a job may not enter a host now.
func (l *Limits) Full(host string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.full(host)
}

func (l *Limits) full(host string) bool { return l.perHost > 0 && l.booked[host] >= l.perHost }

// enter books a job's streams at a host, unless those who came before want all
// the host has: then the error is a *HostBusyError. Leave gives them back, and
// may be called again.
func (l *Limits) enter(host string, streams int) (leave func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.full(host) {
		return nil, &HostBusyError{host}
	}
	l.booked[host] += streams
	return sync.OnceFunc(func() { l.leave(host, streams) }), nil
}

func (l *Limits) leave(host string, streams int) {
	l.mu.Lock()
	if l.booked[host] -= streams; l.booked[host] == 0 {
		delete(l.booked, host)
	}
	room := l.room
	if l.full(host) {
		room = nil
	}
	l.mu.Unlock()
	if room != nil {
		room()
	}
}

// Acquire waits until a stream from host may begin and counts it until release
// is called, which may be called again. First come is first served, but who
// waits for a host that is full holds up nobody who wants another one. The
// error is ctx's cause.
func (l *Limits) Acquire(ctx context.Context, host string) (release func(), err error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	w := &waiter{host: host, ready: make(chan struct{})}
	l.mu.Lock()
	l.queue = append(l.queue, w)
	l.dispatch()
	l.mu.Unlock()
	select {
	case <-w.ready:
		return sync.OnceFunc(func() { l.release(host) }), nil
	case <-ctx.Done():
		l.abandon(w)
		return nil, context.Cause(ctx)
	}
}

// abandon takes a waiter out, and its place back if it has got one meanwhile.
func (l *Limits) abandon(w *waiter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, q := range l.queue {
		if q == w {
			// It could not run, so nobody gains by its going.
			l.queue = append(l.queue[:i], l.queue[i+1:]...)
			return
		}
	}
	l.free(w.host)
}

func (l *Limits) release(host string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.free(host)
}

// free gives one stream of a host back. The lock is held.
func (l *Limits) free(host string) {
	l.used--
	if l.hosts[host]--; l.hosts[host] == 0 {
		delete(l.hosts, host) // names come from servers: only those in use are kept
	}
	l.dispatch()
}

// dispatch lets all waiters begin that can, in the order they came. The lock
// is held.
func (l *Limits) dispatch() {
	rest := l.queue[:0]
	for _, w := range l.queue {
		if l.streams > 0 && l.used >= l.streams || l.perHost > 0 && l.hosts[w.host] >= l.perHost {
			rest = append(rest, w)
			continue
		}
		l.used++
		l.hosts[w.host]++
		close(w.ready)
	}
	clear(l.queue[len(rest):])
	l.queue = rest
}

// Stats is what a Limits does at one moment.
type Stats struct {
	Settings Settings
	Streams  int            // in use
	Hosts    map[string]int // streams in use by host; a host without any is not there
	Waiting  map[string]int // streams that wait, by host
	Booked   map[string]int // streams that the jobs at a host may want
}

// Stats gives a snapshot, which the caller may keep.
func (l *Limits) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Stats{
		Settings: Settings{StreamsPerHost: l.perHost, Streams: l.streams, Bandwidth: l.total.Get()},
		Streams:  l.used, Hosts: maps.Clone(l.hosts), Waiting: map[string]int{},
		Booked: maps.Clone(l.booked),
	}
	for _, w := range l.queue {
		s.Waiting[w.host]++
	}
	return s
}

// Job is one job's share of a Limits: its streams count there, its bytes there
// and against a bandwidth of its own. Its methods are safe for concurrent use.
type Job struct {
	limits *Limits
	own    Rate
}

// Job returns the share of a job that may take bandwidth bytes per second; 0
// is no limit of its own.
func (l *Limits) Job(bandwidth int64) *Job {
	j := &Job{limits: l}
	j.own.Set(bandwidth)
	return j
}

// Enter books up to so many streams, at least 1, for the job at a host before
// anything is done there: a job that began and then waited would keep its VM
// locked for nothing. When those who came before want all that the host may
// give, the error is a *HostBusyError: the job had better come again when
// Limits.Full says otherwise. Leave gives the streams back and may be called
// again.
func (j *Job) Enter(host string, streams int) (leave func(), err error) {
	return j.limits.enter(host, max(1, streams))
}

// Acquire is Limits.Acquire.
func (j *Job) Acquire(ctx context.Context, host string) (release func(), err error) {
	return j.limits.Acquire(ctx, host)
}

// Bandwidth gives the job's own limit in bytes per second; 0 is none.
func (j *Job) Bandwidth() int64 { return j.own.Get() }

// SetBandwidth changes the job's own limit, also for who waits for it.
func (j *Job) SetBandwidth(bytesPerSecond int64) { j.own.Set(bytesPerSecond) }

// Wait accounts for n bytes that were taken and waits until more may be. The
// error is ctx's cause.
func (j *Job) Wait(ctx context.Context, n int) error {
	// The job's own limit first: bytes it may not take yet do not use up what
	// others could have.
	if err := j.own.Wait(ctx, n); err != nil {
		return err
	}
	return j.limits.total.Wait(ctx, n)
}
