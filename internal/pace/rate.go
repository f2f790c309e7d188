package pace

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// burstTime is how much of a rate may pass at once, as a time. It also bounds
// the pieces in which a larger number is waited for, so that streams that
// share a rate take turns.
const burstTime = 100 * time.Millisecond

// Rate is a bandwidth that can be changed while it is waited for. The zero
// value is no limit. Its methods are safe for concurrent use.
type Rate struct {
	mu      sync.Mutex
	value   int64
	bucket  *rate.Limiter // nil is no limit
	changed chan struct{} // closed when bucket is replaced; nil while that is
}

// Set changes the rate to so many bytes per second; 0 or less is no limit.
func (r *Rate) Set(bytesPerSecond int64) {
	bytesPerSecond = max(0, bytesPerSecond)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.value == bytesPerSecond {
		return // who waits keeps their place
	}
	if r.changed != nil {
		close(r.changed)
	}
	r.value, r.bucket, r.changed = bytesPerSecond, nil, nil
	if bytesPerSecond > 0 {
		burst := int(max(1, float64(bytesPerSecond)*burstTime.Seconds()))
		r.bucket, r.changed = rate.NewLimiter(rate.Limit(bytesPerSecond), burst), make(chan struct{})
		r.bucket.AllowN(time.Now(), burst) // a change is no gift
	}
}

// Get gives the rate in bytes per second; 0 is no limit.
func (r *Rate) Get() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.value
}

// Wait waits until n bytes may pass. The error is ctx's cause.
func (r *Rate) Wait(ctx context.Context, n int) error {
	for n > 0 {
		r.mu.Lock()
		bucket, changed := r.bucket, r.changed
		r.mu.Unlock()
		if bucket == nil {
			break
		}
		k := min(n, bucket.Burst()) // a bucket refuses more than it can hold
		place := bucket.ReserveN(time.Now(), k)
		passed, err := await(ctx, place.Delay(), changed)
		if err != nil {
			place.Cancel()
			return err
		}
		if passed {
			n -= k
		}
	}
	return context.Cause(ctx)
}

// await reports whether d has passed; not when changed is closed before.
func await(ctx context.Context, d time.Duration, changed <-chan struct{}) (bool, error) {
	if d <= 0 {
		return true, context.Cause(ctx)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true, nil
	case <-changed:
		return false, nil
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
}
