//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hyper2kvm/hyper2kvm/internal/boottest"
	"github.com/hyper2kvm/hyper2kvm/internal/lab"
)

// formats are the ways to ask for something else than an OVF folder.
var formats = map[string][]string{
	"ova":            {"-format", "ova"},
	"raw":            {"-format", "raw"},
	"qcow2":          {"-format", "qcow2"},
	"qcow2 compress": {"-format", "qcow2", "-compress"},
	"qcow2 keep":     {"-format", "qcow2", "-compress", "-keep-vmdk", "-verify-grains"},
}

// checkImages compares what a guest would read of the export with what the
// lab's disks hold, and runs verify on it.
func checkImages(t *testing.T, l *lab.Lab, vm, dir string, disks int, format string) {
	t.Helper()
	name := vm[strings.LastIndex(vm, "/")+1:]
	from, ext := dir, format
	if format == "ova" {
		from, ext = t.TempDir(), "vmdk"
		if out, err := exec.Command("tar", "xf", filepath.Join(dir, name+".ova"), "-C", from).CombinedOutput(); err != nil {
			t.Fatalf("tar: %v %s", err, out)
		}
	}
	for i := range disks {
		path := filepath.Join(from, fmt.Sprintf("%s-disk-%d.%s", name, i, ext))
		if ext == "qcow2" {
			if out, err := exec.Command("qemu-img", "check", path).CombinedOutput(); err != nil {
				t.Errorf("qemu-img check: %v %s", err, out)
			}
		}
		raw := filepath.Join(t.TempDir(), "raw")
		if out, err := exec.Command("qemu-img", "convert", "-f", ext, "-O", "raw", path, raw).CombinedOutput(); err != nil {
			t.Errorf("qemu-img: %v %s", err, out)
			continue
		}
		compareContent(t, l, vm, i, raw)
	}
	if code, out, errs := run(t, environment(nil), "hyper2kvm", "verify", dir); code != 0 {
		t.Errorf("verify: exit %d\n%s%s", code, out, errs)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*partial*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestImageFaults: whatever the host does, an image is right or is not there.
func TestImageFaults(t *testing.T) {
	for name, tc := range map[string]struct {
		faults lab.Faults
		code   int
	}{
		"none":                        {},
		"cut, ranges ignored":         {faults: lab.Faults{CutAfter: 3 * mib, CutTimes: 2}},
		"cut, ranges honoured":        {faults: lab.Faults{CutAfter: 3 * mib, CutTimes: 2, Ranged: true}},
		"short but clean":             {faults: lab.Faults{ShortClean: 2 * mib, ShortCleanTimes: 1}},
		"flipped byte":                {faults: lab.Faults{FlipByteAt: 2 * mib, FlipTimes: 1}},
		"always flipped, no manifest": {faults: lab.Faults{FlipByteAt: 2 * mib, FlipTimes: 1000, NoManifest: true}, code: 1},
		"wrong hash":                  {faults: lab.Faults{WrongManifestHash: true}, code: 1},
		"no hash":                     {faults: lab.Faults{NoManifestHash: true}},
		"old host":                    {faults: lab.Faults{NoSHA256: true}},
		"empty second disk":           {faults: lab.Faults{EmptyDisk: 2}},
		"recompressed, cut":           {faults: lab.Faults{Recompress: true, CutAfter: 3 * mib, CutTimes: 1, Ranged: true}},
		"lease dies":                  {faults: lab.Faults{LeaseExpiresAfter: 500 * time.Millisecond, LeaseExpireTimes: 1, BytesPerSecond: 4 * mib}},
	} {
		for format, args := range formats {
			t.Run(name+", "+format, func(t *testing.T) {
				t.Parallel()
				l := startLab(t, lab.Options{})
				l.SetFaults(two, tc.faults)
				dir := filepath.Join(t.TempDir(), "out")
				code, out, errs := run(t, environment(l), "hyper2kvm", append([]string{"export", "-vm", two, "-output", dir}, args...)...)
				checkReleased(t, l)
				if code != tc.code {
					t.Fatalf("exit %d, want %d\n%s%s", code, tc.code, out, errs)
				}
				if tc.code == 0 {
					checkImages(t, l, two, dir, 2, args[1])
					return
				}
				checkNoReceipt(t, dir)
				if !strings.Contains(errs, two) {
					t.Errorf("the error does not name the VM:\n%s", errs)
				}
				if whole, _ := filepath.Glob(filepath.Join(dir, "*-disk-0."+args[1])); len(whole) > 0 {
					t.Errorf("a wrong image has its name: %q", whole)
				}
			})
		}
	}
}

// TestImageInterrupt: Ctrl-C and kill -9 in the middle, then the same command
// again.
func TestImageInterrupt(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		for format, args := range formats {
			t.Run(fmt.Sprintf("%s, %s", signal, format), func(t *testing.T) {
				t.Parallel()
				l := startLab(t, lab.Options{LeaseTimeout: 3 * time.Second})
				l.SetFaults(two, lab.Faults{Ranged: true, StallAfter: 4 * mib, StallTimes: 1, Disks: []int{1}})
				dir := filepath.Join(t.TempDir(), "out")
				command := append([]string{"export", "-vm", two, "-output", dir}, args...)
				p := start(t, environment(l), "hyper2kvm", command...)
				waitFor(t, func() bool {
					begun, _ := filepath.Glob(filepath.Join(dir, "two*.partial"))
					whole, _ := filepath.Glob(filepath.Join(dir, "two-disk-1."+args[1]))
					for _, b := range begun {
						if info, err := os.Stat(b); err == nil && info.Size() >= 2*mib && (args[1] == "ova" || len(whole) > 0) {
							return true
						}
					}
					return false
				})
				if err := p.cmd.Process.Signal(signal); err != nil {
					t.Fatal(err)
				}
				if code := p.wait(t); signal == syscall.SIGINT && code != 130 {
					t.Fatalf("exit %d\n%s", code, p.stderr.String())
				}
				checkNoReceipt(t, dir)
				if code, out, errs := run(t, environment(l), "hyper2kvm", command...); code != 0 {
					t.Fatalf("second run: exit %d\n%s%s", code, out, errs)
				}
				checkImages(t, l, two, dir, 2, args[1])
			})
		}
	}
}

// TestBoots exports VMs whose disk writes to the serial port, in one pass, and
// starts them in QEMU with the machine that their domain describes.
func TestBoots(t *testing.T) {
	for name, tc := range map[string]struct {
		controller string
		args       []string
	}{
		"pvscsi, compressed qcow2": {"pvscsi", []string{"-format", "qcow2", "-compress"}},
		"LSI SAS, raw":             {"lsilogic-sas", []string{"-format", "raw"}},
		"LSI, qcow2":               {"lsilogic", []string{"-format", "qcow2"}},
		"SATA, compressed qcow2":   {"sata", []string{"-format", "qcow2", "-compress", "-keep-vmdk"}},
		"IDE, raw":                 {"ide", []string{"-format", "raw"}},
		"NVMe, qcow2":              {"nvme", []string{"-format", "qcow2"}},
		"virtio, qcow2":            {"pvscsi", []string{"-format", "qcow2", "-hardware", "virtio"}},
	} {
		t.Run(name, func(t *testing.T) {
			text := "hyper2kvm boots from " + name + "\r\n"
			l := startLab(t, lab.Options{ExtraVMs: []lab.VMSpec{{Path: "/DC0/vm/e2e/boots", Controller: tc.controller, Disks: []lab.DiskSpec{
				{Capacity: 32 * mib, Pattern: lab.PatternMixed, Head: boottest.BootDisk(text)},
			}}}})
			dir := filepath.Join(t.TempDir(), "out")
			args := append([]string{"export", "-vm", "/DC0/vm/e2e/boots", "-output", dir}, tc.args...)
			if code, out, errs := run(t, environment(l), "hyper2kvm", args...); code != 0 {
				t.Fatalf("exit %d\n%s%s", code, out, errs)
			}
			domain, err := os.ReadFile(filepath.Join(dir, "boots.xml"))
			if err != nil {
				t.Fatal(err)
			}
			serial, err := boottest.Boot(t.Context(), domain, text)
			if err != nil || serial != text {
				t.Errorf("the guest wrote %q, want %q: %v\n%s", serial, text, err, domain)
			}
		})
	}
}
