package auth

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func TestLimiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter(2, 3)
		for i := range 3 {
			if _, ok := l.Allow("a"); !ok {
				t.Errorf("request %d of the burst is refused", i)
			}
		}
		wait, ok := l.Allow("a")
		if ok || wait != 500*time.Millisecond {
			t.Errorf("after the burst: %v, wait %s", ok, wait)
		}
		// A refused request costs nothing: the wait does not grow.
		if wait, ok = l.Allow("a"); ok || wait != 500*time.Millisecond {
			t.Errorf("again: %v, wait %s", ok, wait)
		}
		if _, ok := l.Allow("b"); !ok {
			t.Error("another client is refused")
		}
		<-time.After(500 * time.Millisecond)
		if _, ok := l.Allow("a"); !ok {
			t.Error("refused after the wait")
		}
		l.SetLimits(1000, 1)
		<-time.After(2 * time.Millisecond)
		if _, ok := l.Allow("a"); !ok {
			t.Error("refused under the new limits")
		}
		l.SetLimits(0, 1)
		for range 100 {
			if _, ok := l.Allow("a"); !ok {
				t.Fatal("refused without a limit")
			}
		}
	})
}

// TestLimiterForgets: memory is bounded, and who was silent is forgotten.
func TestLimiterForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter(1, 10)
		for i := range maxClients + 50 {
			l.Allow(fmt.Sprint(i))
		}
		if n := len(l.clients); n > maxClients || n != l.recent.Len() {
			t.Errorf("%d clients are remembered, %d in order", n, l.recent.Len())
		}
		if _, ok := l.clients["0"]; ok {
			t.Error("not the oldest was forgotten")
		}
		<-time.After(11 * time.Second) // all buckets are full again
		l.Allow("x")
		if len(l.clients) != 1 {
			t.Errorf("%d clients are remembered", len(l.clients))
		}
	})
}
