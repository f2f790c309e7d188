package daemon

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/hyper2kvm/hyper2kvm/daemon/client"
	"github.com/hyper2kvm/hyper2kvm/daemon/jobs"
	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/daemon/store/memory"
	"github.com/hyper2kvm/hyper2kvm/internal/config"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
	"github.com/hyper2kvm/hyper2kvm/progress"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake runs every job until it is cancelled.
type fake struct{ started chan jobs.Spec }

func (f fake) Run(ctx context.Context, s jobs.Spec, _ progress.Sink) (models.Result, error) {
	f.started <- s
	<-ctx.Done()
	return models.Result{}, ctx.Err()
}

func (fake) ListVMs(context.Context, string) ([]models.VM, error) { return nil, nil }

func TestRunAndStop(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	f := fake{make(chan jobs.Spec, 1)}
	ready, done := make(chan string, 1), make(chan error, 1)
	go func() {
		done <- Run(ctx, Options{
			Config: Config{Addr: "localhost:0", MaxRunning: 2, Defaults: models.Options{ParallelDownloads: new(9)},
				VCenters: map[string]config.VCenter{"prod": {}}, Warnings: []string{"w"}},
			Runner: f, VMLister: f, Ready: func(addr string) { ready <- addr },
		})
	}()
	var addr string
	select {
	case addr = <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	c := &client.Client{BaseURL: addr}
	defer c.Close()
	r, err := c.SubmitDefinition(t.Context(), models.Definition{VMPath: "a", OutputPath: filepath.Join(t.TempDir(), "b"), VCenter: &models.VCenter{Name: "prod"}})
	if err != nil {
		t.Fatal(err)
	}
	spec := <-f.started
	if n := *spec.Definition.Options.ParallelDownloads; n != 9 || spec.ID != r.JobIDs[0] {
		t.Errorf("spec is %+v with %d downloads", spec, n)
	}
	// A reader of events hears of the cancellation that the stop brings.
	var last models.Status
	err = c.Watch(t.Context(), spec.ID, 0, func(e models.Event) error {
		if e.Job != nil {
			last = e.Job.Status
			cancel()
		}
		return nil
	})
	if err != nil || last != models.Cancelled {
		t.Errorf("watch ended in %s: %v", last, err)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the daemon does not stop")
	}
	if _, err := c.Health(t.Context()); problem.KindOf(err) != problem.Unreachable {
		t.Errorf("after the stop: %v", err)
	}
}

// stuck is a worker whose calls end only when they are let.
type stuck struct{ free chan struct{} }

func (s stuck) Run(context.Context, jobs.Spec, progress.Sink) (models.Result, error) {
	<-s.free
	return models.Result{}, errors.New("let go")
}

func (stuck) ListVMs(ctx context.Context, _ string) ([]models.VM, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestStopInTime: a vCenter that does not answer holds up a stop for 7 s, and is
// an error only where jobs are lost with the process.
func TestStopInTime(t *testing.T) {
	for _, durable := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := stuck{make(chan struct{})}
			var out bytes.Buffer
			log := slog.New(slog.NewTextHandler(&out, nil))
			m := jobs.NewManager(jobs.Options{Runner: w, Store: memory.New(0), Durable: durable, MaxRunning: 1})
			if _, err := m.Submit(t.Context(), models.Definition{VMPath: "a", OutputPath: "/srv/b"}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			served := make(chan error, 1)
			served <- http.ErrServerClosed
			began := time.Now()
			err := stop(t.Context(), &http.Server{ReadHeaderTimeout: time.Second}, m, durable, served, log)
			if (err == nil) != durable || time.Since(began) != jobsTimeout {
				t.Errorf("durable %v: %v after %v", durable, err, time.Since(began))
			}
			if durable && !strings.Contains(out.String(), "not all jobs stopped in time") {
				t.Errorf("the log says %q", out.String())
			}
			close(w.free)
			if err := m.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestListsEndWithDaemon: nobody waits for a vCenter that does not answer.
func TestListsEndWithDaemon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if _, err := (lister{stuck{}, ctx}).ListVMs(t.Context(), ""); !errors.Is(err, jobs.ErrStopping) {
			t.Errorf("got %v", err)
		}
	})
}

func TestListen(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	for addr, want := range map[string]struct {
		kind problem.Kind
		text string
	}{
		":8080":              {problem.Invalid, "neither tokens nor TLS"},
		"0.0.0.0:0":          {problem.Invalid, "neither tokens nor TLS"},
		"[::]:0":             {problem.Invalid, "neither tokens nor TLS"},
		"192.0.2.1:0":        {problem.Invalid, "neither tokens nor TLS"},
		"localhost":          {problem.Invalid, "HOST:PORT"},
		"localhost:99999":    {problem.Failed, "listen on localhost:99999"},
		busy.Addr().String(): {problem.Conflict, "another program uses the port"},
	} {
		f := fake{}
		err := Run(t.Context(), Options{Config: Config{Addr: addr}, Runner: f, VMLister: f})
		if err == nil || problem.KindOf(err) != want.kind || !strings.Contains(err.Error(), want.text) {
			t.Errorf("%s: %v", addr, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Run(ctx, Options{Config: Config{Addr: "127.0.0.1:0"}, Runner: fake{}, VMLister: fake{}}); errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// TestFillIn: every option can be left out, and takes the default then.
func TestFillIn(t *testing.T) {
	typ := reflect.TypeFor[models.Options]()
	for i := range typ.NumField() {
		f := typ.Field(i)
		var value reflect.Value
		switch f.Type.Kind() {
		case reflect.Pointer:
			value = reflect.New(f.Type.Elem())
		case reflect.Map:
			value = reflect.MakeMap(f.Type)
		default:
			t.Fatalf("%s is a %s: it cannot be told whether a job gives it", f.Name, f.Type)
		}
		var o, defaults models.Options
		reflect.ValueOf(&defaults).Elem().Field(i).Set(value)
		fillIn(&o, defaults)
		if reflect.ValueOf(o).Field(i).Pointer() != value.Pointer() {
			t.Errorf("%s does not take the default", f.Name)
		}
	}
	o := models.Options{ParallelDownloads: new(2)}
	fillIn(&o, models.Options{ParallelDownloads: new(9), Compress: new(true)})
	if *o.ParallelDownloads != 2 || !*o.Compress || o.Format != nil {
		t.Errorf("%+v", o)
	}
}
