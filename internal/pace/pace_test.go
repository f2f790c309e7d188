package pace

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// crowd starts streams in a bubble and notes in which order they begin.
type crowd struct {
	t        *testing.T
	limits   *Limits
	mu       sync.Mutex
	began    []string
	releases map[string]func()
}

func newCrowd(t *testing.T, s Settings) *crowd {
	return &crowd{t: t, limits: New(s), releases: map[string]func(){}}
}

// come has streams called HOST/NUMBER ask for their places one after another.
func (c *crowd) come(ctx context.Context, names ...string) {
	for _, name := range names {
		go func() {
			release, err := c.limits.Acquire(ctx, name[:1])
			if err != nil {
				return
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			c.began = append(c.began, name)
			c.releases[name] = release
		}()
		synctest.Wait()
	}
}

func (c *crowd) end(names ...string) {
	for _, name := range names {
		c.mu.Lock()
		release := c.releases[name]
		delete(c.releases, name)
		c.mu.Unlock()
		if release == nil {
			c.t.Fatalf("%s has not begun", name)
		}
		release()
		release() // counts once
		synctest.Wait()
	}
}

// want compares which streams began since the last call.
func (c *crowd) want(names ...string) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Equal(c.began, names) {
		c.t.Fatalf("began %v, want %v", c.began, names)
	}
	c.began = nil
}

func (c *crowd) close() {
	c.limits.Set(Settings{})
	synctest.Wait()
	for _, name := range slices.Collect(maps.Keys(c.releases)) {
		c.end(name)
	}
	if s := c.limits.Stats(); s.Streams != 0 || len(s.Hosts) != 0 || len(s.Waiting) != 0 {
		c.t.Errorf("left behind: %+v", s)
	}
}

func TestOrder(t *testing.T) {
	for name, tc := range map[string]struct {
		settings Settings
		steps    func(*crowd, context.Context)
	}{
		"first come, first served": {Settings{StreamsPerHost: 1}, func(c *crowd, ctx context.Context) {
			c.come(ctx, "a1", "a2", "a3", "a4")
			c.want("a1")
			c.end("a1")
			c.want("a2")
			c.end("a2")
			c.want("a3")
		}},
		"a full host holds nobody else up": {Settings{StreamsPerHost: 2}, func(c *crowd, ctx context.Context) {
			c.come(ctx, "a1", "a2", "a3", "b1", "a4", "b2", "b3", "c1")
			c.want("a1", "a2", "b1", "b2", "c1")
			c.end("b2")
			c.want("b3")
			c.end("a2", "a1")
			c.want("a3", "a4")
		}},
		"all full": {Settings{StreamsPerHost: 2, Streams: 3}, func(c *crowd, ctx context.Context) {
			c.come(ctx, "a1", "a2", "a3", "b1", "b2", "c1")
			c.want("a1", "a2", "b1")
			c.end("b1") // a3 is first, but its host is full
			c.want("b2")
			c.end("a1")
			c.want("a3")
			c.end("a2")
			c.want("c1")
		}},
		"no limits": {Settings{}, func(c *crowd, ctx context.Context) {
			c.come(ctx, "a1", "a2", "a3")
			c.want("a1", "a2", "a3")
		}},
		"raised and lowered": {Settings{StreamsPerHost: 1}, func(c *crowd, ctx context.Context) {
			c.come(ctx, "a1", "a2", "a3", "a4", "a5")
			c.want("a1")
			c.limits.Set(Settings{StreamsPerHost: 3})
			synctest.Wait()
			c.began = slices.Sorted(slices.Values(c.began)) // woken together
			c.want("a2", "a3")
			c.limits.Set(Settings{StreamsPerHost: 1})
			c.end("a1", "a2")
			c.want() // a3 is still there
			c.end("a3")
			c.want("a4")
			c.limits.Set(Settings{Streams: 2})
			synctest.Wait()
			c.want("a5")
		}},
		"given up": {Settings{StreamsPerHost: 1}, func(c *crowd, ctx context.Context) {
			leaving, leave := context.WithCancel(ctx)
			defer leave()
			c.come(ctx, "a1")
			c.come(leaving, "a2", "a3")
			c.come(ctx, "a4")
			c.want("a1")
			if s := c.limits.Stats(); s.Streams != 1 || s.Hosts["a"] != 1 || s.Waiting["a"] != 3 {
				c.t.Errorf("stats %+v", s)
			}
			leave()
			synctest.Wait()
			if s := c.limits.Stats(); s.Waiting["a"] != 1 {
				c.t.Errorf("stats %+v", s)
			}
			c.end("a1")
			c.want("a4")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCrowd(t, tc.settings)
				tc.steps(c, t.Context())
				c.close()
			})
		})
	}
}

func TestAcquireGivesTheCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Settings{StreamsPerHost: 1})
		release, err := l.Acquire(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		why := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		got := make(chan error)
		go func() {
			_, err := l.Acquire(ctx, "a")
			got <- err
		}()
		synctest.Wait()
		cancel(why)
		if err := <-got; !errors.Is(err, why) {
			t.Errorf("waiting: %v", err)
		}
		release()
		if _, err := l.Acquire(ctx, "a"); !errors.Is(err, why) {
			t.Errorf("ended before: %v", err)
		}
		if s := l.Stats(); s.Streams != 0 {
			t.Errorf("stats %+v", s)
		}
	})
}

// TestAbandonAfterGrant: a place that came together with the end of the
// waiter's context is not lost.
func TestAbandonAfterGrant(t *testing.T) {
	l := New(Settings{StreamsPerHost: 1})
	w := &waiter{host: "a", ready: make(chan struct{})}
	l.queue = append(l.queue, w)
	l.dispatch()
	l.abandon(w)
	if s := l.Stats(); s.Streams != 0 || len(s.Hosts) != 0 {
		t.Errorf("stats %+v", s)
	}
}

// TestManyAtOnce is for the race detector: the limits hold whatever happens.
func TestManyAtOnce(t *testing.T) {
	const perHost, all = 3, 5
	l := New(Settings{StreamsPerHost: perHost, Streams: all})
	var mu sync.Mutex
	open := map[string]int{}
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			for n := range 50 {
				host := fmt.Sprint((i + n) % 4)
				ctx, cancel := context.WithCancel(t.Context())
				if n%7 == 0 {
					go cancel()
				}
				release, err := l.Acquire(ctx, host)
				if err == nil {
					mu.Lock()
					open[host]++
					open["all"]++
					if open[host] > perHost || open["all"] > all {
						t.Errorf("%d of host %s, %d in all", open[host], host, open["all"])
					}
					open[host]--
					open["all"]--
					mu.Unlock()
					release()
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if s := l.Stats(); s.Streams != 0 || len(s.Hosts) != 0 || len(s.Waiting) != 0 {
		t.Errorf("left behind: %+v", s)
	}
}

// take has streams read pieces without end until d is over, and gives how
// many bytes each was let.
func take(t *testing.T, d time.Duration, piece int, jobs ...*Job) []int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	took := make([]int64, len(jobs))
	var wg sync.WaitGroup
	for i, j := range jobs {
		wg.Go(func() {
			for j.Wait(ctx, piece) == nil {
				took[i] += int64(piece)
			}
		})
	}
	wg.Wait()
	return took
}

func near(t *testing.T, what string, got, want int64) {
	t.Helper()
	if got < want*9/10 || got > want*11/10 {
		t.Errorf("%s: %d bytes, want %d", what, got, want)
	}
}

func sum(n []int64) (all int64) {
	for _, v := range n {
		all += v
	}
	return all
}

const piece = 256 << 10

func TestBandwidth(t *testing.T) {
	for _, total := range []int64{64 << 10, 1e6, 50e6, 1e9} {
		for _, streams := range []int{1, 4, 12} {
			t.Run(fmt.Sprintf("%d by %d", total, streams), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l := New(Settings{Bandwidth: total})
					jobs := make([]*Job, streams)
					for i := range jobs {
						jobs[i] = l.Job(0)
					}
					// Long enough that a piece of each stream does not count, but
					// not more pieces than a test has time for.
					seconds := max(10, int64(streams)*piece*20/total)
					took := take(t, time.Duration(seconds)*time.Second, piece, jobs...)
					near(t, "all", sum(took), total*seconds)
					for i, n := range took {
						near(t, fmt.Sprint("stream ", i), n, total*seconds/int64(streams))
					}
				})
			})
		}
	}
}

func TestBandwidthPerJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Settings{Bandwidth: 100e6})
		slow, free := l.Job(10e6), l.Job(0)
		took := take(t, 10*time.Second, piece, slow, slow, free)
		near(t, "slow", took[0]+took[1], 100e6)
		near(t, "free", took[2], 900e6)

		slow.SetBandwidth(40e6)
		took = take(t, 10*time.Second, piece, slow, slow, free)
		near(t, "faster", took[0]+took[1], 400e6)
		near(t, "rest", took[2], 600e6)
	})
}

// TestBandwidthChanges: a new rate reaches who waits under the old one at once.
func TestBandwidthChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Settings{Bandwidth: 1})
		start := time.Now()
		done := make(chan error)
		go func() { done <- l.Job(0).Wait(t.Context(), 1<<20) }()
		time.Sleep(time.Second)
		l.Set(Settings{Bandwidth: 1 << 20})
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d < 1900*time.Millisecond || d > 2200*time.Millisecond {
			t.Errorf("raised after a second: %s", d)
		}
		start = time.Now()
		l.Set(Settings{Bandwidth: 1})
		go func() { done <- l.Job(0).Wait(t.Context(), 1<<20) }()
		time.Sleep(time.Second)
		l.Set(Settings{})
		if err := <-done; err != nil || time.Since(start) != time.Second {
			t.Errorf("no limit after a second: %s, %v", time.Since(start), err)
		}
		// Changes are no gift: each begins with an empty bucket.
		took := int64(0)
		j := l.Job(0)
		for i := range 20 {
			l.Set(Settings{Bandwidth: int64(1e6 + i%2)})
			took += sum(take(t, 500*time.Millisecond, 10e3, j))
		}
		near(t, "with changes", took, 10e6)
	})
}

func TestWaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		why := errors.New("enough")
		for name, j := range map[string]*Job{
			"total": New(Settings{Bandwidth: 1}).Job(0), "own": New(Settings{}).Job(1), "none": New(Settings{}).Job(0),
		} {
			ctx, cancel := context.WithCancelCause(t.Context())
			stop := time.AfterFunc(time.Second, func() { cancel(why) })
			start := time.Now()
			if name == "none" {
				cancel(why)
			}
			if err := j.Wait(ctx, 1<<20); !errors.Is(err, why) || time.Since(start) > time.Second {
				t.Errorf("%s: %v after %s", name, err, time.Since(start))
			}
			stop.Stop()
			cancel(nil)
		}
	})
}

// TestEnter: a host is entered while less is booked than it may give, and who
// leaves, or a higher limit, makes room that is told.
func TestEnter(t *testing.T) {
	l := New(Settings{StreamsPerHost: 8})
	told := 0
	l.OnRoom(func() { told++ })
	j := l.Job(0)
	enter := func(host string, streams int) func() {
		t.Helper()
		leave, err := j.Enter(host, streams)
		if err != nil {
			t.Fatal(err)
		}
		return leave
	}
	a, b := enter("one", 4), enter("one", 16)
	if _, err := j.Enter("one", 1); !errors.Is(err, ErrHostBusy) || !strings.Contains(err.Error(), "one") || !l.Full("one") {
		t.Errorf("a full host: %v", err)
	}
	c := enter("two", 0)
	a()
	a()
	if told != 0 || !l.Full("one") {
		t.Errorf("16 of 8 are booked: told %d times", told)
	}
	b()
	if told != 1 || l.Full("one") {
		t.Errorf("nothing is booked: told %d times", told)
	}
	c()
	d := enter("one", 8)
	l.Set(Settings{StreamsPerHost: 9})
	if told != 3 || l.Full("one") {
		t.Errorf("a higher limit: told %d times", told)
	}
	l.Set(Settings{})
	enter("one", 1000)()
	d()
	if s := l.Stats(); len(s.Booked) != 0 {
		t.Errorf("%v is booked", s.Booked)
	}
}
