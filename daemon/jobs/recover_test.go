package jobs

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/daemon/store"
	"github.com/hyper2kvm/hyper2kvm/daemon/store/memory"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
	"github.com/hyper2kvm/hyper2kvm/progress"
)

// until is a Runner that runs until it is stopped, and then says so.
func until(ctx context.Context, _ Spec, sink progress.Sink) (models.Result, error) {
	sink.Report(progress.Event{Snapshot: progress.Snapshot{Phase: progress.Exporting, Percent: 40}})
	<-ctx.Done()
	return models.Result{}, context.Cause(ctx)
}

func done(context.Context, Spec, progress.Sink) (models.Result, error) {
	return models.Result{VMName: "vm"}, nil
}

// TestContinuesAfterStop: what runs when the daemon stops goes on when it
// starts, in its place and with its history.
func TestContinuesAfterStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memory.New(0)
		m := NewManager(Options{Store: s, Durable: true, MaxRunning: 1, Runner: runnerFunc(until)})
		first, second := submit(t, m, def(1)), submit(t, m, def(2))
		synctest.Wait()
		started := get(t, m, first).StartedAt
		time.Sleep(time.Second)
		if err := m.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		recs, err := s.Load(t.Context(), store.Filter{})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range recs {
			if r.Job.Status != models.Pending || r.Owner != "" {
				t.Errorf("job %s is %s, owner %q", r.Job.ID, r.Job.Status, r.Owner)
			}
		}
		if p := recs[0].Job.Progress; p == nil || p.PercentComplete != 40 {
			t.Errorf("checkpoint: %+v", p)
		}

		var order []string
		again := manager(t, Options{Store: s, Durable: true, MaxRunning: 1, Runner: runnerFunc(func(ctx context.Context, spec Spec, sink progress.Sink) (models.Result, error) {
			order = append(order, spec.ID)
			return done(ctx, spec, sink)
		})})
		synctest.Wait()
		if want := []string{first, second}; !slices.Equal(order, want) {
			t.Errorf("order %v, want %v", order, want)
		}
		j := get(t, again, first)
		if j.Status != models.Completed || !j.StartedAt.Equal(*started) {
			t.Errorf("%+v, started %v", j, started)
		}
		logs, err := again.Logs(t.Context(), first)
		if err != nil || len(logs.Lines) < 4 || logs.Lines[0].Message != "job submitted" {
			t.Errorf("%+v, %v", logs, err)
		}
	})
}

// TestContinuesAfterKill: so does what ran when it was killed. Jobs whose
// password died with it end, and say why.
func TestContinuesAfterKill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memory.New(0)
		insert := func(id string, status models.Status, owner string, vc *models.VCenter) {
			now := time.Now().UTC()
			d := def(len(id))
			d.OutputPath, d.VCenter = "/out/"+id, vc
			r := store.Record{Job: models.Job{ID: id, Status: models.Pending, Definition: d, CreatedAt: now, UpdatedAt: now}, Owner: owner}
			if err := s.Insert(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			if status == models.Pending {
				return
			}
			if _, err := s.Transition(t.Context(), id, models.Pending, status, func(r *store.Record) error {
				r.AliveUntil = now.Add(time.Hour)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		inline := &models.VCenter{Server: "vc", Username: "u"}
		insert("aaaa", models.Running, "dead", nil)
		insert("bbbb", models.Running, "dead", inline)
		insert("cccc", models.Pending, "dead", inline)
		insert("dddd", models.Pending, "", &models.VCenter{Name: "berlin"})
		m := manager(t, Options{Store: s, Durable: true, Runner: runnerFunc(done)})
		synctest.Wait()
		for id, want := range map[string]models.Status{
			"aaaa": models.Completed, "bbbb": models.Cancelled, "cccc": models.Cancelled, "dddd": models.Completed,
		} {
			j := get(t, m, id)
			if j.Status != want {
				t.Errorf("%s is %s, want %s", id, j.Status, want)
			}
			if (want != models.Completed) != strings.Contains(j.Error, "password was held in its memory") {
				t.Errorf("%s: %q", id, j.Error)
			}
		}
	})
}

// TestHeldJobSaysWhyItEnds: a running job whose password ends with the daemon.
func TestHeldJobSaysWhyItEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memory.New(0)
		m := NewManager(Options{Store: s, Durable: true, Runner: runnerFunc(until)})
		d := def(1)
		d.VCenter = &models.VCenter{Server: "vc", Username: "u", Password: "p"}
		id := submit(t, m, d)
		synctest.Wait()
		if err := m.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		recs, err := s.Load(t.Context(), store.Filter{})
		if err != nil || len(recs) != 1 {
			t.Fatalf("%d records, %v", len(recs), err)
		}
		if j := recs[0].Job; j.ID != id || j.Status != models.Cancelled || !strings.Contains(j.Error, "password was held in its memory") {
			t.Errorf("%s: %q", j.Status, j.Error)
		}
	})
}

func TestRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fails := true
		m := manager(t, Options{Store: memory.New(0), Runner: runnerFunc(func(ctx context.Context, spec Spec, sink progress.Sink) (models.Result, error) {
			if fails {
				return models.Result{}, errors.New("the host is down")
			}
			return done(ctx, spec, sink)
		})})
		id := submit(t, m, def(1))
		synctest.Wait()
		if j := get(t, m, id); j.Status != models.Failed {
			t.Fatalf("%+v", j)
		}
		fails = false
		r, err := m.Retry(t.Context(), []string{id, id[:8], "ffffffff"})
		if err != nil || !slices.Equal(r.Retried, []string{id}) || len(r.Errors) != 1 {
			t.Fatalf("%+v, %v", r, err)
		}
		synctest.Wait()
		if j := get(t, m, id); j.Status != models.Completed || j.Error != "" || j.CompletedAt == nil {
			t.Errorf("%+v", j)
		}
		r, err = m.Retry(t.Context(), []string{id})
		if err != nil || len(r.Failed) != 1 || !strings.Contains(r.Errors[id], "it is completed") {
			t.Errorf("%+v, %v", r, err)
		}
		if _, err := m.Retry(t.Context(), nil); problem.KindOf(err) != problem.Invalid {
			t.Errorf("nothing: %v", err)
		}
	})
}

// TestRetryOfTakenFolder: another job has the folder by now.
func TestRetryOfTakenFolder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := manager(t, Options{Store: memory.New(0), MaxRunning: 1, Runner: runnerFunc(until)})
		first := submit(t, m, def(1))
		synctest.Wait()
		if _, err := m.Cancel(t.Context(), []string{first}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		submit(t, m, def(1))
		r, err := m.Retry(t.Context(), []string{first})
		if err != nil || !strings.Contains(r.Errors[first], "writes to") {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

func TestPriority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var order []string
		go1 := make(chan struct{})
		m := manager(t, Options{Store: memory.New(0), MaxRunning: 1, Runner: runnerFunc(func(_ context.Context, spec Spec, _ progress.Sink) (models.Result, error) {
			<-go1
			order = append(order, spec.Definition.Name)
			return models.Result{}, nil
		})})
		for i, priority := range []int{0, 0, 5, -1, 5} {
			d := def(i)
			d.Name = string(rune('a' + i))
			d.Options.Priority = new(priority)
			submit(t, m, d)
			synctest.Wait() // the first one runs before the others come
		}
		close(go1)
		synctest.Wait()
		if want := []string{"a", "c", "e", "b", "d"}; !slices.Equal(order, want) {
			t.Errorf("order %v, want %v", order, want)
		}
	})
}
