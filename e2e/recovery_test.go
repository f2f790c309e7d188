//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hyper2kvm/hyper2kvm/internal/lab"
)

// startDaemonIn starts a daemon with a state folder of the test.
func startDaemonIn(t *testing.T, l *lab.Lab, state string) *daemon {
	t.Helper()
	p := start(t, environment(l), "hyper2kvmd", "-addr", "127.0.0.1:0", "-state", state, "-max-running-jobs", "2")
	var m []string
	waitFor(t, func() bool {
		m = addr.FindStringSubmatch(p.stdout.String() + p.stderr.String())
		return m != nil
	})
	return &daemon{p, "http://" + m[1]}
}

type jobState struct {
	ID     string `json:"id"`
	Status string `json:"status"`
	Error  string `json:"error"`
	Def    struct {
		Output string `json:"output_path"`
	} `json:"definition"`
}

func (d *daemon) jobs(t *testing.T) []jobState {
	t.Helper()
	code, out, errs := d.ctl(t, "query", "-all", "-json")
	if code != 0 {
		t.Fatalf("query: exit %d\n%s%s", code, out, errs)
	}
	var answer struct{ Jobs []jobState }
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return answer.Jobs
}

// TestDaemonKilled kills the daemon with kill -9 at random moments, again and
// again: every job is completed in the end, in its place, with the right
// bytes, and nothing looks whole before it is.
func TestDaemonKilled(t *testing.T) {
	const jobs, kills = 6, 12
	l := startLab(t, lab.Options{LeaseTimeout: 2 * time.Second})
	l.SetFaults(two, lab.Faults{BytesPerSecond: 6 * mib, Ranged: true})
	state, top := t.TempDir(), t.TempDir()
	d := startDaemonIn(t, l, state)
	var ids []string
	for i := range jobs {
		format := []string{"ovf", "qcow2", "ova"}[i%3]
		code, out, errs := d.ctl(t, "submit", "-vm", two, "-output", filepath.Join(top, fmt.Sprint(i)), "-format", format, "-name", format)
		if code != 0 {
			t.Fatalf("submit: exit %d\n%s%s", code, out, errs)
		}
		ids = append(ids, regexp.MustCompile(`Job ID: ([0-9a-f-]{36})\n`).FindStringSubmatch(out)[1])
	}
	for range kills {
		// A random moment is what this test is about, not a wait for something.
		time.Sleep(time.Duration(50+rand.IntN(600)) * time.Millisecond)
		if err := d.cmd.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-d.done
		for i := range jobs {
			dir := filepath.Join(top, fmt.Sprint(i))
			if _, err := os.Stat(filepath.Join(dir, "hyper2kvm.json")); err == nil {
				if code, out, errs := run(t, environment(nil), "hyper2kvm", "verify", dir); code != 0 {
					t.Errorf("a receipt, but verify says %d\n%s%s", code, out, errs)
				}
			}
		}
		d = startDaemonIn(t, l, state)
	}
	l.SetFaults(two, lab.Faults{Ranged: true})
	var list []jobState
	waitFor(t, func() bool {
		list = d.jobs(t)
		for _, j := range list {
			if j.Status != "completed" {
				return j.Status != "pending" && j.Status != "running"
			}
		}
		return true
	})
	if len(list) != jobs {
		t.Fatalf("%d jobs: %+v", len(list), list)
	}
	for i, j := range list {
		if j.ID != ids[i] || j.Status != "completed" {
			t.Errorf("job %d is %+v, want %s", i, j, ids[i])
			_, out, _ := d.ctl(t, "logs", "-id", j.ID)
			t.Log(out)
			continue
		}
		format := []string{"ovf", "qcow2", "ova"}[i%3]
		if format == "ovf" {
			checkWhole(t, l, two, j.Def.Output, 2)
		} else {
			checkImages(t, l, two, j.Def.Output, 2, format)
		}
		if _, out, _ := d.ctl(t, "logs", "-id", j.ID); !strings.Contains(out, "job submitted") || !strings.Contains(out, "kept finished file") && !strings.Contains(out, "partial file is continued") && i == 0 {
			t.Errorf("the log of job %d:\n%s", i, out)
		}
	}
	waitFor(t, func() bool { return l.OpenLeases() == 0 }) // those of the killed ones time out
}

// TestDaemonStopped stops the daemon in the middle of a job: it ends within
// 10 s, gives the lease back, and the job continues at the next start.
func TestDaemonStopped(t *testing.T) {
	l := startLab(t, lab.Options{})
	l.SetFaults(two, lab.Faults{BytesPerSecond: 512 << 10, Ranged: true})
	state, dir := t.TempDir(), filepath.Join(t.TempDir(), "out")
	d := startDaemonIn(t, l, state)
	if code, out, errs := d.ctl(t, "submit", "-vm", two, "-output", dir); code != 0 {
		t.Fatalf("submit: exit %d\n%s%s", code, out, errs)
	}
	waitFor(t, func() bool {
		info, err := os.Stat(filepath.Join(dir, "two-disk-0.vmdk.partial"))
		return err == nil && info.Size() > mib
	})
	begun := time.Now()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := d.wait(t); code != 0 {
		t.Errorf("exit %d\n%s", code, d.stderr.String())
	}
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	checkReleased(t, l)
	checkNoReceipt(t, dir)
	l.SetFaults(two, lab.Faults{Ranged: true})
	before := len(l.Requests())
	d = startDaemonIn(t, l, state)
	waitFor(t, func() bool { return d.jobs(t)[0].Status == "completed" })
	checkWhole(t, l, two, dir, 2)
	for _, r := range l.Requests()[before:] {
		if r.Disk == 1 && r.Status != 206 {
			t.Errorf("the disk was not continued: %+v", r)
		}
	}

	backup := filepath.Join(t.TempDir(), "jobs.db")
	if code, out, errs := run(t, environment(nil), "hyper2kvmd", "backup", backup, "-state", state); code != 0 {
		t.Errorf("backup: exit %d\n%s%s", code, out, errs)
	}
	restored := t.TempDir()
	data, err := os.ReadFile(backup)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(restored, "jobs.db"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	if jobs := startDaemonIn(t, l, restored).jobs(t); len(jobs) != 1 || jobs[0].Status != "completed" {
		t.Errorf("from the backup: %+v", jobs)
	}
}

// TestRetry: a failed job is put back and continues.
func TestRetry(t *testing.T) {
	l := startLab(t, lab.Options{})
	l.SetFaults(two, lab.Faults{NotFound: 1000, Disks: []int{1}})
	d := startDaemonIn(t, l, t.TempDir())
	dir := filepath.Join(t.TempDir(), "out")
	code, out, errs := d.ctl(t, "submit", "-vm", two, "-output", dir, "-wait")
	if code != 4 {
		t.Fatalf("exit %d\n%s%s", code, out, errs)
	}
	id := d.jobs(t)[0].ID
	l.SetFaults(two, lab.Faults{})
	before := len(l.Requests())
	if code, out, errs := d.ctl(t, "retry", "-id", id); code != 0 || !strings.Contains(out, "Retried Jobs: 1") {
		t.Fatalf("retry: exit %d\n%s%s", code, out, errs)
	}
	if code, out, errs := d.ctl(t, "watch", "-id", id); code != 0 {
		t.Fatalf("watch: exit %d\n%s%s", code, out, errs)
	}
	checkWhole(t, l, two, dir, 2)
	for _, r := range l.Requests()[before:] {
		if r.Disk == 2 {
			t.Errorf("the finished disk was fetched again: %+v", r)
		}
	}
}

// TestKilledSnapshot: the snapshot of a killed export goes away with the next
// run.
func TestKilledSnapshot(t *testing.T) {
	const vm = "/DC0/vm/Production/running01"
	l := startLab(t, lab.Options{LeaseTimeout: time.Second})
	l.SetFaults(vm, lab.Faults{StallAfter: mib, StallTimes: 1, Disks: []int{1}})
	dir := filepath.Join(t.TempDir(), "out")
	args := []string{"export", "-vm", vm, "-output", dir, "-snapshot"}
	p := start(t, environment(l), "hyper2kvm", args...)
	waitFor(t, func() bool {
		found, _ := filepath.Glob(filepath.Join(dir, "*.partial"))
		return len(found) > 0 && l.OpenLeases() > 0
	})
	if err := p.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-p.done
	_, out, _ := run(t, environment(l), "hyper2kvm", "inspect", "-vm", vm, "-json")
	if !strings.Contains(out, "hyper2kvm 20") {
		t.Fatalf("there is no snapshot to clean up:\n%s", out)
	}
	if code, out, errs := run(t, environment(l), "hyper2kvm", args...); code != 0 || !strings.Contains(errs, "removing the snapshot that an interrupted export left") {
		t.Fatalf("exit %d\n%s%s", code, out, errs)
	}
	if _, out, _ := run(t, environment(l), "hyper2kvm", "inspect", "-vm", vm, "-json"); strings.Contains(out, "hyper2kvm 20") {
		t.Errorf("a snapshot is left:\n%s", out)
	}
	checkWhole(t, l, vm, dir, 2)
	if _, err := os.Stat(filepath.Join(dir, ".hyper2kvm.note")); err == nil {
		t.Error("the note is left")
	}
}
