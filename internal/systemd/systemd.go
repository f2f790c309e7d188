// Package systemd tells the service manager how the daemon is, as sd_notify(3)
// describes it: a datagram of assignments to the socket that NOTIFY_SOCKET
// names. Without that variable everything here does nothing.
package systemd

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// sendTimeout bounds one message: a service manager that does not read must
// not hold the daemon up.
const sendTimeout = time.Second

// Notifier sends to one service manager. Its methods are safe for concurrent
// use. A message that cannot be sent is logged and lost: the service manager
// draws its own conclusions.
type Notifier struct {
	socket   string // empty: nobody listens
	watchdog time.Duration
	log      *slog.Logger
}

// New reads NOTIFY_SOCKET, and WATCHDOG_USEC with WATCHDOG_PID. The variables
// should not reach child processes; the daemon starts none.
func New(getenv func(string) string, log *slog.Logger) *Notifier {
	n := &Notifier{socket: getenv("NOTIFY_SOCKET"), log: log}
	switch {
	case n.socket == "":
		return n
	case !strings.HasPrefix(n.socket, "/") && !strings.HasPrefix(n.socket, "@"):
		log.Warn("cannot talk to the service manager", slog.String("error", "NOTIFY_SOCKET is neither a path nor an abstract name"))
		n.socket = ""
		return n
	}
	if pid := getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return n // another process is meant
	}
	if usec, err := strconv.ParseUint(getenv("WATCHDOG_USEC"), 10, 40); err == nil {
		n.watchdog = time.Duration(usec) * time.Microsecond
	}
	return n
}

// Ready says that the daemon serves, with a line of status.
func (n *Notifier) Ready(status string) { n.send("READY=1", "STATUS="+status) }

// Reloading says that the configuration is being read again, until Ready is
// called.
func (n *Notifier) Reloading() {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		n.log.Warn("cannot tell the service manager of the reload", slog.String("error", err.Error()))
		return
	}
	n.send("RELOADING=1", fmt.Sprintf("MONOTONIC_USEC=%d", now.Nano()/1000))
}

// Stopping says that the daemon ends.
func (n *Notifier) Stopping() { n.send("STOPPING=1") }

// Watch tells the service manager's watchdog, until ctx ends, that the daemon
// lives: twice in each of its periods, and only while healthy, which gets half
// a period, finds no error. It returns at once where there is no watchdog.
func (n *Notifier) Watch(ctx context.Context, healthy func(context.Context) error) {
	if n.socket == "" || n.watchdog <= 0 {
		return
	}
	every := max(n.watchdog/2, time.Millisecond)
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		if err := n.check(ctx, every, healthy); err != nil && ctx.Err() == nil {
			n.log.Error("the daemon is not healthy, the watchdog is not told", slog.String("error", err.Error()))
		} else if err == nil {
			n.send("WATCHDOG=1")
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (n *Notifier) check(ctx context.Context, limit time.Duration, healthy func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return healthy(ctx)
}

// send sends one message.
func (n *Notifier) send(assignments ...string) {
	if n.socket == "" {
		return
	}
	err := func() error {
		conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.socket, Net: "unixgram"})
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
			return err
		}
		_, err = conn.Write([]byte(strings.Join(assignments, "\n")))
		return err
	}()
	if err != nil {
		n.log.Warn("cannot talk to the service manager", slog.String("message", assignments[0]), slog.String("error", err.Error()))
	}
}
