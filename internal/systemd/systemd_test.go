package systemd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// manager is a service manager's socket.
func manager(t *testing.T, name string) (receive func() string) {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return func() string {
		t.Helper()
		buf := make([]byte, 4096)
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
}

func env(pairs ...string) func(string) string {
	return func(key string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == key {
				return pairs[i+1]
			}
		}
		return ""
	}
}

func TestMessages(t *testing.T) {
	for _, socket := range []string{filepath.Join(t.TempDir(), "notify"), fmt.Sprintf("@hyper2kvm-test-%d", os.Getpid())} {
		receive := manager(t, socket)
		var log bytes.Buffer
		n := New(env("NOTIFY_SOCKET", socket), slog.New(slog.NewTextHandler(&log, nil)))
		n.Ready("serving 127.0.0.1:8080")
		if got := receive(); got != "READY=1\nSTATUS=serving 127.0.0.1:8080" {
			t.Errorf("%q", got)
		}
		n.Reloading()
		if got := receive(); !regexp.MustCompile(`^RELOADING=1\nMONOTONIC_USEC=\d+$`).MatchString(got) {
			t.Errorf("%q", got)
		}
		n.Stopping()
		if got := receive(); got != "STOPPING=1" {
			t.Errorf("%q", got)
		}
		n.Watch(t.Context(), func(context.Context) error { t.Error("asked without a watchdog"); return nil })
		if log.Len() > 0 {
			t.Error(log.String())
		}
	}
}

func TestWatchdog(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	receive := manager(t, socket)
	var log bytes.Buffer
	n := New(env("NOTIFY_SOCKET", socket, "WATCHDOG_USEC", "40000", "WATCHDOG_PID", strconv.Itoa(os.Getpid())), slog.New(slog.NewTextHandler(&log, nil)))
	ctx, cancel := context.WithCancel(t.Context())
	done, asked := make(chan struct{}), 0
	go func() {
		defer close(done)
		n.Watch(ctx, func(ctx context.Context) error {
			if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > 20*time.Millisecond {
				t.Errorf("the limit is %v", deadline)
			}
			if asked++; asked == 2 {
				return errors.New("the store does not answer")
			}
			return nil
		})
	}()
	for range 3 {
		if got := receive(); got != "WATCHDOG=1" {
			t.Errorf("%q", got)
		}
	}
	cancel()
	<-done
	if asked < 4 || strings.Count(log.String(), "the store does not answer") != 1 {
		t.Errorf("asked %d times: %s", asked, log.String())
	}
}

// TestNobodyListens: the daemon goes on whatever the service manager does.
func TestNobodyListens(t *testing.T) {
	for name, tc := range map[string]struct {
		socket string
		lines  int // of the log
	}{
		"none": {"", 0}, "gone": {filepath.Join(t.TempDir(), "gone"), 2}, "vsock": {"vsock:2:1234", 1},
	} {
		var log bytes.Buffer
		n := New(env("NOTIFY_SOCKET", tc.socket), slog.New(slog.NewTextHandler(&log, nil)))
		n.Ready("x")
		n.Stopping()
		if got := strings.Count(log.String(), "\n"); got != tc.lines {
			t.Errorf("%s: %s", name, log.String())
		}
	}
	n := New(env("NOTIFY_SOCKET", "/x", "WATCHDOG_USEC", "1000000", "WATCHDOG_PID", "1"), slog.New(slog.DiscardHandler))
	if n.watchdog != 0 {
		t.Error("another process's watchdog is taken for this one's")
	}
	if n := New(env("NOTIFY_SOCKET", "/x", "WATCHDOG_USEC", "99999999999999999999"), slog.New(slog.DiscardHandler)); n.watchdog != 0 {
		t.Error("a period out of range is taken")
	}
}
