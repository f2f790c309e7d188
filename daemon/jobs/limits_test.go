package jobs

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/pace"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
	"github.com/hyper2kvm/hyper2kvm/progress"
)

// site is a Runner whose VMs are on hosts: a VM's host is the first letter of
// its path. It says which jobs it has run, in the order of their beginning.
type site struct {
	mu  sync.Mutex
	vms []string
}

func (s *site) begun() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.vms, " ")
}

func (s *site) Run(ctx context.Context, spec Spec, _ progress.Sink) (models.Result, error) {
	vm := spec.Definition.VMPath
	leave, err := spec.Pace.Enter(vm[:1], 4)
	if err != nil {
		return models.Result{}, err
	}
	defer leave()
	s.mu.Lock()
	s.vms = append(s.vms, vm)
	s.mu.Unlock()
	select {
	case <-ctx.Done():
		return models.Result{}, context.Cause(ctx)
	case <-time.After(time.Minute):
		return models.Result{}, nil
	}
}

func vms(t *testing.T, m *Manager, names ...string) (ids []string) {
	t.Helper()
	for _, n := range names {
		ids = append(ids, submit(t, m, models.Definition{VMPath: n, OutputPath: "/out/" + n}))
		synctest.Wait()
	}
	return ids
}

// TestBusyHost: jobs of a busy host wait in the queue, in their order, and hold
// up nobody; a raised limit lets them go on.
func TestBusyHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{}
		m := manager(t, Options{Runner: s, MaxRunning: 4, Limits: pace.New(pace.Settings{StreamsPerHost: 8})})
		ids := vms(t, m, "a1", "a2", "a3", "a4", "a5", "a6", "b1", "b2")
		if got := s.begun(); got != "a1 a2 b1 b2" {
			t.Errorf("begun: %s", got)
		}
		if j := get(t, m, ids[2]); j.Status != models.Pending || j.StartedAt != nil {
			t.Errorf("a3 is %+v", j)
		}
		logs, err := m.Logs(t.Context(), ids[2])
		if err != nil || !slices.ContainsFunc(logs.Lines, func(l models.LogLine) bool { return strings.Contains(l.Message, "job waits") && l.Attrs == "host=a" }) {
			t.Errorf("the log of a3: %+v, %v", logs, err)
		}
		// One that waits can be cancelled, and is not tried again.
		if _, err := m.Cancel(t.Context(), ids[3:4]); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		l, err := m.ChangeLimits(t.Context(), models.LimitsRequest{StreamsPerHost: new(12), MaxRunningJobs: new(5), Bandwidth: new(models.Bandwidth(1e6))})
		if err != nil || l.StreamsPerHost != 12 || l.MaxRunningJobs != 5 || l.Bandwidth != 1e6 || l.MaxStreams != 0 {
			t.Errorf("limits %+v, %v", l, err)
		}
		synctest.Wait()
		if got := s.begun(); got != "a1 a2 b1 b2 a3" {
			t.Errorf("begun: %s", got)
		}
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		// The last two begin at one instant, when a1 and a2 end.
		if got := s.begun(); got != "a1 a2 b1 b2 a3 a5 a6" && got != "a1 a2 b1 b2 a3 a6 a5" {
			t.Errorf("begun: %s", got)
		}
		for i, id := range ids {
			want := models.Completed
			if i == 3 {
				want = models.Cancelled
			}
			if j := get(t, m, id); j.Status != want {
				t.Errorf("%s is %s", j.Definition.VMPath, j.Status)
			}
		}
		if len(m.waits) != 0 {
			t.Errorf("%v wait", m.waits)
		}
	})
}

// TestCancelWhilePostponed: a job that was cancelled while it found its host
// busy does not come back.
func TestCancelWhilePostponed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		looking, asked := make(chan struct{}), make(chan struct{})
		m := manager(t, Options{Runner: runnerFunc(func(context.Context, Spec, progress.Sink) (models.Result, error) {
			close(looking)
			<-asked
			return models.Result{}, &pace.HostBusyError{Host: "a"}
		})})
		id := submit(t, m, def(1))
		<-looking
		m.mu.Lock()
		r := m.active[id]
		m.mu.Unlock()
		if _, err := m.Cancel(t.Context(), []string{id}); err != nil || r == nil {
			t.Fatal(err)
		}
		close(asked)
		synctest.Wait()
		if j := get(t, m, id); j.Status != models.Cancelled {
			t.Errorf("it is %s", j.Status)
		}
		// The same once the runner has returned: only the flag is left then.
		r = newRun(m, id)
		r.cancelled = true
		m.active[id] = r
		if !m.drop(r) || len(m.active) != 0 {
			t.Error("the wish is lost")
		}
	})
}

func TestJobBandwidth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		specs := make(chan Spec, 1)
		m := manager(t, Options{MaxRunning: 1, Runner: runnerFunc(func(ctx context.Context, s Spec, _ progress.Sink) (models.Result, error) {
			specs <- s
			<-ctx.Done()
			return models.Result{}, context.Cause(ctx)
		})})
		d := def(1)
		d.Options.Bandwidth = new(models.Bandwidth(5e6))
		id := submit(t, m, d)
		waiting := submit(t, m, def(2))
		s := <-specs
		if got := s.Pace.Bandwidth(); got != 5e6 {
			t.Errorf("it begins with %d", got)
		}
		l, err := m.ChangeLimits(t.Context(), models.LimitsRequest{JobIDs: []string{id[:8]}, JobBandwidth: new(models.Bandwidth(1e6))})
		if err != nil || l.Jobs[id] != 1e6 || s.Pace.Bandwidth() != 1e6 || l.Bandwidth != 0 {
			t.Errorf("%+v, %v", l, err)
		}
		// It is the job's own now, which another process would find.
		if b := get(t, m, id).Definition.Options.Bandwidth; b == nil || *b != 1e6 {
			t.Errorf("the definition has bandwidth %v", b)
		}
		_, err = m.ChangeLimits(t.Context(), models.LimitsRequest{JobIDs: []string{id, waiting}, JobBandwidth: new(models.Bandwidth(2e6))})
		wantKind(t, err, problem.Conflict, "is pending")
		_, err = m.ChangeLimits(t.Context(), models.LimitsRequest{JobIDs: []string{"00000000"}, JobBandwidth: new(models.Bandwidth(2e6))})
		wantKind(t, err, problem.NotFound, "")
		_, err = m.ChangeLimits(t.Context(), models.LimitsRequest{MaxRunningJobs: new(0)})
		wantKind(t, err, problem.Invalid, "max_running_jobs: is 0, want 1 to 64")
		if s.Pace.Bandwidth() != 1e6 {
			t.Error("a refused change has changed something")
		}
		m.SetLimits(2, pace.Settings{StreamsPerHost: 3})
		if l, err = m.Limits(t.Context()); err != nil || l.MaxRunningJobs != 2 || l.StreamsPerHost != 3 || l.Jobs[id] != 1e6 {
			t.Errorf("%+v, %v", l, err)
		}
		<-specs
	})
}
