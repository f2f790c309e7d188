// Command load measures how a daemon answers that has much to do: thousands
// of jobs in its store, hundreds of readers of events, and exports running. It
// ends by itself. Speed is a claim of numbers, so it prints them and whether
// they are what was aimed at.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/uuid"

	"github.com/hyper2kvm/hyper2kvm/daemon/client"
	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/daemon/store"
	"github.com/hyper2kvm/hyper2kvm/daemon/store/sqlite"
	"github.com/hyper2kvm/hyper2kvm/internal/lab"
)

const (
	finished = 10_000
	queued   = 1_000
	readers  = 200
	exports  = 20

	// Each export takes its disk at this rate, so that all of them together
	// leave the machine room for the daemon's other work.
	rate = 1 << 20
	// settle is how long the requests are measured.
	settle = 10 * time.Second
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := load(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func load(ctx context.Context, out io.Writer) error {
	size := flag.Int64("size", 24, "MiB per export")
	flag.Parse()
	work, err := os.MkdirTemp("", "hyper2kvm-load-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	var vms []lab.VMSpec
	for i := range exports {
		vms = append(vms, lab.VMSpec{Path: fmt.Sprintf("/DC0/vm/load/vm%02d", i), Disks: []lab.DiskSpec{{Capacity: *size << 20, Pattern: lab.PatternRandom, Seed: uint64(i + 1)}}})
	}
	l, err := lab.Start(lab.Options{Inventory: lab.Small, ExtraVMs: vms, BytesPerSecond: rate})
	if err != nil {
		return err
	}
	defer l.Close()

	fmt.Fprintf(out, "%d finished and %d waiting jobs, %d readers of events, %d exports at %d MiB/s each\n\n", finished, queued, readers, exports, rate>>20)
	idle, err := measure(ctx, l, filepath.Join(work, "idle"), false)
	if err != nil {
		return err
	}
	busy, err := measure(ctx, l, filepath.Join(work, "busy"), true)
	if err != nil {
		return err
	}
	say := func(what, got string, met bool, aim string) {
		verdict := "met"
		if !met {
			verdict = "MISSED"
		}
		fmt.Fprintf(out, "%-34s %14s   %s: %s\n", what, got, aim, verdict)
	}
	for _, path := range []string{"GET /jobs/{id}", "POST /jobs/query"} {
		p := busy.p99(path)
		say(path+" p99", p.Round(10*time.Microsecond).String(), p < 20*time.Millisecond, fmt.Sprintf("under 20 ms (%d requests)", len(busy.latency[path])))
	}
	say("events lost", fmt.Sprint(busy.lost), busy.lost == 0, fmt.Sprintf("none, of %d that arrived", busy.events))
	slower := busy.exports.Seconds()/idle.exports.Seconds() - 1
	say("exports, against an idle daemon", fmt.Sprintf("%+.1f %%", 100*slower), slower < 0.05, fmt.Sprintf("at most 5 %% slower (%s, %s)", busy.exports.Round(10*time.Millisecond), idle.exports.Round(10*time.Millisecond)))
	say("resident memory", fmt.Sprintf("%d MiB", busy.memory>>20), busy.memory < 150<<20, "under 150 MiB")
	return nil
}

// figures are what one daemon was measured at.
type figures struct {
	exports time.Duration // from the first submission to the last end
	latency map[string][]time.Duration
	events  int64
	lost    int
	memory  int64 // most resident bytes
}

func (f *figures) p99(path string) time.Duration {
	v := slices.Clone(f.latency[path])
	slices.Sort(v)
	if len(v) == 0 {
		return 0
	}
	return v[len(v)*99/100]
}

// measure runs one daemon, with or without everything else it has to do.
func measure(ctx context.Context, l *lab.Lab, dir string, busy bool) (*figures, error) {
	state := filepath.Join(dir, "state")
	if busy {
		if err := fill(ctx, state, dir); err != nil {
			return nil, err
		}
	}
	cmd := exec.CommandContext(ctx, "build/hyper2kvmd", "-addr", "127.0.0.1:0", "-state", state, "-max-running-jobs", fmt.Sprint(exports))
	cmd.Env = append(os.Environ(), "H2KVMD_CONFIG="+filepath.Join(dir, "c.yaml"))
	for k, v := range l.Env() {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, err
	}
	// One client asks here what many would: the limit of each is not measured.
	if err := os.WriteFile(filepath.Join(dir, "c.yaml"), []byte("rate_limit:\n  per_second: 0\n"), 0o600); err != nil {
		return nil, err
	}
	logs, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	url, rest, err := address(logs)
	if err != nil {
		return nil, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		_, _ = io.Copy(io.Discard, rest) // the log is not measured
	}()
	f, err := work(ctx, url, dir, busy)
	err = errors.Join(err, cmd.Process.Signal(syscall.SIGTERM))
	<-drained
	err = errors.Join(err, cmd.Wait())
	if err != nil {
		return nil, err
	}
	if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		f.memory = usage.Maxrss << 10
	}
	return f, nil
}

var listening = regexp.MustCompile(`daemon started.*addr=(127\.0\.0\.1:\d+)`)

// address reads the log until it says where the daemon listens.
func address(logs io.Reader) (url string, rest io.Reader, err error) {
	var text strings.Builder
	buf := make([]byte, 4096)
	for {
		n, err := logs.Read(buf)
		text.Write(buf[:n])
		if m := listening.FindStringSubmatch(text.String()); m != nil {
			return "http://" + m[1], logs, nil
		}
		if err != nil {
			return "", nil, fmt.Errorf("the daemon ended: %w\n%s", err, text.String())
		}
	}
}

// fill puts the finished and waiting jobs into a store.
func fill(ctx context.Context, state, dir string) (err error) {
	s, err := sqlite.Open(ctx, state)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	for i := range finished + queued {
		now := time.Now().UTC()
		j := models.Job{ID: uuid.NewString(), Status: models.Pending, CreatedAt: now, UpdatedAt: now, Definition: models.Definition{
			Name: fmt.Sprintf("job %d", i), VMPath: fmt.Sprintf("/DC0/vm/load/none%05d", i), OutputPath: filepath.Join(dir, "none", fmt.Sprint(i)),
			Options: models.Options{Priority: new(-models.MaxPriority)},
		}}
		if i < finished {
			j.Status, j.StartedAt, j.CompletedAt = models.Completed, &now, &now
			j.Result = &models.Result{VMName: j.Definition.Name, OutputDir: j.Definition.OutputPath, Files: []string{"a.ovf", "a.vmdk", "a.mf"}, TotalSize: 1 << 30, Verified: true}
		}
		if err := s.Insert(ctx, store.Record{Job: j}); err != nil {
			return err
		}
	}
	return nil
}

// work submits the exports, follows events, asks, and waits for the end.
func work(ctx context.Context, url, dir string, busy bool) (*figures, error) {
	c := &client.Client{BaseURL: url}
	defer c.Close()
	f := &figures{latency: map[string][]time.Duration{}}
	follow, stop := context.WithCancel(ctx)
	defer stop()
	var following sync.WaitGroup
	var events atomic.Int64
	var mu sync.Mutex
	ended := map[int]map[string]bool{} // by reader, the jobs whose end it has seen
	if busy {
		for r := range readers {
			ended[r] = map[string]bool{}
			following.Go(func() {
				reader := &client.Client{BaseURL: url}
				defer reader.Close()
				err := reader.Watch(follow, "", 0, func(e models.Event) error {
					events.Add(1)
					if e.Job != nil && e.Type == models.StateEvent && e.Job.Status.Final() {
						mu.Lock()
						ended[r][e.JobID] = true
						mu.Unlock()
					}
					return nil
				})
				if err != nil && follow.Err() == nil {
					slog.Error("reader", slog.String("error", err.Error()))
				}
			})
		}
	}
	begun := time.Now()
	var ids []string
	for i := range exports {
		j, err := c.SubmitDefinition(ctx, models.Definition{
			VMPath: fmt.Sprintf("/DC0/vm/load/vm%02d", i), OutputPath: filepath.Join(dir, "out", fmt.Sprint(i)),
			Options: models.Options{Priority: new(models.MaxPriority)},
		})
		if err != nil {
			return nil, err
		}
		ids = append(ids, j.JobIDs...)
	}
	if busy {
		if err := ask(ctx, c, ids, f); err != nil {
			return nil, err
		}
	}
	var last time.Time
	for {
		resp, err := c.Query(ctx, models.QueryRequest{JobIDs: ids})
		if err != nil {
			return nil, err
		}
		left := 0
		for _, j := range resp.Jobs {
			switch {
			case !j.Status.Final():
				left++
			case j.Status != models.Completed:
				return nil, fmt.Errorf("job %s is %s: %s", j.ID, j.Status, j.Error)
			case j.CompletedAt.After(last):
				last = *j.CompletedAt
			}
		}
		if left == 0 {
			break
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	f.exports = last.Sub(begun)
	if busy {
		// Events are on their way for a moment after the job has its state.
		deadline := time.Now().Add(5 * time.Second)
		for f.lost = lost(&mu, ended, ids); f.lost > 0 && time.Now().Before(deadline); f.lost = lost(&mu, ended, ids) {
			time.Sleep(50 * time.Millisecond)
		}
	}
	stop()
	following.Wait()
	f.events = events.Load()
	return f, nil
}

// lost counts the ends of jobs that readers have not seen.
func lost(mu *sync.Mutex, ended map[int]map[string]bool, ids []string) int {
	mu.Lock()
	defer mu.Unlock()
	n := 0
	for _, seen := range ended {
		for _, id := range ids {
			if !seen[id] {
				n++
			}
		}
	}
	return n
}

// ask measures requests for a while.
func ask(ctx context.Context, c *client.Client, ids []string, f *figures) error {
	timed := func(path string, request func() error) error {
		begun := time.Now()
		err := request()
		f.latency[path] = append(f.latency[path], time.Since(begun))
		return err
	}
	for begun := time.Now(); time.Since(begun) < settle; {
		if err := timed("GET /jobs/{id}", func() error {
			_, err := c.Job(ctx, ids[rand.IntN(len(ids))])
			return err
		}); err != nil {
			return err
		}
		queries := []models.QueryRequest{{Status: []models.Status{models.Running}}, {JobIDs: ids[:5]}, {Status: []models.Status{models.Completed}, Limit: 50}, {All: true, Limit: 20}}
		if err := timed("POST /jobs/query", func() error {
			_, err := c.Query(ctx, queries[rand.IntN(len(queries))])
			return err
		}); err != nil {
			return err
		}
		// As many as some dashboards and scripts ask together.
		time.Sleep(5 * time.Millisecond)
	}
	return nil
}
