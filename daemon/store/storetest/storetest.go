// Package storetest holds the suite that every job store passes. It is for
// tests only.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/daemon/store"
)

// Record makes a pending record that writes to a folder of its own.
func Record(id string) store.Record {
	at := time.Date(2026, 1, 16, 23, 59, 35, 0, time.UTC)
	return store.Record{Job: models.Job{
		ID: id, Status: models.Pending, CreatedAt: at, UpdatedAt: at,
		Definition: models.Definition{Name: "n", VMPath: "/dc/vm/" + id, OutputPath: "/out/" + id,
			Options: models.Options{ParallelDownloads: new(4), Format: new(models.OVF)}},
	}}
}

// Run runs the suite. Open gives an empty store; what it needs to end, it
// registers with t.Cleanup.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	tests := map[string]func(*testing.T, store.Store){
		"Insert":      insert,
		"Outputs":     outputs,
		"Transition":  transition,
		"Filter":      filter,
		"Copies":      copies,
		"NoPasswords": noPasswords,
		"Contexts":    contexts,
		"Race":        race,
		"Queue":       queue,
		"Events":      events,
		"Prune":       prune,
	}
	for name, f := range tests {
		t.Run(name, func(t *testing.T) { f(t, open(t)) })
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func ids(t *testing.T, s store.Store, f store.Filter) []string {
	t.Helper()
	recs, err := s.Load(t.Context(), f)
	must(t, err)
	var out []string
	for _, r := range recs {
		out = append(out, r.Job.ID)
	}
	return out
}

func insert(t *testing.T, s store.Store) {
	for _, id := range []string{"c", "a", "b"} {
		must(t, s.Insert(t.Context(), Record(id)))
	}
	again := Record("a")
	again.Job.Definition.OutputPath = "/other"
	if err := s.Insert(t.Context(), again); !errors.Is(err, store.ErrExists) {
		t.Errorf("second insert: %v, want ErrExists", err)
	}
	if got := ids(t, s, store.Filter{}); !slices.Equal(got, []string{"c", "a", "b"}) {
		t.Errorf("order is %v, want that of insertion", got)
	}
	count, err := s.Count(t.Context())
	must(t, err)
	if count[models.Pending] != 3 {
		t.Errorf("count is %v", count)
	}
}

func outputs(t *testing.T, s store.Store) {
	ctx := t.Context()
	must(t, s.Insert(ctx, Record("a")))
	second := Record("b")
	second.Job.Definition.OutputPath = "/out/a"
	for _, step := range []struct{ from, to models.Status }{{models.Pending, models.Running}, {models.Running, models.Failed}} {
		err := s.Insert(ctx, second)
		if busy, ok := errors.AsType[*store.OutputError](err); !ok || busy.ID != "a" || busy.Path != "/out/a" {
			t.Errorf("insert while %s: %v, want an OutputError", step.from, err)
		}
		_, err = s.Transition(ctx, "a", step.from, step.to, nil)
		must(t, err)
	}
	must(t, s.Insert(ctx, second))
}

func transition(t *testing.T, s store.Store) {
	ctx := t.Context()
	must(t, s.Insert(ctx, Record("a")))
	if _, err := s.Transition(ctx, "x", models.Pending, models.Running, nil); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("unknown job: %v", err)
	}
	if _, err := s.Transition(ctx, "a", models.Running, models.Failed, nil); !errors.Is(err, store.ErrStale) {
		t.Errorf("wrong status: %v", err)
	}
	own := errors.New("no")
	if _, err := s.Transition(ctx, "a", models.Pending, models.Running, func(r *store.Record) error {
		if r.Job.Status != models.Running {
			t.Errorf("change sees status %s", r.Job.Status)
		}
		r.Owner = "me"
		return own
	}); !errors.Is(err, own) {
		t.Errorf("error of change: %v", err)
	}
	recs, err := s.Load(ctx, store.Filter{IDs: []string{"a"}})
	must(t, err)
	if recs[0].Owner != "" || recs[0].Job.Status != models.Pending {
		t.Errorf("a refused change left %+v", recs[0])
	}
	alive := time.Date(2026, 1, 17, 0, 0, 0, 123456789, time.UTC)
	rec, err := s.Transition(ctx, "a", models.Pending, models.Running, func(r *store.Record) error {
		r.Owner, r.AliveUntil = "me", alive
		r.Job.StartedAt, r.Job.UpdatedAt = &alive, alive
		r.Job.ID, r.Job.Definition.OutputPath = "evil", "/evil"
		r.Job.Definition.Options.Bandwidth = new(models.Bandwidth(7))
		return nil
	})
	must(t, err)
	if rec.Owner != "me" || !rec.AliveUntil.Equal(alive) || rec.Job.Status != models.Running || rec.Job.ID != "a" || rec.Job.Definition.OutputPath != "/out/a" ||
		rec.Job.Definition.Options.Bandwidth == nil || *rec.Job.Definition.Options.Bandwidth != 7 {
		t.Errorf("record is %+v", rec)
	}
	_, err = s.Transition(ctx, "a", models.Running, models.Running, func(r *store.Record) error { return nil })
	must(t, err)
	_, err = s.Transition(ctx, "a", models.Running, models.Completed, func(r *store.Record) error {
		r.Job.Result = &models.Result{VMName: "vm", Files: []string{"/out/a/x"}, TotalSize: 7}
		r.Job.Progress = &models.Progress{PercentComplete: 100, Files: []models.FileProgress{{Name: "x"}}}
		r.Job.CompletedAt = &alive
		return nil
	})
	must(t, err)
	recs, err = s.Load(ctx, store.Filter{Prefix: "a"})
	must(t, err)
	j := recs[0].Job
	if j.Result == nil || j.Result.TotalSize != 7 || j.Progress == nil || j.Progress.Files[0].Name != "x" || j.StartedAt == nil || !j.CompletedAt.Equal(alive) {
		t.Errorf("job is %+v", j)
	}
	count, err := s.Count(ctx)
	must(t, err)
	if count[models.Completed] != 1 || count[models.Pending] != 0 || count[models.Running] != 0 {
		t.Errorf("count is %v", count)
	}
}

func filter(t *testing.T, s store.Store) {
	ctx := t.Context()
	for _, id := range []string{"aa1", "aa2", "bb1", "a%_"} {
		r := Record(id)
		if id == "bb1" {
			r.Owner = "other"
		}
		must(t, s.Insert(ctx, r))
	}
	_, err := s.Transition(ctx, "aa2", models.Pending, models.Cancelled, nil)
	must(t, err)
	for _, c := range []struct {
		f    store.Filter
		want []string
	}{
		{store.Filter{}, []string{"aa1", "aa2", "bb1", "a%_"}},
		{store.Filter{Limit: 2}, []string{"aa1", "aa2"}},
		{store.Filter{Prefix: "aa"}, []string{"aa1", "aa2"}},
		{store.Filter{Prefix: "a%"}, []string{"a%_"}},
		{store.Filter{IDs: []string{"bb1", "aa1", "zz", "bb1"}}, []string{"aa1", "bb1"}},
		{store.Filter{IDs: []string{"zz"}}, nil},
		{store.Filter{IDs: []string{}}, nil},
		{store.Filter{Status: []models.Status{models.Cancelled, models.Failed}}, []string{"aa2"}},
		{store.Filter{Status: []models.Status{models.Pending}, Owner: "me"}, []string{"aa1", "a%_"}},
		{store.Filter{Status: []models.Status{models.Pending}, Owner: "other", Limit: 2}, []string{"aa1", "bb1"}},
		{store.Filter{Limit: 2, Last: true}, []string{"bb1", "a%_"}},
		{store.Filter{Last: true}, []string{"aa1", "aa2", "bb1", "a%_"}},
	} {
		if got := ids(t, s, c.f); !slices.Equal(got, c.want) {
			t.Errorf("%+v gives %v, want %v", c.f, got, c.want)
		}
	}
}

// copies: what goes in or comes out is nobody else's.
func copies(t *testing.T, s store.Store) {
	ctx := t.Context()
	in := Record("a")
	options := reflect.ValueOf(&in.Job.Definition.Options).Elem()
	for i := range options.NumField() {
		switch f := options.Field(i); {
		case !f.IsNil():
		case f.Kind() == reflect.Map:
			f.Set(reflect.ValueOf(map[string]string{"VM Network": "br0"}))
		default:
			f.Set(reflect.New(f.Type().Elem()))
		}
	}
	must(t, s.Insert(ctx, in))
	stored, err := s.Load(ctx, store.Filter{})
	must(t, err)
	kept := reflect.ValueOf(stored[0].Job.Definition.Options)
	for i := range options.NumField() {
		switch name := options.Type().Field(i).Name; {
		case kept.Field(i).IsNil():
			t.Errorf("option %s is lost", name)
		case kept.Field(i).Pointer() == options.Field(i).Pointer():
			t.Errorf("option %s is shared", name)
		}
	}
	*in.Job.Definition.Options.ParallelDownloads = 99
	out, err := s.Load(ctx, store.Filter{})
	must(t, err)
	*out[0].Job.Definition.Options.ParallelDownloads = 98
	out, err = s.Load(ctx, store.Filter{})
	must(t, err)
	if n := *out[0].Job.Definition.Options.ParallelDownloads; n != 4 {
		t.Errorf("parallel_downloads is %d, want 4", n)
	}
}

func noPasswords(t *testing.T, s store.Store) {
	r := Record("a")
	r.Job.Definition.VCenter = &models.VCenter{Server: "vc", Username: "u", Password: "pa55word!", Insecure: new(true)}
	must(t, s.Insert(t.Context(), r))
	out, err := s.Load(t.Context(), store.Filter{})
	must(t, err)
	v := out[0].Job.Definition.VCenter
	if v == nil || v.Server != "vc" || v.Username != "u" || v.Insecure == nil || !*v.Insecure || v.Password != "" {
		t.Errorf("vcenter is %#v, password %q", v, v.Password)
	}
	if r.Job.Definition.VCenter.Password == "" {
		t.Error("the caller's record was changed")
	}
}

func contexts(t *testing.T, s store.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, e1 := s.Load(ctx, store.Filter{})
	_, e2 := s.Transition(ctx, "a", models.Pending, models.Running, nil)
	_, e3 := s.Count(ctx)
	for i, err := range []error{s.Insert(ctx, Record("a")), e1, e2, e3} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("call %d on an ended context: %v", i, err)
		}
	}
}

// race: of many who claim the same job, one wins; of many who want the same
// output path, one gets it.
func race(t *testing.T, s store.Store) {
	ctx := t.Context()
	must(t, s.Insert(ctx, Record("a")))
	const n = 16
	claimed, inserted := make([]error, n), make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			_, claimed[i] = s.Transition(ctx, "a", models.Pending, models.Running, func(r *store.Record) error {
				r.Owner = fmt.Sprint(i)
				return nil
			})
			r := Record(fmt.Sprintf("r%d", i))
			r.Job.Definition.OutputPath = "/same"
			inserted[i] = s.Insert(ctx, r)
		})
	}
	wg.Wait()
	winner, first := 0, 0
	for i := range n {
		switch {
		case claimed[i] == nil:
			winner++
			recs, err := s.Load(ctx, store.Filter{IDs: []string{"a"}})
			must(t, err)
			if recs[0].Owner != fmt.Sprint(i) {
				t.Errorf("owner is %s, want %d", recs[0].Owner, i)
			}
		case !errors.Is(claimed[i], store.ErrStale):
			t.Error(claimed[i])
		}
		if inserted[i] == nil {
			first++
		} else if _, ok := errors.AsType[*store.OutputError](inserted[i]); !ok {
			t.Error(inserted[i])
		}
	}
	if winner != 1 || first != 1 {
		t.Errorf("%d claims and %d insertions won, want one of each", winner, first)
	}
}

// queue: the order in which waiting jobs are taken.
func queue(t *testing.T, s store.Store) {
	for _, j := range []struct {
		id       string
		priority int
	}{{"a", 0}, {"b", 7}, {"c", -3}, {"d", 7}} {
		r := Record(j.id)
		r.Job.Definition.Options.Priority = new(j.priority)
		must(t, s.Insert(t.Context(), r))
	}
	if got := ids(t, s, store.Filter{Queue: true}); !slices.Equal(got, []string{"b", "d", "a", "c"}) {
		t.Errorf("queue is %v", got)
	}
	if got := ids(t, s, store.Filter{Queue: true, Limit: 1}); !slices.Equal(got, []string{"b"}) {
		t.Errorf("first is %v", got)
	}
	// A folder that another unfinished job has by now.
	ctx := t.Context()
	_, err := s.Transition(ctx, "a", models.Pending, models.Failed, nil)
	must(t, err)
	other := Record("e")
	other.Job.Definition.OutputPath = "/out/a"
	must(t, s.Insert(ctx, other))
	_, err = s.Transition(ctx, "a", models.Failed, models.Pending, nil)
	if busy, ok := errors.AsType[*store.OutputError](err); !ok || busy.ID != "e" {
		t.Errorf("back to pending: %v, want an OutputError", err)
	}
}

// events: kept by id, with bounds.
func events(t *testing.T, s store.Store) {
	ctx := t.Context()
	must(t, s.Insert(ctx, Record("a")))
	must(t, s.Insert(ctx, Record("b")))
	at := time.Date(2026, 1, 16, 23, 59, 35, 123, time.UTC)
	line := func(id uint64, job, text string) models.Event {
		return models.Event{ID: id, Type: models.LogEvent, JobID: job, Time: at, Log: &models.LogLine{Time: at, Level: "INFO", Message: text}}
	}
	job := Record("a").Job
	must(t, s.Append(ctx, []models.Event{
		{ID: 3, Type: models.StateEvent, JobID: "a", Time: at, Job: &job}, line(4, "a", "one"), line(5, "b", "two"), line(6, "gone", "three"),
	}))
	must(t, s.Append(ctx, []models.Event{line(7, "a", "four")}))
	must(t, s.Append(ctx, nil))
	got := func(f store.EventFilter) []uint64 {
		t.Helper()
		list, err := s.Events(ctx, f)
		must(t, err)
		var out []uint64
		for _, e := range list {
			out = append(out, e.ID)
		}
		return out
	}
	for _, c := range []struct {
		f    store.EventFilter
		want []uint64
	}{
		{store.EventFilter{}, []uint64{3, 4, 5, 7}},
		{store.EventFilter{After: 4}, []uint64{5, 7}},
		{store.EventFilter{JobID: "a"}, []uint64{3, 4, 7}},
		{store.EventFilter{JobID: "a", Type: models.LogEvent}, []uint64{4, 7}},
		{store.EventFilter{After: 3, Limit: 2}, []uint64{4, 5}},
		{store.EventFilter{JobID: "gone"}, nil},
	} {
		if ids := got(c.f); !slices.Equal(ids, c.want) {
			t.Errorf("%+v gives %v, want %v", c.f, ids, c.want)
		}
	}
	list, err := s.Events(ctx, store.EventFilter{JobID: "a"})
	must(t, err)
	if e := list[0]; e.Job == nil || e.Job.ID != "a" || !e.Time.Equal(at) || e.Type != models.StateEvent {
		t.Errorf("%+v", e)
	}
	if last, err := s.LastEvent(ctx); err != nil || last != 7 {
		t.Errorf("last event is %d, %v", last, err)
	}

	const more = store.MaxLines + 100
	batch := make([]models.Event, 0, more)
	for i := range more {
		batch = append(batch, line(uint64(100+i), "b", fmt.Sprint(i)))
	}
	must(t, s.Append(ctx, batch))
	list, err = s.Events(ctx, store.EventFilter{JobID: "b", Type: models.LogEvent})
	must(t, err)
	if n := len(list); n > store.MaxLines || n < store.MaxLines*8/10 || list[n-1].Log.Message != fmt.Sprint(more-1) {
		t.Errorf("%d lines are kept", n)
	}
	if ids := got(store.EventFilter{JobID: "a"}); !slices.Equal(ids, []uint64{3, 4, 7}) {
		t.Errorf("another job's events: %v", ids)
	}
}

// prune: old jobs go with their events, unfinished ones stay.
func prune(t *testing.T, s store.Store) {
	ctx := t.Context()
	at := Record("a").Job.CreatedAt
	for _, id := range []string{"a", "b", "c", "d", "e"} {
		must(t, s.Insert(ctx, Record(id)))
	}
	// "c" waits, and "b" has taken the longest.
	for i, id := range []string{"a", "d", "e", "b"} {
		_, err := s.Transition(ctx, id, models.Pending, models.Completed, func(r *store.Record) error {
			ended := at.Add(time.Duration(i) * time.Hour)
			r.Job.CompletedAt = &ended
			return nil
		})
		must(t, err)
		must(t, s.Append(ctx, []models.Event{{ID: uint64(i + 1), Type: models.LogEvent, JobID: id, Log: &models.LogLine{}}}))
	}
	check := func(removed int, err error, want int, left ...string) {
		t.Helper()
		must(t, err)
		if got := ids(t, s, store.Filter{}); removed != want || !slices.Equal(got, left) {
			t.Errorf("%d removed, left %v; want %d and %v", removed, got, want, left)
		}
	}
	n, err := s.Prune(ctx, time.Time{}, 0)
	check(n, err, 0, "a", "b", "c", "d", "e")
	n, err = s.Prune(ctx, at.Add(30*time.Minute), 0)
	check(n, err, 1, "b", "c", "d", "e")
	n, err = s.Prune(ctx, time.Time{}, 1)
	check(n, err, 2, "b", "c")
	count, err := s.Count(ctx)
	must(t, err)
	if count[models.Pending] != 1 || count[models.Completed] != 1 {
		t.Errorf("count is %v", count)
	}
	list, err := s.Events(ctx, store.EventFilter{})
	must(t, err)
	if len(list) != 1 || list[0].JobID != "b" {
		t.Errorf("events left: %+v", list)
	}
}
