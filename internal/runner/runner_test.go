package runner_test

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/image/qemutest"
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
	return runner.Export(t.Context(), c, models.Definition{VMPath: vm, OutputPath: dir, Options: o}, runner.Bounds{}, sink)
}

// needs says how a VM of the lab has to be exported, or why it cannot be.
func needs(spec lab.VMSpec) (o models.Options, refused string) {
	yes := true
	switch {
	case spec.Template:
		refused = "template"
	case spec.Encrypted:
		refused = "encrypted"
	case strings.Contains(spec.Path, "rdm"):
		refused = "raw device"
	case spec.ISOMissing:
		o.RemoveCDROM = &yes
	case spec.PoweredOn:
		o.Snapshot = &yes
	}
	return o, refused
}

// TestExportImages makes images of every VM of the lab, and archives. What
// qemu-img reads in an image is what it reads in the stream kept beside it, and
// libvirt's schema takes the domain.
func TestExportImages(t *testing.T) {
	l := startLab(t, lab.Options{})
	c := connect(t, l)
	yes, raw, qcow2, ova := true, models.Raw, models.QCOW2, models.OVA
	for _, spec := range lab.SpecialVMs() {
		o, refused := needs(spec)
		if refused != "" {
			continue
		}
		for name, set := range map[string]func(*models.Options){
			"raw":            func(o *models.Options) { o.Format, o.KeepVMDK = &raw, &yes },
			"qcow2":          func(o *models.Options) { o.Format, o.KeepVMDK = &qcow2, &yes },
			"qcow2 compress": func(o *models.Options) { o.Format, o.Compress, o.KeepVMDK = &qcow2, &yes, &yes },
			"ova":            func(o *models.Options) { o.Format = &ova },
		} {
			t.Run(spec.Path+" "+name, func(t *testing.T) {
				o := o
				set(&o)
				dir := filepath.Join(t.TempDir(), "out")
				r, err := export(t, c, spec.Path, dir, o)
				if err != nil {
					t.Fatal(err)
				}
				if !r.Verified || len(r.Warnings) > 0 {
					t.Errorf("result: %+v", r)
				}
				report, err := output.Verify(t.Context(), dir, nil)
				if err != nil || !report.OK {
					t.Errorf("verify: %+v, %v", report, err)
				}
				if *o.Format == models.OVA {
					return
				}
				if out, err := exec.Command("virt-xml-validate", r.DomainPath, "domain").CombinedOutput(); err != nil {
					t.Errorf("virt-xml-validate: %v\n%s", err, out)
				}
				images, err := filepath.Glob(filepath.Join(dir, "*-disk-*."+string(*o.Format)))
				if err != nil || len(images) != len(spec.Disks) {
					t.Fatalf("images: %q, %v", images, err)
				}
				for i, image := range images {
					if *o.Format == models.QCOW2 {
						qemutest.Check(t, "qcow2", image)
					}
					if spec.Disks[i].Capacity < 1<<34 { // qemu-img reads every grain
						qemutest.Compare(t, string(*o.Format), image, "vmdk", strings.TrimSuffix(image, string(*o.Format))+"vmdk")
					}
				}
			})
		}
	}
	if n := l.OpenLeases(); n != 0 {
		t.Errorf("%d leases are open", n)
	}
}

// TestDomainOptions: what the administrator chose reaches the domain.
func TestDomainOptions(t *testing.T) {
	l := startLab(t, lab.Options{})
	c := connect(t, l)
	qcow2, virtio := models.QCOW2, models.VirtioHardware
	o := models.Options{Format: &qcow2, Hardware: &virtio, Networks: map[string]string{"VM Network": "br7"}}
	r, err := export(t, c, "/DC0/vm/Production/uefi01", filepath.Join(t.TempDir(), "out"), o)
	if err != nil {
		t.Fatal(err)
	}
	xml, err := os.ReadFile(r.DomainPath)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`bridge="br7"`, `model="virtio-scsi"`, `firmware="efi"`, r.OutputDir + "/uefi01-disk-0.qcow2"} {
		if !strings.Contains(string(xml), want) {
			t.Errorf("the domain has no %s:\n%s", want, xml)
		}
	}
	if notes := strings.Join(r.Notes, "\n"); !strings.Contains(notes, "uefi01-file-0.nvram") || !strings.Contains(notes, "CD/DVD drive") {
		t.Errorf("notes: %s", notes)
	}
	hardware := models.Hardware("fast")
	for want, o := range map[string]models.Options{
		"hardware": {Format: &qcow2, Hardware: &hardware}, "bridge": {Format: &qcow2, Networks: map[string]string{"VM Network": "no such/bridge"}},
	} {
		dir := filepath.Join(t.TempDir(), "out")
		if _, err := export(t, c, "/DC0/vm/Production/uefi01", dir, o); problem.KindOf(err) != problem.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Error("the folder is left behind")
		}
	}
}

// TestExportSpecialVMs exports every VM of the lab, each in the way it needs.
func TestExportSpecialVMs(t *testing.T) {
	l := startLab(t, lab.Options{})
	c := connect(t, l)
	for _, spec := range lab.SpecialVMs() {
		t.Run(spec.Path, func(t *testing.T) {
			o, want := needs(spec)
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
		_, err := runner.Export(t.Context(), c, models.Definition{VMPath: vm, OutputPath: dir}, runner.Bounds{}, sink)
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

// TestPercentOfThinDisks: a large disk that holds next to nothing does not lift
// the whole when it ends.
func TestPercentOfThinDisks(t *testing.T) {
	const vm = "/DC0/vm/thin and full"
	l := startLab(t, lab.Options{ExtraVMs: []lab.VMSpec{{Path: vm, Disks: []lab.DiskSpec{
		{Capacity: 4 << 20, Pattern: lab.PatternRandom},
		{Capacity: 1 << 40, Pattern: lab.PatternSparse, Allocated: 64 << 10},
	}}}})
	l.SetFaults(vm, lab.Faults{BytesPerSecond: 4 << 20})
	c := connect(t, l)
	seen := false
	sink := progress.SinkFunc(func(e progress.Event) {
		s := e.Snapshot
		if s.Phase != progress.Exporting || len(s.Files) != 2 {
			return
		}
		full, thin := s.Files[0], s.Files[1]
		share := 100 * float64(full.Position) / float64(full.Capacity)
		if thin.State != progress.Done || share > 90 {
			return
		}
		seen = true
		if s.Percent > share+25 { // it is a fifth by its least weight
			t.Errorf("%.1f %% of the whole when the full disk is at %.1f %%", s.Percent, share)
		}
	})
	def := models.Definition{VMPath: vm, OutputPath: filepath.Join(t.TempDir(), "out")}
	if _, err := runner.Export(t.Context(), c, def, runner.Bounds{}, sink); err != nil {
		t.Fatal(err)
	}
	if !seen {
		t.Error("the thin disk did not end before the full one")
	}
}
