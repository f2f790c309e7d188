package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/hyper2kvm/hyper2kvm/daemon/jobs"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

// events serves the event stream of one job or, without an id, of all. Each
// event has an id, by which a reader that comes back with Last-Event-ID gets
// what it missed.
func (a *api) events(w http.ResponseWriter, r *http.Request) (any, error) {
	var last uint64
	if s := r.Header.Get("Last-Event-ID"); s != "" {
		var err error
		if last, err = strconv.ParseUint(s, 10, 64); err != nil {
			return nil, problem.New(problem.Invalid, "read Last-Event-ID", fmt.Errorf("%.40q is no event id", s), "leave it out to begin anew")
		}
	}
	ctx := r.Context()
	sub, err := a.opts.Manager.Subscribe(ctx, r.PathValue("id"), last)
	if err != nil {
		return nil, err
	}
	defer sub.Close()
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no") // nginx would collect events otherwise
	if r.Method == http.MethodHead {
		w.WriteHeader(http.StatusOK)
		return nil, nil
	}
	s := stream{w: w, rc: http.NewResponseController(w)}
	err = s.send([]byte(": hyper2kvm\n\n"))
	asked := time.Now()
	for err == nil {
		// A stream outlives the token it was opened with, unless asked again.
		if now := time.Now(); now.Sub(asked) >= heartbeat {
			asked = now
			if _, err = a.opts.Access.Identify(r); err != nil {
				break
			}
		}
		var e jobs.Event
		wait, cancel := context.WithTimeout(ctx, heartbeat)
		e, err = sub.Next(wait)
		cancel()
		switch {
		case err == nil:
			err = s.events(e, sub.More)
		case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
			err = s.send([]byte(": heartbeat\n\n"))
		}
	}
	// A lagging reader comes back with the last id it saw. Everything else is
	// an end that the reader knows of or caused.
	if !errors.Is(err, io.EOF) && ctx.Err() == nil && !errors.Is(err, jobs.ErrClosed) {
		a.log.Debug("event stream ended", slog.String("path", r.URL.Path), slog.String("error", err.Error()))
	}
	return nil, nil
}

// stream writes server-sent events.
type stream struct {
	w  io.Writer
	rc *http.ResponseController
}

// events sends an event with those that are there already, in one write: that
// is what costs when there are hundreds of readers.
func (s stream) events(e jobs.Event, more func() (jobs.Event, bool)) error {
	var b []byte
	for ok := true; ok; e, ok = more() {
		data, err := e.JSON()
		if err != nil {
			return fmt.Errorf("marshal event: %w", err)
		}
		b = fmt.Appendf(b, "id: %d\nevent: %s\ndata: %s\n\n", e.ID, e.Type, data)
		if len(b) >= maxWrite {
			break
		}
	}
	return s.send(b)
}

// maxWrite is about how much is sent at once.
const maxWrite = 64 << 10

// send writes and flushes. The server's deadline for a whole answer gives way
// to one for each write: a stream lasts for hours, but a reader that takes
// nothing is let go.
func (s stream) send(b []byte) error {
	if err := s.rc.SetWriteDeadline(time.Now().Add(eventTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return fmt.Errorf("set write deadline: %w", err)
	}
	if _, err := s.w.Write(b); err != nil {
		return fmt.Errorf("write event: %w", err)
	}
	if err := s.rc.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return fmt.Errorf("flush event: %w", err)
	}
	return nil
}
