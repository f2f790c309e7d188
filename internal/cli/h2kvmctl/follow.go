package h2kvmctl

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/hyper2kvm/hyper2kvm/daemon/client"
	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/exit"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/term"
)

// maxStreams is how many jobs are followed at once, each by an event stream of
// its own. Jobs run in the order of their submission, so that those which run
// are among the first that have not ended.
const maxStreams = 16

// view shows what happens to jobs. It is used by one goroutine at a time.
type view interface {
	// event takes one event of a job's stream.
	event(models.Event)
	// say puts a message over what is shown.
	say(message func())
	// close takes what must not stay off the screen.
	close()
}

// silent shows nothing.
type silent struct{}

func (silent) event(models.Event) {}
func (silent) say(func())         {}
func (silent) close()             {}

// follow shows the progress of jobs until all have ended, and gives them as
// they ended, in the order of their ids. The error is not nil when that could
// not be seen; then the jobs are those that were seen, as they were last.
func (a *app) follow(ctx context.Context, c *client.Client, ids []string) ([]models.Job, error) {
	var show view = silent{}
	if !a.json {
		show = a.newView()
	}
	var (
		mu   sync.Mutex // guards show and seen
		seen = make([]*models.Job, len(ids))
		all  sync.WaitGroup
		room = make(chan struct{}, maxStreams)
	)
	watchCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	away := 0 // streams that are lost; guarded by mu
	c.OnAway = func(err error) {
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			away--
		} else {
			away++
		}
		if err == nil && away == 0 || err != nil && away == 1 {
			show.say(func() { a.tellAway(err) })
		}
	}
	for i, id := range ids {
		select {
		case room <- struct{}{}:
		case <-watchCtx.Done():
		}
		if watchCtx.Err() != nil {
			break
		}
		all.Go(func() {
			defer func() { <-room }()
			err := c.Watch(watchCtx, id, 0, func(e models.Event) error {
				mu.Lock()
				defer mu.Unlock()
				if e.Job != nil {
					seen[i] = e.Job
				}
				show.event(e)
				return nil
			})
			if err != nil {
				cancel(err) // the first one tells
			}
		})
	}
	all.Wait()
	show.close()
	var jobs []models.Job
	for i := range ids {
		if seen[i] != nil {
			jobs = append(jobs, *seen[i])
		}
	}
	if ctx.Err() != nil {
		return jobs, a.detached(ids, seen)
	}
	if err := context.Cause(watchCtx); err != nil {
		return jobs, err
	}
	if len(jobs) < len(ids) {
		return jobs, errors.New("watch jobs: a stream ended without a state")
	}
	return jobs, nil
}

// tellAway says that the daemon went away, or is back when err is nil.
func (a *app) tellAway(err error) {
	if err != nil {
		a.io.Warn("The daemon is away, trying again: %v", err)
		return
	}
	a.io.Info("The daemon is back")
}

// detached says that jobs go on after the watching was interrupted.
func (a *app) detached(ids []string, seen []*models.Job) error {
	var on []string
	for i, id := range ids {
		switch {
		case seen[i] == nil:
			on = append(on, short(id))
		case !seen[i].Status.Final():
			on = append(on, short(seen[i].ID))
		}
	}
	if len(on) > 0 {
		list := term.Clean(strings.Join(on, ","))
		fmt.Fprintf(a.io.Err, "No longer watching; %d job(s) go on in the daemon.\n", len(on))
		watch := "watch -id "
		if len(on) > 1 {
			watch = "query -watch -id "
		}
		fmt.Fprintf(a.io.Err, "  watch again: %s %s%s\n", name, watch, list)
		fmt.Fprintf(a.io.Err, "  stop:        %s cancel -id %s\n", name, list)
	}
	return &exit.Error{Code: exit.Interrupted}
}

// outcome is the exit code for jobs that were waited for: a failed one weighs
// more than a cancelled one.
func outcome(jobs []models.Job) error {
	var err error
	for _, j := range jobs {
		if e := exit.Status(j.Status); e != nil && (err == nil || j.Status == models.Failed) {
			err = e
		}
	}
	return err
}
