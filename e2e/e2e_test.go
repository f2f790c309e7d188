//go:build e2e

// Package e2e drives the built binaries against the lab the way a user would:
// whole processes, real signals, real folders. `make e2e` builds them first.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hyper2kvm/hyper2kvm/internal/lab"
)

const (
	mib      = 1 << 20
	password = "correct horse battery"
	timeout  = 2 * time.Minute
)

// binary is the path of a built binary.
func binary(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "build", name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run make e2e", err)
	}
	return path
}

func startLab(t *testing.T, opts lab.Options) *lab.Lab {
	t.Helper()
	opts.Inventory = lab.Small
	opts.Username, opts.Password = "admin@lab", password
	opts.ExtraVMs = append(opts.ExtraVMs, lab.VMSpec{Path: "/DC0/vm/e2e/two", Disks: []lab.DiskSpec{
		{Capacity: 6*mib + 7*512, Pattern: lab.PatternRandom, Seed: 101},
		{Capacity: 4 * mib, Pattern: lab.PatternRandom, Seed: 102},
	}})
	l, err := lab.Start(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// process is a running binary.
type process struct {
	cmd    *exec.Cmd
	stdout lockedBuffer
	stderr lockedBuffer
	done   chan struct{}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func environment(l *lab.Lab, extra ...string) []string {
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent"}
	if l != nil {
		for k, v := range l.Env() {
			env = append(env, k+"="+v)
		}
	}
	return append(env, extra...)
}

func start(t *testing.T, env []string, name string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(binary(t, name), args...), done: make(chan struct{})}
	p.cmd.Env = env
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // the exit code tells
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it may have ended
		<-p.done
	})
	return p
}

// wait waits for the end and gives the exit code.
func (p *process) wait(t *testing.T) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(timeout):
		t.Fatalf("%v does not end\n%s\n%s", p.cmd.Args, p.stdout.String(), p.stderr.String())
	}
	for _, out := range []string{p.stdout.String(), p.stderr.String()} {
		if strings.Contains(out, password) {
			t.Errorf("%v shows the password:\n%s", p.cmd.Args, out)
		}
		if strings.Contains(out, "\x1b") {
			t.Errorf("%v writes escapes into a pipe:\n%q", p.cmd.Args, out)
		}
		if strings.Contains(out, "goroutine ") {
			t.Errorf("%v shows a stack:\n%s", p.cmd.Args, out)
		}
	}
	return p.cmd.ProcessState.ExitCode()
}

func run(t *testing.T, env []string, name string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	p := start(t, env, name, args...)
	code = p.wait(t)
	return code, p.stdout.String(), p.stderr.String()
}

// checkWhole compares the export with what the lab's disks hold, and runs
// verify on it.
func checkWhole(t *testing.T, l *lab.Lab, vm, dir string, disks int) {
	t.Helper()
	name := vm[strings.LastIndex(vm, "/")+1:]
	for i := range disks {
		path := filepath.Join(dir, fmt.Sprintf("%s-disk-%d.vmdk", name, i))
		raw := filepath.Join(t.TempDir(), "raw")
		if out, err := exec.Command("qemu-img", "convert", "-f", "vmdk", "-O", "raw", path, raw).CombinedOutput(); err != nil {
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

func compareContent(t *testing.T, l *lab.Lab, vm string, i int, raw string) {
	t.Helper()
	want := l.Disk(vm, i)
	f, err := os.Open(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() != want.Size() {
		t.Fatalf("disk %d: %d bytes, want %d (%v)", i, info.Size(), want.Size(), err)
	}
	a, b := make([]byte, mib), make([]byte, mib)
	for off := int64(0); off < want.Size(); off += mib {
		n := int(min(mib, want.Size()-off))
		if _, err := f.ReadAt(a[:n], off); err != nil {
			t.Fatal(err)
		}
		if _, err := want.ReadAt(b[:n], off); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if !bytes.Equal(a[:n], b[:n]) {
			t.Fatalf("disk %d differs near byte %d", i, off)
		}
	}
}

func checkNoReceipt(t *testing.T, dir string) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(dir, "hyper2kvm.json")); err == nil {
		t.Error("there is a receipt")
	}
}

func checkReleased(t *testing.T, l *lab.Lab) {
	t.Helper()
	if n := l.OpenLeases(); n != 0 {
		t.Errorf("%d leases are open: %+v", n, l.LeaseLog())
	}
}

const two = "/DC0/vm/e2e/two"

// TestFaults: whatever the host does, an export ends right or with an error
// that names the VM, never with success and wrong bytes, and no lease is left.
func TestFaults(t *testing.T) {
	for name, tc := range map[string]struct {
		faults   lab.Faults
		lease    time.Duration
		code     int
		says     string // part of standard error when it fails
		verified bool
	}{
		"none":                        {verified: true},
		"cut, ranges ignored":         {faults: lab.Faults{CutAfter: 3 * mib, CutTimes: 2}, verified: true},
		"cut, ranges honoured":        {faults: lab.Faults{CutAfter: 3 * mib, CutTimes: 2, Ranged: true}, verified: true},
		"cut at the header":           {faults: lab.Faults{CutAfter: 100, CutTimes: 2}, verified: true},
		"cut for ever":                {faults: lab.Faults{CutAfter: 2 * mib, CutTimes: 1000}, code: 1, says: two},
		"lying Content-Range":         {faults: lab.Faults{CutAfter: 3 * mib, CutTimes: 1, Ranged: true, WrongContentRange: true}, verified: true},
		"503 with Retry-After":        {faults: lab.Faults{Unavailable: 2, RetryAfter: "1"}, verified: true},
		"short but clean":             {faults: lab.Faults{ShortClean: 2 * mib, ShortCleanTimes: 1}, verified: true},
		"always short but clean":      {faults: lab.Faults{ShortClean: 2 * mib, ShortCleanTimes: 1000}, code: 1, says: two},
		"flipped byte":                {faults: lab.Faults{FlipByteAt: 2 * mib, FlipTimes: 1}, verified: true},
		"always flipped":              {faults: lab.Faults{FlipByteAt: 2 * mib, FlipTimes: 1000}, code: 1, says: two},
		"flipped, no manifest":        {faults: lab.Faults{FlipByteAt: 2 * mib, FlipTimes: 1, NoManifest: true}},
		"always flipped, no manifest": {faults: lab.Faults{FlipByteAt: 2 * mib, FlipTimes: 1000, NoManifest: true}, code: 1, says: two},
		"no hash":                     {faults: lab.Faults{NoManifestHash: true}},
		"wrong hash":                  {faults: lab.Faults{WrongManifestHash: true}, code: 1, says: "manifest"},
		"empty second disk":           {faults: lab.Faults{EmptyDisk: 2}, verified: true},
		"recompressed, cut":           {faults: lab.Faults{Recompress: true, CutAfter: 3 * mib, CutTimes: 1, Ranged: true}, verified: true},
		"lease dies":                  {faults: lab.Faults{LeaseExpiresAfter: 500 * time.Millisecond, LeaseExpireTimes: 1, BytesPerSecond: 4 * mib}},
		"short lease, kept alive":     {lease: 2 * time.Second, faults: lab.Faults{BytesPerSecond: 2 * mib}, verified: true},
		"star host":                   {faults: lab.Faults{StarHost: true}, verified: true},
		"wrong thumbprint":            {faults: lab.Faults{Thumbprint: "wrong"}, code: 1, says: "certificate"},
		"missing thumbprint":          {faults: lab.Faults{Thumbprint: "missing"}, code: 1, says: "certificate"},
		"404":                         {faults: lab.Faults{NotFound: 1000}, code: 1, says: "404"},
		"no permission":               {faults: lab.Faults{NoPermission: true}, code: 6, says: "VApp.Export"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := startLab(t, lab.Options{LeaseTimeout: tc.lease})
			l.SetFaults(two, tc.faults)
			dir := filepath.Join(t.TempDir(), "out")
			code, out, errs := run(t, environment(l), "hyper2kvm", "export", "-vm", two, "-output", dir, "-json")
			checkReleased(t, l)
			if code != tc.code {
				t.Fatalf("exit %d, want %d\n%s%s", code, tc.code, out, errs)
			}
			if tc.code != 0 {
				checkNoReceipt(t, dir)
				if !strings.Contains(errs, tc.says) {
					t.Errorf("the error does not say %q:\n%s", tc.says, errs)
				}
				return
			}
			checkWhole(t, l, two, dir, 2)
			var result struct{ Verified bool }
			if err := json.Unmarshal([]byte(out), &result); err != nil {
				t.Errorf("-json: %v\n%s", err, out)
			}
			if tc.verified && !result.Verified {
				t.Error("it is not verified")
			}
			for _, a := range l.Actions() {
				t.Errorf("the source was changed: %s", a)
			}
		})
	}
}

// TestInterruptAndContinue: Ctrl-C and kill -9 in the middle, then the same
// command again.
func TestInterruptAndContinue(t *testing.T) {
	for name, tc := range map[string]struct {
		signal syscall.Signal
		ranged bool
	}{
		"Ctrl-C":                {syscall.SIGINT, true},
		"Ctrl-C without ranges": {syscall.SIGINT, false},
		"SIGTERM":               {syscall.SIGTERM, true},
		"kill -9":               {syscall.SIGKILL, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := startLab(t, lab.Options{LeaseTimeout: 3 * time.Second})
			// The second disk is quick, the first one slow.
			l.SetFaults(two, lab.Faults{Ranged: tc.ranged, StallAfter: 4 * mib, StallTimes: 1, Disks: []int{1}})
			dir := filepath.Join(t.TempDir(), "out")
			args := []string{"export", "-vm", two, "-output", dir}
			p := start(t, environment(l), "hyper2kvm", args...)
			waitFor(t, func() bool {
				// It has its name before it is on record, and is on record when this is said.
				whole := strings.Contains(p.stderr.String(), "file is whole | file=two-disk-1.vmdk")
				info, err := os.Stat(filepath.Join(dir, "two-disk-0.vmdk.partial"))
				return whole && err == nil && info.Size() >= 3*mib
			})
			begun := time.Now()
			if err := p.cmd.Process.Signal(tc.signal); err != nil {
				t.Fatal(err)
			}
			code := p.wait(t)
			if tc.signal == syscall.SIGKILL {
				if code != -1 {
					t.Fatalf("exit %d", code)
				}
			} else {
				if code != 130 {
					t.Fatalf("exit %d\n%s", code, p.stderr.String())
				}
				if took := time.Since(begun); took > 3*time.Second {
					t.Errorf("it took %v to stop", took)
				}
				if !strings.Contains(p.stderr.String(), dir) {
					t.Errorf("it does not say where the partial files are:\n%s", p.stderr.String())
				}
				checkReleased(t, l)
			}
			checkNoReceipt(t, dir)
			before := len(l.Requests())
			if code, out, errs := run(t, environment(l), "hyper2kvm", args...); code != 0 {
				t.Fatalf("second run: exit %d\n%s%s", code, out, errs)
			}
			checkWhole(t, l, two, dir, 2)
			for _, r := range l.Requests()[before:] {
				if r.Disk == 2 {
					t.Errorf("the finished disk was fetched again: %+v", r)
				}
				if r.Disk == 1 && tc.ranged && r.Status != 206 {
					t.Errorf("the partial disk was not continued: %+v", r)
				}
			}
			waitFor(t, func() bool { return l.OpenLeases() == 0 }) // a killed process's lease times out
		})
	}
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatal("it did not come to pass in half a minute")
		case <-tick.C:
		}
	}
}

// TestBadInput: a clear error, the right exit code, nothing left behind.
func TestBadInput(t *testing.T) {
	l := startLab(t, lab.Options{})
	blocked := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		env  []string
		args []string
		code int
		says string
	}{
		"no VM of that name":    {args: []string{"export", "-vm", "/DC0/vm/nope", "-output", "OUT"}, code: 1, says: "nope"},
		"powered on":            {args: []string{"export", "-vm", "/DC0/vm/Production/running01", "-output", "OUT"}, code: 1, says: "powered on"},
		"template":              {args: []string{"export", "-vm", "/DC0/vm/Templates/golden", "-output", "OUT"}, code: 1, says: "template"},
		"output is a file":      {args: []string{"export", "-vm", two, "-output", filepath.Join(blocked, "x")}, code: 1, says: "not a folder"},
		"no output":             {args: []string{"export", "-vm", two}, code: 2, says: "output"},
		"unknown flag":          {args: []string{"export", "-vmm", two, "-output", "OUT"}, code: 2, says: "vmm"},
		"unknown command":       {args: []string{"exprot"}, code: 2, says: "export"},
		"nothing, no terminal":  {args: nil, code: 2, says: "terminal"},
		"wrong password":        {env: []string{"GOVC_PASSWORD=wrong"}, args: []string{"list"}, code: 6, says: "GOVC_"},
		"vCenter unreachable":   {env: []string{"GOVC_URL=https://127.0.0.1:1/sdk"}, args: []string{"list"}, code: 3, says: "127.0.0.1:1"},
		"no vCenter":            {env: []string{"GOVC_URL="}, args: []string{"list"}, code: 2, says: "GOVC_URL"},
		"format of the future":  {args: []string{"export", "-vm", two, "-output", "OUT", "-format", "vhdx"}, code: 2, says: "vhdx"},
		"verify without export": {args: []string{"verify", "/nonexistent"}, code: 1, says: "nonexistent"},
	} {
		t.Run(name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out")
			args := append([]string(nil), tc.args...)
			for i := range args {
				if args[i] == "OUT" {
					args[i] = out
				}
			}
			code, stdout, stderr := run(t, environment(l, tc.env...), "hyper2kvm", args...)
			if code != tc.code || !strings.Contains(stderr, tc.says) {
				t.Errorf("exit %d, want %d and %q\n%s%s", code, tc.code, tc.says, stdout, stderr)
			}
			if _, err := os.Stat(out); err == nil {
				t.Error("the output folder is left behind")
			}
		})
	}
	checkReleased(t, l)
	for _, a := range l.Actions() {
		t.Errorf("the source was changed: %s", a)
	}
}

// TestDiskFull exports into a file system that is too small.
func TestDiskFull(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v %s", err, out)
		}
	})
	l := startLab(t, lab.Options{})
	code, out, errs := run(t, environment(l), "hyper2kvm", "export", "-vm", two, "-output", filepath.Join(dir, "x"), "-skip-space-check")
	if code != 1 || !strings.Contains(errs, "no space left") || !strings.Contains(errs, "two-disk-") || !strings.Contains(errs, "more are needed") {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
	checkNoReceipt(t, filepath.Join(dir, "x"))
	checkReleased(t, l)
}

// daemon is a running hyper2kvmd.
type daemon struct {
	*process
	url string
}

var addr = regexp.MustCompile(`addr=(127\.0\.0\.1:\d+)`)

func startDaemon(t *testing.T, l *lab.Lab) *daemon {
	t.Helper()
	p := start(t, environment(l), "hyper2kvmd", "-addr", "127.0.0.1:0", "-state", t.TempDir())
	var m []string
	waitFor(t, func() bool {
		m = addr.FindStringSubmatch(p.stdout.String() + p.stderr.String())
		return m != nil
	})
	return &daemon{p, "http://" + m[1]}
}

func (d *daemon) ctl(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return run(t, environment(nil, "H2KVMD_URL="+d.url), "h2kvmctl", args...)
}

// TestDaemon: submit, watch, query, cancel, stop.
func TestDaemon(t *testing.T) {
	l := startLab(t, lab.Options{LeaseTimeout: 5 * time.Second})
	d := startDaemon(t, l)
	dir := filepath.Join(t.TempDir(), "out")

	code, out, errs := d.ctl(t, "submit", "-vm", two, "-output", dir)
	if code != 0 {
		t.Fatalf("submit: exit %d\n%s%s", code, out, errs)
	}
	id := regexp.MustCompile(`Job ID: ([0-9a-f-]{36})\n`).FindStringSubmatch(out)
	if id == nil || !strings.Contains(out, "Accepted Jobs: 1") || !strings.Contains(out, "Submitted 1 job(s)") {
		t.Fatalf("submit prints\n%s", out)
	}
	if code, out, errs := d.ctl(t, "watch", "-id", id[1]); code != 0 {
		t.Fatalf("watch: exit %d\n%s%s", code, out, errs)
	}
	checkWhole(t, l, two, dir, 2)
	if _, out, _ := d.ctl(t, "query", "-id", id[1]); !strings.Contains(strings.ToLower(out), "completed") ||
		strings.Contains(strings.ToLower(out), "failed") || strings.Contains(strings.ToLower(out), "cancelled") {
		t.Errorf("query prints\n%s", out)
	}

	// The folder holds an export now.
	code, out, errs = d.ctl(t, "submit", "-vm", two, "-output", dir, "-wait")
	if code != 4 || !strings.Contains(out+errs, "overwrite") {
		t.Errorf("into a full folder: exit %d\n%s%s", code, out, errs)
	}

	// Cancel ends a transfer within a second.
	l.SetFaults(two, lab.Faults{BytesPerSecond: 256 << 10})
	_, out, _ = d.ctl(t, "submit", "-vm", two, "-output", filepath.Join(t.TempDir(), "slow"))
	id = regexp.MustCompile(`Job ID: ([0-9a-f-]{36})\n`).FindStringSubmatch(out)
	waitFor(t, func() bool { return l.OpenLeases() == 1 })
	begun := time.Now()
	if code, out, errs := d.ctl(t, "cancel", "-id", id[1]); code != 0 {
		t.Fatalf("cancel: exit %d\n%s%s", code, out, errs)
	}
	waitFor(t, func() bool { return l.OpenLeases() == 0 })
	if took := time.Since(begun); took > time.Second {
		t.Errorf("cancelling took %v", took)
	}
	waitFor(t, func() bool {
		_, out, _ := d.ctl(t, "query", "-id", id[1])
		return strings.Contains(strings.ToLower(out), "cancelled")
	})

	// An expired session is no trouble.
	l.SetFaults(two, lab.Faults{})
	l.ExpireSessions()
	dir2 := filepath.Join(t.TempDir(), "again")
	if code, out, errs := d.ctl(t, "submit", "-vm", two, "-output", dir2, "-wait"); code != 0 {
		t.Errorf("after the session expired: exit %d\n%s%s", code, out, errs)
	}
	checkWhole(t, l, two, dir2, 2)

	// The daemon stops cleanly in the middle of a job.
	l.SetFaults(two, lab.Faults{BytesPerSecond: 256 << 10})
	d.ctl(t, "submit", "-vm", two, "-output", filepath.Join(t.TempDir(), "slow"))
	waitFor(t, func() bool { return l.OpenLeases() == 1 })
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := d.wait(t); code != 0 {
		t.Errorf("the daemon ends with %d\n%s", code, d.stderr.String())
	}
	checkReleased(t, l)
	if code, _, errs := d.ctl(t, "status"); code != 3 || !strings.Contains(errs, "hyper2kvmd") {
		t.Errorf("status without a daemon: exit %d\n%s", code, errs)
	}
}

// TestSameFolder: two jobs for one folder do not mix.
func TestSameFolder(t *testing.T) {
	l := startLab(t, lab.Options{})
	l.SetFaults(two, lab.Faults{BytesPerSecond: 2 * mib})
	dir := filepath.Join(t.TempDir(), "out")
	args := []string{"export", "-vm", two, "-output", dir}
	first := start(t, environment(l), "hyper2kvm", args...)
	waitFor(t, func() bool { return l.OpenLeases() == 1 })
	if code, out, errs := run(t, environment(l), "hyper2kvm", args...); code != 1 || !strings.Contains(errs, "in use") {
		t.Errorf("second export: exit %d\n%s%s", code, out, errs)
	}
	if code := first.wait(t); code != 0 {
		t.Errorf("first export: exit %d\n%s", code, first.stderr.String())
	}
	checkWhole(t, l, two, dir, 2)
}
