package runner_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/lab"
	"github.com/hyper2kvm/hyper2kvm/internal/output"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
	"github.com/hyper2kvm/hyper2kvm/internal/runner"
	"github.com/hyper2kvm/hyper2kvm/progress"
	"github.com/hyper2kvm/hyper2kvm/vsphere"
)

func startLab(t *testing.T, opts lab.Options) *lab.Lab {
	t.Helper()
	l, err := lab.Start(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func connect(t *testing.T, l *lab.Lab) *vsphere.Client {
	t.Helper()
	env := l.Env()
	cfg, err := vsphere.ConfigFromEnv(func(k string) string { return env[k] })
	if err != nil {
		t.Fatal(err)
	}
	c, err := vsphere.Connect(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := c.Close(ctx); err != nil {
			t.Errorf("log out: %v", err)
		}
	})
	return c
}

func export(t *testing.T, c *vsphere.Client, vm, dir string, o models.Options) (models.Result, error) {
	t.Helper()
	sink := progress.SinkFunc(func(e progress.Event) {
		if e.Message != "" {
			t.Log(e.Level, e.Message, e.Attrs)
		}
	})
	return runner.Export(t.Context(), c, models.Definition{VMPath: vm, OutputPath: dir, Options: o}, sink)
}

// TestExportSpecialVMs exports every VM of the lab, each in the way it needs.
func TestExportSpecialVMs(t *testing.T) {
	l := startLab(t, lab.Options{})
	c := connect(t, l)
	yes := true
	for _, spec := range lab.SpecialVMs() {
		t.Run(spec.Path, func(t *testing.T) {
			var o models.Options
			want := ""
			switch {
			case spec.Template:
				want = "template"
			case spec.Encrypted:
				want = "encrypted"
			case strings.Contains(spec.Path, "rdm"):
				want = "raw device"
			case spec.ISOMissing:
				o.RemoveCDROM = &yes
			case spec.PoweredOn:
				o.Snapshot = &yes
			}
			dir := filepath.Join(t.TempDir(), "out")
			r, err := export(t, c, spec.Path, dir, o)
			if want != "" {
				if problem.KindOf(err) != problem.Conflict || !strings.Contains(err.Error(), want) {
					t.Fatalf("error %v", err)
				}
				if _, err := os.Stat(dir); err == nil {
					t.Error("the folder is left behind")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !r.Verified {
				t.Error("it is not verified")
			}
			if len(r.Warnings) > 0 {
				t.Errorf("warnings: %q", r.Warnings)
			}
			report, err := output.Verify(t.Context(), dir, nil)
			if err != nil || !report.OK {
				t.Errorf("verify: %+v, %v", report, err)
			}
			nvram, err := filepath.Glob(filepath.Join(dir, "*.nvram"))
			if err != nil || (len(nvram) == 1) != (spec.UEFI || spec.NVRAM) {
				t.Errorf("nvram files: %v, %v", nvram, err)
			}
		})
	}
	if n := l.OpenLeases(); n != 0 {
		t.Errorf("%d leases are open", n)
	}
	for _, a := range l.Actions() {
		snapshot := strings.Contains(a, "running0") && strings.Contains(a, "Snapshot")
		drive := strings.Contains(a, "cdrom-gone") && strings.Contains(a, "Reconfig")
		if !snapshot && !drive {
			t.Errorf("unasked: %s", a)
		}
	}
	for _, path := range []string{"/DC0/vm/Production/running01", "/DC0/vm/Production/running02"} {
		vm, err := c.FindVM(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if vm.HasSnapshots || vm.PowerState != "poweredOn" {
			t.Errorf("%s is left with %+v", path, vm)
		}
	}
}

// TestUntrustedHost: a certificate that is not the lease's is no reason to try
// again.
func TestUntrustedHost(t *testing.T) {
	l := startLab(t, lab.Options{})
	c := connect(t, l)
	const vm = "/DC0/vm/Production/web01"
	for _, thumbprint := range []string{"wrong", "missing"} {
		l.SetFaults(vm, lab.Faults{Thumbprint: thumbprint})
		retried := false
		sink := progress.SinkFunc(func(e progress.Event) { retried = retried || strings.Contains(e.Message, "retried") })
		dir := filepath.Join(t.TempDir(), "out")
		_, err := runner.Export(t.Context(), c, models.Definition{VMPath: vm, OutputPath: dir}, sink)
		if err == nil || !strings.Contains(err.Error(), "certificate") || retried {
			t.Errorf("%s thumbprint: retried %v, error %v", thumbprint, retried, err)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Error("the folder is left behind")
		}
	}
	if n := l.OpenLeases(); n != 0 {
		t.Errorf("%d leases are open", n)
	}
}

// TestBusyAndForbidden: a busy VM is asked again, a forbidden one is not.
func TestBusyAndForbidden(t *testing.T) {
	l := startLab(t, lab.Options{})
	c := connect(t, l)
	const vm = "/DC0/vm/Production/web01"
	l.SetFaults(vm, lab.Faults{TaskInProgress: 1})
	if _, err := export(t, c, vm, filepath.Join(t.TempDir(), "out"), models.Options{}); err != nil {
		t.Errorf("busy once: %v", err)
	}
	l.SetFaults(vm, lab.Faults{NoPermission: true})
	_, err := export(t, c, vm, filepath.Join(t.TempDir(), "out"), models.Options{})
	if problem.KindOf(err) != problem.Unauthorized || !strings.Contains(err.Error(), "VApp.Export") || !strings.Contains(err.Error(), vm) {
		t.Errorf("forbidden: %v", err)
	}
}

// TestHostileTargetIDs: what the host suggests as a file name stays a
// suggestion.
func TestHostileTargetIDs(t *testing.T) {
	l := startLab(t, lab.Options{})
	c := connect(t, l)
	const vm = "/DC0/vm/Production/uefi01"
	for _, id := range []string{"../../../../tmp/escaped.vmdk", "", "a/b\x01", strings.Repeat("x", 5000), "-rf", "%2f..%2fx"} {
		l.SetFaults(vm, lab.Faults{TargetID: func(int, string) string { return strings.ReplaceAll(id, "\x01", "?") }})
		top := t.TempDir()
		if _, err := export(t, c, vm, filepath.Join(top, "out"), models.Options{}); err != nil {
			t.Errorf("%.20q: %v", id, err)
		}
		entries, err := os.ReadDir(top)
		if err != nil || len(entries) != 1 {
			t.Errorf("%.20q: %v, %v", id, entries, err)
		}
	}
}
