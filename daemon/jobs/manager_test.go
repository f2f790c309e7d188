package jobs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/daemon/store"
	"github.com/hyper2kvm/hyper2kvm/daemon/store/memory"
	"github.com/hyper2kvm/hyper2kvm/internal/logging"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
	"github.com/hyper2kvm/hyper2kvm/progress"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type runnerFunc func(context.Context, Spec, progress.Sink) (models.Result, error)

func (f runnerFunc) Run(ctx context.Context, s Spec, sink progress.Sink) (models.Result, error) {
	return f(ctx, s, sink)
}

// block runs until it is cancelled.
var block = runnerFunc(func(ctx context.Context, _ Spec, _ progress.Sink) (models.Result, error) {
	<-ctx.Done()
	return models.Result{}, fmt.Errorf("download disk: %w", ctx.Err())
})

func manager(t *testing.T, o Options) *Manager {
	t.Helper()
	if o.Store == nil {
		o.Store = memory.New(0)
	}
	m := NewManager(o)
	t.Cleanup(func() {
		if err := m.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return m
}

func def(n int) models.Definition {
	return models.Definition{VMPath: fmt.Sprintf("/dc/vm/vm%d", n), OutputPath: fmt.Sprintf("/out/%d", n)}
}

func submit(t *testing.T, m *Manager, d models.Definition) string {
	t.Helper()
	j, err := m.Submit(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	return j.ID
}

func get(t *testing.T, m *Manager, id string) models.Job {
	t.Helper()
	j, err := m.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func wantKind(t *testing.T, err error, kind problem.Kind, text string) {
	t.Helper()
	if err == nil || problem.KindOf(err) != kind || !strings.Contains(err.Error(), text) {
		t.Errorf("error is %v, want kind %d with %q", err, kind, text)
	}
}

// TestStates goes through every pair: what the table does not name is refused.
func TestStates(t *testing.T) {
	all := []models.Status{models.Pending, models.Running, models.Completed, models.Failed, models.Cancelled}
	legal := map[string]bool{"pending running": true, "pending cancelled": true, "running pending": true,
		"running completed": true, "running failed": true, "running cancelled": true,
		"failed pending": true, "cancelled pending": true}
	for _, from := range all {
		for _, to := range all {
			if err := checkTransition(from, to); (err == nil) != legal[string(from)+" "+string(to)] {
				t.Errorf("%s to %s: %v", from, to, err)
			}
		}
	}
}

// TestEveryOption: an option added to the wire type is filled in as well.
func TestEveryOption(t *testing.T) {
	o := reflect.ValueOf(withDefaults(models.Options{}, builtin()))
	for i := range o.NumField() {
		if o.Field(i).IsNil() {
			t.Errorf("%s has no default", o.Type().Field(i).Name)
		}
	}
}

func TestQueueOrderAndLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var order []string
		running, most := 0, 0
		m := manager(t, Options{MaxRunning: 2, Runner: runnerFunc(func(_ context.Context, s Spec, _ progress.Sink) (models.Result, error) {
			mu.Lock()
			order = append(order, s.Definition.VMPath)
			running++
			most = max(most, running)
			mu.Unlock()
			// Never two ends in one instant, so that the order of starts shows.
			wait := time.Minute
			if s.Definition.VMPath == def(0).VMPath {
				wait /= 2
			}
			<-time.After(wait)
			mu.Lock()
			running--
			mu.Unlock()
			return models.Result{VMName: "vm"}, nil
		})})
		var want []string
		for i := range 7 {
			submit(t, m, def(i))
			want = append(want, def(i).VMPath)
			synctest.Wait()
		}
		s, err := m.Status(t.Context())
		if err != nil || s.RunningJobs != 2 || s.PendingJobs != 5 || s.TotalJobs != 7 {
			t.Errorf("status is %+v, %v", s, err)
		}
		<-time.After(5 * time.Minute)
		synctest.Wait()
		if s, err = m.Status(t.Context()); err != nil || s.CompletedJobs != 7 || s.Uptime != "5m0s" {
			t.Errorf("status is %+v, %v", s, err)
		}
		if !slices.Equal(order, want) || most != 2 {
			t.Errorf("ran %v, at most %d at once", order, most)
		}
	})
}

func TestOutcomes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		m := manager(t, Options{Logger: slog.New(logging.New(&log, slog.LevelDebug, "")), Runner: runnerFunc(func(_ context.Context, s Spec, sink progress.Sink) (models.Result, error) {
			sink.Report(progress.Event{Kind: progress.Remark, Level: slog.LevelWarn, Message: "retrying", Attrs: []slog.Attr{slog.Int("attempt", 2)},
				Snapshot: progress.Snapshot{Phase: progress.Exporting, Percent: math.NaN(), Remaining: -1, Files: []progress.File{{Name: "d"}}}})
			switch s.Definition.Name {
			case "good":
				return models.Result{VMName: "vm", TotalSize: 5, Verified: true}, nil
			case "bad":
				return models.Result{}, problem.New(problem.Conflict, "export VM /dc/vm/x", errors.New("it is powered on"), "shut it down")
			}
			panic("boom")
		})})
		ids := map[string]string{}
		for i, name := range []string{"good", "bad", "ugly"} {
			d := def(i)
			d.Name = name
			ids[name] = submit(t, m, d)
		}
		synctest.Wait()
		good := get(t, m, ids["good"])
		if good.Status != models.Completed || good.Result == nil || !good.Result.Verified || good.Error != "" ||
			good.StartedAt == nil || good.CompletedAt == nil || good.Progress.PercentComplete != 100 {
			t.Errorf("good: %+v", good)
		}
		if o := good.Definition.Options; *o.ParallelDownloads != 4 || *o.Format != models.OVF || *o.Overwrite {
			t.Errorf("defaults: %+v", o)
		}
		bad := get(t, m, ids["bad"])
		if bad.Status != models.Failed || bad.Error != "export VM /dc/vm/x: it is powered on (shut it down)" || bad.Result != nil || bad.Progress.PercentComplete != 0 {
			t.Errorf("bad: %+v", bad)
		}
		ugly := get(t, m, ids["ugly"])
		if ugly.Status != models.Failed || !strings.Contains(ugly.Error, "internal error") || strings.Contains(ugly.Error, "boom") || strings.Contains(ugly.Error, "goroutine") {
			t.Errorf("ugly: %+v", ugly)
		}
		if !strings.Contains(log.String(), "boom") || !strings.Contains(log.String(), "manager_test.go") {
			t.Error("the log lacks the panic and its stack")
		}
		logs, err := m.Logs(t.Context(), ids["good"])
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		for _, l := range logs.Lines {
			lines = append(lines, l.Level+" "+l.Message+" "+l.Attrs)
		}
		if want := []string{"INFO job submitted name=good, vm=/dc/vm/vm0, output=/out/0", "INFO job started ",
			"WARN retrying attempt=2", "INFO job completed totalSize=5, verified=true"}; !slices.Equal(lines, want) {
			t.Errorf("log is %q, want %q", lines, want)
		}
		if _, err := json.Marshal(good); err != nil {
			t.Error(err)
		}
	})
}

func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := manager(t, Options{MaxRunning: 1, Runner: block})
		running, pending := submit(t, m, def(1)), submit(t, m, def(2))
		synctest.Wait()
		r, err := m.Cancel(t.Context(), []string{pending[:8], "ffffffff", running, running})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(r.Cancelled, []string{pending, running}) || !slices.Equal(r.Failed, []string{"ffffffff"}) || !strings.Contains(r.Errors["ffffffff"], "no such job") {
			t.Errorf("response is %+v", r)
		}
		if j := get(t, m, pending); j.Status != models.Cancelled || j.StartedAt != nil {
			t.Errorf("pending: %+v", j)
		}
		synctest.Wait()
		if j := get(t, m, running); j.Status != models.Cancelled || j.Error != "cancelled on request" {
			t.Errorf("running: %+v", j)
		}
		r, err = m.Cancel(t.Context(), []string{running})
		if err != nil || len(r.Cancelled) != 0 || !strings.Contains(r.Errors[running], "it is cancelled already") {
			t.Errorf("again: %+v, %v", r, err)
		}
		_, err = m.Cancel(t.Context(), nil)
		wantKind(t, err, problem.Invalid, "no job id")
	})
}

// TestCancelEndings: what the Runner returns after a cancellation decides.
func TestCancelEndings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := manager(t, Options{Runner: runnerFunc(func(ctx context.Context, s Spec, _ progress.Sink) (models.Result, error) {
			<-ctx.Done()
			if !errors.Is(context.Cause(ctx), ErrCancelled) {
				t.Errorf("cause is %v", context.Cause(ctx))
			}
			if s.Definition.Name == "whole" {
				return models.Result{}, nil
			}
			return models.Result{}, errors.New("abort lease: no answer")
		})})
		d := def(1)
		d.Name = "whole"
		whole, dirty := submit(t, m, d), submit(t, m, def(2))
		synctest.Wait()
		if _, err := m.Cancel(t.Context(), []string{whole, dirty}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if j := get(t, m, whole); j.Status != models.Completed {
			t.Errorf("whole: %+v", j)
		}
		if j := get(t, m, dirty); j.Status != models.Cancelled || j.Error != "cancelled on request: abort lease: no answer" {
			t.Errorf("dirty: %+v", j)
		}
	})
}

func TestSubmitRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := manager(t, Options{Runner: block, MaxRunning: 1, MaxPending: 2, VCenters: []string{"prod"},
			Defaults: models.Options{ParallelDownloads: new(8)}})
		first := submit(t, m, def(1))
		synctest.Wait()
		same := def(9)
		same.OutputPath = "/out/1/"
		_, err := m.Submit(t.Context(), same)
		wantKind(t, err, problem.Conflict, first)
		bad := def(2)
		bad.OutputPath, bad.Options.ParallelDownloads = "rel", new(17)
		_, err = m.Submit(t.Context(), bad)
		wantKind(t, err, problem.Invalid, "output_path: is not absolute; parallel_downloads: is 17")
		unknown := def(3)
		unknown.VCenter = &models.VCenter{Name: "nope"}
		_, err = m.Submit(t.Context(), unknown)
		wantKind(t, err, problem.Invalid, `no vCenter "nope" (known: prod)`)
		unknown.VCenter.Name = "prod"
		id := submit(t, m, unknown)
		if n := *get(t, m, id).Definition.Options.ParallelDownloads; n != 8 {
			t.Errorf("parallel_downloads is %d", n)
		}
		submit(t, m, def(4))
		_, err = m.Submit(t.Context(), def(5))
		wantKind(t, err, problem.Conflict, "2 jobs are waiting")
		if _, err := m.Cancel(t.Context(), []string{first}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		submit(t, m, def(1)) // the folder is free again
	})
}

func TestFindAndQuery(t *testing.T) {
	s := memory.New(0)
	m := manager(t, Options{Runner: block, Store: s})
	for i, id := range []string{"abcd0000-0000-4000-8000-000000000001", "abcd0000-0000-4000-8000-000000000002", "beef0000-0000-4000-8000-000000000003"} {
		at := time.Now()
		if err := s.Insert(t.Context(), store.Record{Owner: "other", Job: models.Job{ID: id, Status: models.Pending, CreatedAt: at, UpdatedAt: at, Definition: def(i)}}); err != nil {
			t.Fatal(err)
		}
	}
	if j := get(t, m, "BEEF"); j.ID[:4] != "beef" {
		t.Errorf("found %s", j.ID)
	}
	for id, want := range map[string]struct {
		kind problem.Kind
		text string
	}{
		"abcd":                  {problem.Invalid, "ambiguous: abcd0000-0000-4000-8000-000000000001, abcd0000-0000-4000-8000-000000000002"},
		"bee":                   {problem.Invalid, "at least 4"},
		"":                      {problem.Invalid, "at least 4"},
		"cafe":                  {problem.NotFound, "no such job"},
		"a%_*":                  {problem.NotFound, "no such job"},
		strings.Repeat("a", 99): {problem.NotFound, "no such job"},
	} {
		_, err := m.Get(t.Context(), id)
		wantKind(t, err, want.kind, want.text)
	}
	query := func(q models.QueryRequest) (string, int) {
		t.Helper()
		r, err := m.Query(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, j := range r.Jobs {
			out = append(out, j.ID[35:])
		}
		return strings.Join(out, ""), r.Total
	}
	for _, c := range []struct {
		q     models.QueryRequest
		want  string
		total int
	}{
		{models.QueryRequest{All: true}, "123", 3},
		{models.QueryRequest{All: true, JobIDs: []string{"beef", "abcd0000-0000-4000-8000-000000000001", "beef"}}, "13", 2},
		{models.QueryRequest{All: true, Limit: 2}, "23", 3},
		{models.QueryRequest{JobIDs: []string{"beef", "abcd0000-0000-4000-8000-000000000001", "beef"}}, "13", 2},
		{models.QueryRequest{Status: []models.Status{models.Pending}}, "123", 3},
		{models.QueryRequest{Status: []models.Status{models.Failed}}, "", 0},
		{models.QueryRequest{JobIDs: []string{"beef"}, Status: []models.Status{models.Failed}}, "", 0},
	} {
		if got, total := query(c.q); got != c.want || total != c.total {
			t.Errorf("%+v gives %q of %d", c.q, got, total)
		}
	}
	for _, c := range []struct {
		q    models.QueryRequest
		kind problem.Kind
		text string
	}{
		{models.QueryRequest{}, problem.Invalid, "nothing was asked for"},
		{models.QueryRequest{All: true, Limit: -1}, problem.Invalid, "limit"},
		{models.QueryRequest{Status: []models.Status{"done"}}, problem.Invalid, `unknown status "done"`},
		{models.QueryRequest{JobIDs: []string{"beef", "cafe", "dead"}}, problem.NotFound, `"cafe", "dead"`},
	} {
		_, err := m.Query(t.Context(), c.q)
		wantKind(t, err, c.kind, c.text)
	}
}

// TestClose: running jobs are cancelled, waiting ones stay, except those whose
// password goes with the process.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memory.New(0)
		m := manager(t, Options{MaxRunning: 1, Store: s, Runner: runnerFunc(func(ctx context.Context, _ Spec, _ progress.Sink) (models.Result, error) {
			<-ctx.Done()
			if !errors.Is(context.Cause(ctx), ErrStopping) {
				t.Errorf("cause is %v", context.Cause(ctx))
			}
			<-time.After(3 * time.Second) // a lease is being released
			return models.Result{}, context.Cause(ctx)
		})})
		running, plain := submit(t, m, def(1)), submit(t, m, def(2))
		d := def(3)
		d.VCenter = &models.VCenter{Server: "vc", Username: "u", Password: "hunter2!"}
		secret := submit(t, m, d)
		synctest.Wait()
		sub, err := m.Subscribe(t.Context(), running, 0)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := m.Close(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "1 running") {
			t.Errorf("early close: %v", err)
		}
		sub.Close()
		if _, err := m.Submit(t.Context(), def(4)); !errors.Is(err, ErrStopping) {
			t.Errorf("submit: %v", err)
		}
		if err := m.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if j := get(t, m, running); j.Status != models.Cancelled || j.Error != "the daemon is stopping" {
			t.Errorf("running: %+v", j)
		}
		if j := get(t, m, plain); j.Status != models.Pending {
			t.Errorf("plain: %+v", j)
		}
		if j := get(t, m, secret); j.Status != models.Cancelled || !strings.Contains(j.Error, "submit it again") {
			t.Errorf("secret: %+v", j)
		}
		if len(m.vault.passwords) != 0 {
			t.Error("a password is still held")
		}
	})
}

// TestFinalEventBeforeClose: readers hear of the cancellation, then of the end.
func TestFinalEventBeforeClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := manager(t, Options{Runner: block})
		id := submit(t, m, def(1))
		synctest.Wait()
		one, err := m.Subscribe(t.Context(), id, 0)
		if err != nil {
			t.Fatal(err)
		}
		all, err := m.Subscribe(t.Context(), "", 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		for sub, want := range map[*Subscription]error{one: io.EOF, all: ErrClosed} {
			var states []models.Status
			for {
				e, err := sub.Next(t.Context())
				if err != nil {
					if !errors.Is(err, want) {
						t.Errorf("ended with %v, want %v", err, want)
					}
					break
				}
				if e.Type == models.StateEvent {
					states = append(states, e.Job.Status)
				}
			}
			if !slices.Equal(states, []models.Status{models.Running, models.Cancelled}) {
				t.Errorf("states are %v", states)
			}
			sub.Close()
		}
	})
}

// TestProgressRate: a Runner that reports a thousand times a second makes at
// most four progress events a second, and the newest one always arrives.
func TestProgressRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const seconds = 10
		m := manager(t, Options{Runner: runnerFunc(func(ctx context.Context, _ Spec, sink progress.Sink) (models.Result, error) {
			for i := range seconds * 1000 {
				sink.Report(progress.Event{Kind: progress.Tick, Snapshot: progress.Snapshot{Phase: progress.Exporting, Received: int64(i + 1)}})
				<-time.After(time.Millisecond)
			}
			<-ctx.Done()
			return models.Result{}, ctx.Err()
		})})
		sub, err := m.Subscribe(t.Context(), "", 0)
		if err != nil {
			t.Fatal(err)
		}
		defer sub.Close()
		id := submit(t, m, def(1))
		<-time.After((seconds + 5) * time.Second)
		synctest.Wait()
		var times []time.Time
		var ids []uint64
		last := int64(0)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for {
			e, err := sub.Next(ctx)
			if err != nil {
				break
			}
			ids = append(ids, e.ID)
			if e.Type == models.ProgressEvent {
				times = append(times, e.Time)
				last = e.Job.Progress.BytesDownloaded
				if e.Job.Status != models.Running || e.Job.ID != id {
					t.Errorf("event of %+v", e.Job)
				}
			}
		}
		if len(times) < seconds*2-2 || len(times) > seconds*2+1 {
			t.Errorf("%d progress events in %d s", len(times), seconds)
		}
		if last != seconds*1000 {
			t.Errorf("the last event says %d, want %d", last, seconds*1000)
		}
		for i := range ids[1:] {
			if ids[i+1] != ids[i]+1 {
				t.Fatalf("ids go from %d to %d", ids[i], ids[i+1])
			}
		}
		if p := get(t, m, id).Progress; p == nil || p.BytesDownloaded != seconds*1000 {
			t.Errorf("progress is %+v", p)
		}
	})
}

// TestLag: a reader that does not read is dropped; the job does not notice;
// the reader comes back and gets what it missed.
func TestLag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const lines = readerQueue + 100
		m := manager(t, Options{Runner: runnerFunc(func(_ context.Context, _ Spec, sink progress.Sink) (models.Result, error) {
			<-time.After(time.Second)
			for i := range lines {
				sink.Report(progress.Event{Kind: progress.Remark, Message: "line", Attrs: []slog.Attr{slog.Int("n", i)}})
			}
			return models.Result{}, nil
		})})
		id := submit(t, m, def(1))
		synctest.Wait()
		sub, err := m.Subscribe(t.Context(), id, 0)
		if err != nil {
			t.Fatal(err)
		}
		first, err := sub.Next(t.Context())
		if err != nil || first.Type != models.StateEvent || first.Job.Status != models.Running {
			t.Fatalf("first event is %+v, %v", first, err)
		}
		<-time.After(2 * time.Second)
		synctest.Wait()
		if j := get(t, m, id); j.Status != models.Completed {
			t.Fatalf("job is %s", j.Status)
		}
		last := first.ID
		n := 0
		for {
			e, err := sub.Next(t.Context())
			if errors.Is(err, ErrLagged) {
				sub.Close()
				if sub, err = m.Subscribe(t.Context(), id, last); err != nil {
					t.Fatal(err)
				}
				continue
			}
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if e.ID <= last {
				t.Fatalf("event %d after %d", e.ID, last)
			}
			last = e.ID
			if e.Type == models.LogEvent && e.Log.Message == "line" {
				if want := fmt.Sprintf("n=%d", n); e.Log.Attrs != want {
					t.Fatalf("line %q, want %q", e.Log.Attrs, want)
				}
				n++
			}
		}
		sub.Close()
		if n != lines {
			t.Errorf("%d lines arrived, want %d", n, lines)
		}
		// After the last event there is nothing to miss, and nothing to wait for.
		// Who has missed all gets what is stored, before the state.
		for _, from := range []uint64{last, 1, last + 1000} {
			sub, err = m.Subscribe(t.Context(), id, from)
			if err != nil {
				t.Fatal(err)
			}
			e, err := sub.Next(t.Context())
			for stored := 0; from == 1 && err == nil && (e.Type != models.StateEvent || e.Job.Status != models.Completed); stored++ {
				e, err = sub.Next(t.Context())
				if stored > lines+10 {
					t.Fatal("it never ends")
				}
			}
			if err != nil || e.Type != models.StateEvent || e.Job.Status != models.Completed {
				t.Errorf("from %d: %+v, %v", from, e, err)
			}
			if _, err := sub.Next(t.Context()); !errors.Is(err, io.EOF) {
				t.Errorf("then %v, want EOF", err)
			}
			sub.Close()
		}
	})
}

// TestPassword: a password reaches the Runner and nobody else, whatever the
// Runner does with it.
func TestPassword(t *testing.T) {
	const password = `pa"55 wörd/&!`
	for _, how := range []string{"error", "panic", "result"} {
		synctest.Test(t, func(t *testing.T) {
			var logs, everything bytes.Buffer
			s := memory.New(0)
			got := ""
			m := manager(t, Options{Store: s, Logger: slog.New(logging.New(&logs, slog.LevelDebug, logging.JSON)), Runner: runnerFunc(func(_ context.Context, spec Spec, sink progress.Sink) (models.Result, error) {
				got = spec.Definition.VCenter.Password
				sink.Report(progress.Event{Kind: progress.Remark, Level: slog.LevelError, Message: "login", Attrs: []slog.Attr{
					slog.String("url", "https://u:"+got+"@vc"), slog.Any("error", errors.New(got)), slog.Group("g", slog.Any("def", spec.Definition)),
					slog.String("password", got)},
					Snapshot: progress.Snapshot{Files: []progress.File{{Name: "d", Problem: "bad " + got}}}})
				switch how {
				case "panic":
					panic("logged in with " + got)
				case "result":
					return models.Result{Warnings: []string{"used " + got}}, nil
				}
				return models.Result{}, fmt.Errorf("log in %q with %s: %#v %+v", got, got, spec, spec.Definition.VCenter)
			})})
			sub, err := m.Subscribe(t.Context(), "", 0)
			if err != nil {
				t.Fatal(err)
			}
			d := def(1)
			d.VCenter = &models.VCenter{Server: "vc", Username: "u", Password: password}
			j, err := m.Submit(t.Context(), d)
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if d.VCenter.Password != password || got != password {
				t.Errorf("caller has %q, Runner got %q", d.VCenter.Password, got)
			}
			recs, err := s.Load(t.Context(), store.Filter{})
			if err != nil {
				t.Fatal(err)
			}
			lines, err := m.Logs(t.Context(), j.ID)
			if err != nil {
				t.Fatal(err)
			}
			enc := json.NewEncoder(&everything)
			enc.SetEscapeHTML(false)
			for _, v := range []any{j, recs, lines, get(t, m, j.ID)} {
				if err := enc.Encode(v); err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(&everything, "%+v %#v\n", v, v)
			}
			fmt.Fprintf(&everything, "%+v\n", *get(t, m, j.ID).Definition.VCenter)
			if err := m.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			for {
				e, err := sub.Next(t.Context())
				if err != nil {
					break
				}
				if err := enc.Encode(e); err != nil {
					t.Fatal(err)
				}
			}
			everything.Write(logs.Bytes())
			// Only a piece, so that escapes do not hide it.
			for _, piece := range []string{"55 w", "55%20w", "55+w", "rd/&", "rd%2F"} {
				if i := strings.Index(everything.String(), piece); i >= 0 {
					t.Errorf("%s: the password shows: …%s…", how, everything.String()[max(0, i-200):i+len(piece)])
				}
			}
			if len(m.vault.passwords) != 0 {
				t.Error("a password is still held")
			}
			if !strings.Contains(everything.String(), "does not outlive a restart") {
				t.Error("nothing says that the job does not outlive a restart")
			}
		})
	}
}

// flaky fails the final transition once.
type flaky struct {
	store.Store
	fails int
}

func (f *flaky) Transition(ctx context.Context, id string, from, to models.Status, change func(*store.Record) error) (store.Record, error) {
	if to.Final() && f.fails > 0 {
		f.fails--
		return store.Record{}, errors.New("disk full")
	}
	return f.Store.Transition(ctx, id, from, to, change)
}

func TestStoreFailsAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := manager(t, Options{Store: &flaky{memory.New(0), 3}, Runner: runnerFunc(func(context.Context, Spec, progress.Sink) (models.Result, error) {
			return models.Result{}, nil
		})})
		id := submit(t, m, def(1))
		<-time.After(4 * time.Second)
		synctest.Wait()
		if j := get(t, m, id); j.Status != models.Completed {
			t.Errorf("job is %s", j.Status)
		}
	})
}

// TestClaimLost: a run whose job became another manager's stops, and leaves
// the other's record alone.
func TestClaimLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memory.New(0)
		var cause error
		m := manager(t, Options{Store: s, Runner: runnerFunc(func(ctx context.Context, _ Spec, _ progress.Sink) (models.Result, error) {
			<-ctx.Done()
			cause = context.Cause(ctx)
			return models.Result{}, ctx.Err()
		})})
		id := submit(t, m, def(1))
		<-time.After(time.Minute) // the claim is renewed
		synctest.Wait()
		rec, err := s.Transition(t.Context(), id, models.Running, models.Running, func(r *store.Record) error {
			if !r.AliveUntil.After(time.Now()) {
				t.Errorf("the claim ended at %s", r.AliveUntil)
			}
			r.Owner = "other"
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		<-time.After(claimTime)
		synctest.Wait()
		if !errors.Is(cause, ErrClaimLost) {
			t.Errorf("cause is %v", cause)
		}
		if recs, err := s.Load(t.Context(), store.Filter{}); err != nil || recs[0].Job.Status != models.Running || recs[0].Owner != rec.Owner {
			t.Errorf("record is %+v, %v", recs, err)
		}
	})
}

// TestRace lets many submit, cancel, query and follow at once; every job ends.
func TestRace(t *testing.T) {
	m := manager(t, Options{MaxRunning: 3, Runner: runnerFunc(func(ctx context.Context, _ Spec, sink progress.Sink) (models.Result, error) {
		for range 20 {
			sink.Report(progress.Event{Kind: progress.Step, Message: "step"})
		}
		return models.Result{}, ctx.Err()
	})})
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			j, err := m.Submit(t.Context(), def(i))
			if err != nil {
				t.Error(err)
				return
			}
			sub, err := m.Subscribe(t.Context(), j.ID, 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer sub.Close()
			if i%2 == 0 {
				if _, err := m.Cancel(t.Context(), []string{j.ID}); err != nil {
					t.Error(err)
				}
			}
			var states []models.Status
			for {
				e, err := sub.Next(t.Context())
				if err != nil {
					if !errors.Is(err, io.EOF) {
						t.Error(err)
					}
					break
				}
				if e.Type == models.StateEvent {
					states = append(states, e.Job.Status)
				}
				if _, err := m.Query(t.Context(), models.QueryRequest{All: true}); err != nil {
					t.Error(err)
				}
			}
			if !states[len(states)-1].Final() {
				t.Errorf("states are %v", states)
			}
		})
	}
	wg.Wait()
}
