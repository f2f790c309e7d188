//go:build e2e

package e2e

import (
	"io"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/hyper2kvm/hyper2kvm/internal/lab"
)

// checkMetrics wants a job that is whole, and one that runs, to be counted.
func checkMetrics(t *testing.T, url string) {
	t.Helper()
	var text string
	waitFor(t, func() bool {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		data, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("metrics: %s, %v", resp.Status, err)
		}
		text = string(data)
		return regexp.MustCompile(`\nhyper2kvm_lease_renewals_total\{host="DC0_[^"]*",vcenter="default"\} [1-9]`).MatchString(text) // in the second half of the lease's two seconds
	})
	for _, want := range []string{
		`hyper2kvm_files_verified_total\{host="DC0_[^"]*",proof="host-manifest",vcenter="default"\} [1-9]`,
		`hyper2kvm_transfer_bytes_total\{host="DC0_[^"]*",vcenter="default"\} [1-9]`, `hyper2kvm_jobs\{status="running"\} 1`,
		`hyper2kvm_job_ends_total\{status="completed",vcenter="default"\} 2`, `hyper2kvm_host_streams\{host="DC0_[^"]*",state="open"\} 2`,
		`hyper2kvm_transfer_bytes_per_second\{vcenter="default"\} [1-9]`, `hyper2kvm_job_queue_wait_seconds_count 2`,
	} {
		if !regexp.MustCompile(`\n` + want).MatchString(text) {
			t.Errorf("%s is missing in\n%s", want, text)
		}
	}
}

// TestLimits: a job whose host is busy waits in the queue without a lease and
// holds up nobody; the limits change while the daemon runs, and the waiting job
// begins at once.
func TestLimits(t *testing.T) {
	const other = "/DC0/vm/e2e/other"
	const elsewhere = "/DC0/vm/e2e/elsewhere"
	disks := []lab.DiskSpec{{Capacity: 8 * mib, Seed: 5}}
	// VMs go to the three hosts in turn: the first and the one that startLab
	// adds share one.
	l := startLab(t, lab.Options{LeaseTimeout: 2 * time.Second, ExtraVMs: []lab.VMSpec{
		{Path: other, Disks: disks}, {Path: elsewhere, Disks: disks}, {Path: "/DC0/vm/e2e/third", Disks: disks},
	}})
	l.SetFaults(two, lab.Faults{BytesPerSecond: mib / 4, Ranged: true})
	p := start(t, environment(l), "hyper2kvmd", "-addr", "127.0.0.1:0", "-state", t.TempDir(), "-streams-per-host", "2", "-bandwidth", "100MB/s")
	var m []string
	waitFor(t, func() bool {
		m = addr.FindStringSubmatch(p.stdout.String() + p.stderr.String())
		return m != nil
	})
	d := &daemon{p, "http://" + m[1]}
	top := t.TempDir()
	submit := func(vm, name string) {
		t.Helper()
		if code, out, errs := d.ctl(t, "submit", "-vm", vm, "-output", filepath.Join(top, name)); code != 0 {
			t.Fatalf("submit: exit %d\n%s%s", code, out, errs)
		}
	}
	submit(two, "two")
	waitFor(t, func() bool { return len(l.Requests()) >= 2 })
	submit(other, "other")
	waiting := d.jobs(t)[1].ID
	waitFor(t, func() bool {
		_, out, _ := d.ctl(t, "logs", "-id", waiting)
		return strings.Contains(out, "job waits: others take all streams of the host")
	})
	waitFor(t, func() bool { return d.jobs(t)[1].Status == "pending" })
	submit(elsewhere, "elsewhere")
	waitFor(t, func() bool { return d.jobs(t)[2].Status == "completed" })
	if s := d.jobs(t)[1].Status; s != "pending" {
		t.Errorf("the job of the busy host is %s", s)
	}
	if n := len(l.LeaseLog()); n != 2 {
		t.Errorf("%d leases were asked for", n)
	}
	code, out, errs := d.ctl(t, "limits")
	if code != 0 || !strings.Contains(out, "Streams per host │ 2 ") || !strings.Contains(out, "95.4 MiB/s") || !strings.Contains(out, "│ 2      │") {
		t.Errorf("limits: exit %d\n%s%s", code, out, errs)
	}
	if code, out, errs := d.ctl(t, "limits", "-streams-per-host", "8", "-bandwidth", "0"); code != 0 {
		t.Errorf("limits: exit %d\n%s%s", code, out, errs)
	}
	waitFor(t, func() bool { return d.jobs(t)[1].Status == "completed" })
	if s := d.jobs(t)[0].Status; s != "running" {
		t.Errorf("the first job is %s", s)
	}
	checkMetrics(t, d.url)
	l.SetFaults(two, lab.Faults{Ranged: true})
	if code, out, errs := d.ctl(t, "cancel", "-all"); code != 0 {
		t.Errorf("cancel: exit %d\n%s%s", code, out, errs)
	}
	checkWhole(t, l, other, filepath.Join(top, "other"), 1)
	checkReleased(t, l)
}
