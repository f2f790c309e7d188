package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

const (
	// silence is how long a stream may say nothing: three of the daemon's
	// heartbeats.
	silence = 45 * time.Second
	// patience is how long Watch goes on without a successful connection.
	patience = 60 * time.Second

	// steady is how long a stream without events must have stood to count as
	// a success.
	steady = 10 * time.Second

	firstDelay = 250 * time.Millisecond
	maxDelay   = 5 * time.Second

	// maxEvent bounds one event: a job with thousands of files fits.
	maxEvent = 8 << 20
)

// Watch follows the events of one job and calls fn for each, in order, until
// the job's final state has been reported; then it returns nil. An empty id
// follows all jobs, until ctx ends. LastEventID resumes a stream: events up to
// it are not repeated; 0 begins with the job's state.
//
// When the connection breaks, Watch connects again with backoff and goes on
// after the last event seen, for up to 60 s without success, which OnAway hears
// of; then it returns a problem.Unreachable. A first connection that fails is not tried again. An
// error of fn ends Watch and is returned as it is.
func (c *Client) Watch(ctx context.Context, id string, lastEventID uint64, fn func(models.Event) error) error {
	const what = "watch job"
	path := "/events"
	if id != "" {
		var err error
		if path, err = jobPath(what, id, "/events"); err != nil {
			return err
		}
	}
	w := &watch{client: c, path: path, single: id != "", last: lastEventID, fn: fn}
	lost := time.Now()
	delay := firstDelay
	for {
		began := time.Now()
		w.alive = false
		done, err := w.stream(ctx, what)
		switch {
		case done:
			return err
		case ctx.Err() != nil:
			return fmt.Errorf("%s: %w", what, ctx.Err())
		case !w.connected:
			return err
		}
		// A stream that ends at once and says nothing is no success.
		if w.alive || time.Since(began) > steady {
			lost, delay = time.Now(), firstDelay
		}
		if time.Since(lost) >= patience {
			return problem.New(problem.Unreachable, what,
				fmt.Errorf("the daemon was away for %s: %w", patience, err), "the job may still run: query it once the daemon is back")
		}
		if c.OnAway != nil && !w.away {
			c.OnAway(err)
		}
		w.away = true
		// Between half and all of the delay, so that many watchers do not
		// return in the same instant.
		wait := time.NewTimer(delay/2 + rand.N(delay/2)) //nolint:gosec // jitter, no secret
		select {
		case <-ctx.Done():
			wait.Stop()
			return fmt.Errorf("%s: %w", what, ctx.Err())
		case <-wait.C:
		}
		delay = min(2*delay, maxDelay)
	}
}

// watch is the state that outlives one connection.
type watch struct {
	client    *Client
	path      string
	single    bool
	last      uint64
	connected bool // there was a stream before
	alive     bool // the current connection brought an event
	away      bool // the last connection was lost
	fn        func(models.Event) error
}

// stream follows one connection. Done means that err is the end of the watch.
func (w *watch) stream(ctx context.Context, what string) (done bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(silence, func() { cancel(errSilent) })
	defer watchdog.Stop()

	var header []string
	if w.last > 0 {
		header = []string{"Last-Event-ID", strconv.FormatUint(w.last, 10)}
	}
	resp, err := w.client.do(ctx, what, http.MethodGet, w.path, nil, "", header...)
	if err != nil {
		return false, err
	}
	defer closeBody(resp)
	if resp.StatusCode != http.StatusOK {
		data, readErr := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		if readErr != nil {
			return false, w.client.failed(ctx, what, readErr)
		}
		// A daemon (or a proxy before it) that is just starting or stopping
		// answers 5xx: worth another try.
		return resp.StatusCode < 500, answerError(what, resp, data)
	}
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		return true, problem.New(problem.Failed, what, errors.New("the answer is no event stream"),
			"check that -daemon or H2KVMD_URL names a hyper2kvmd")
	}
	w.connected = true
	if w.away && w.client.OnAway != nil {
		w.client.OnAway(nil)
	}
	w.away = false
	lines := bufio.NewReaderSize(resp.Body, 64<<10)
	var data []byte
	for {
		line, err := readLine(lines)
		if err != nil {
			if errors.Is(context.Cause(ctx), errSilent) {
				err = errSilent
			}
			return errors.Is(err, errTooLong), w.client.failed(ctx, what, err)
		}
		watchdog.Reset(silence)
		switch {
		case len(line) == 0 && len(data) > 0:
			done, err := w.deliver(data)
			if done || err != nil {
				return true, err
			}
			data = data[:0]
		case bytes.HasPrefix(line, []byte("data:")):
			// Several data lines of one event are joined with a newline.
			if len(data) > 0 {
				data = append(data, '\n')
			}
			data = append(data, bytes.TrimPrefix(line[len("data:"):], []byte(" "))...)
			if len(data) > maxEvent {
				return true, fmt.Errorf("%s: %w", what, errTooLong)
			}
		}
		// Comments, id and event lines need nothing: the data holds both.
	}
}

var (
	errSilent  = errors.New("the event stream went silent")
	errTooLong = fmt.Errorf("an event exceeds %d bytes", maxEvent)
)

// deliver hands one event on. Done reports that it was the job's last one.
func (w *watch) deliver(data []byte) (done bool, err error) {
	var e models.Event
	if err := json.Unmarshal(data, &e); err != nil {
		return true, fmt.Errorf("read event: %w", err)
	}
	w.last = e.ID
	w.alive = true
	if err := w.fn(e); err != nil {
		return true, err
	}
	return w.single && e.Type == models.StateEvent && e.Job != nil && e.Job.Status.Final(), nil
}

// readLine reads a line without its end, bounded by maxEvent.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxEvent {
			return nil, errTooLong
		}
		if err == nil {
			return bytes.TrimRight(line, "\r\n"), nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
	}
}
