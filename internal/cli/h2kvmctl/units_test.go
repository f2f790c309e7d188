package h2kvmctl

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/term"
)

func TestGuard(t *testing.T) {
	for _, tc := range []struct {
		text   string
		status models.Status
		want   string
	}{
		{"web01", models.Running, "web01"},
		{"failed-over-db", models.Running, "fail…-over-db"},
		{"Failed-over-db", models.Failed, "Failed-over-db"},
		{"uncompletedCANCELLED", models.Failed, "uncomp…CANC…"},
		{"completedfailed", models.Completed, "completedfail…"},
		{"a\x1bb\nc", models.Pending, "a\ufffdb c"},
	} {
		if got := guard(tc.text, tc.status); got != tc.want {
			t.Errorf("%q in %s: %q, want %q", tc.text, tc.status, got, tc.want)
		}
	}
}

func TestClock(t *testing.T) {
	now := time.Date(2026, 1, 16, 23, 59, 26, 0, time.Local)
	yesterday, year := now.AddDate(0, 0, -1), now.AddDate(-1, 0, 0)
	if got := clock(&now, now); got != "23:59:26" {
		t.Error(got)
	}
	if got := clock(&yesterday, now); got != "2026-01-15 23:59" {
		t.Error(got)
	}
	if got := clock(&year, now); got != "2025-01-16 23:59" {
		t.Error(got)
	}
	if got := clock(nil, now); got != "-" {
		t.Error(got)
	}
}

// TestJSONIsSafe: what a terminal obeys is escaped, and the document reads
// back as it was.
func TestJSONIsSafe(t *testing.T) {
	var b bytes.Buffer
	a := &app{io: term.IO{Out: &b}}
	in := models.Definition{Name: "a<b\x1b\u009b\x7f\u202e数\n", VMPath: "x"}
	if err := a.io.JSON(in); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(b.String(), "\x1b\u009b\x7f\u202e") || !strings.Contains(b.String(), "a<b") {
		t.Errorf("%q", b.String())
	}
	var out models.Definition
	if err := json.Unmarshal(b.Bytes(), &out); err != nil || out.Name != in.Name {
		t.Errorf("%q, %v", out.Name, err)
	}
}

// TestOutcome: a failed job weighs more than a cancelled one.
func TestOutcome(t *testing.T) {
	job := func(s ...models.Status) []models.Job {
		var out []models.Job
		for _, s := range s {
			out = append(out, models.Job{Status: s})
		}
		return out
	}
	if outcome(job(models.Completed)) != nil {
		t.Error("completed")
	}
	for _, tc := range []struct {
		jobs []models.Job
		want string
	}{
		{job(models.Failed, models.Cancelled), "exit code 4"},
		{job(models.Cancelled, models.Failed, models.Completed), "exit code 4"},
		{job(models.Completed, models.Cancelled), "exit code 5"},
	} {
		if got := outcome(tc.jobs); got == nil || got.Error() != tc.want {
			t.Errorf("%v, want %s", got, tc.want)
		}
	}
}

// TestLive: the live view moves up by as many lines as it drew, and what has
// ended scrolls away above it.
func TestLive(t *testing.T) {
	var out, errs bytes.Buffer
	a := &app{io: term.IO{Out: &out, Err: &errs, Getenv: func(string) string { return "" }}}
	v := &live{app: a, region: term.NewRegion(a.io), last: map[string]models.Status{}}
	job := models.Job{ID: "aafd6c12-0a97", Definition: models.Definition{Name: strings.Repeat("数", 40)}, Status: models.Running,
		Progress: &models.Progress{Phase: "exporting", PercentComplete: 50, Files: []models.FileProgress{
			{Name: "d1", State: "downloading", Position: 1, Capacity: 2, Attempt: 1}, {Name: "d2", State: "retrying", Position: 9, Capacity: 3, Attempt: 2}}}}
	v.event(models.Event{Type: models.ProgressEvent, JobID: job.ID, Job: &job})
	if got := strings.Count(out.String(), "\n"); got != 3 || !strings.Contains(out.String(), strings.Repeat("█", 9)+strings.Repeat("░", 9)+"  50.0%  0 B  0 B/s  -- left") ||
		!strings.Contains(out.String(), strings.Repeat("█", 18)+" 100.0%  retrying (attempt 2)") {
		t.Errorf("%d lines\n%s", got, out.String())
	}
	out.Reset()
	v.event(models.Event{Type: models.LogEvent, JobID: job.ID, Log: &models.LogLine{Level: "WARN", Message: "slow"}})
	if got := out.String(); !strings.HasPrefix(got, "\x1b[3A\r\x1b[J WARNING  Job aafd6c12: slow\n") || strings.Count(got, "\n") != 4 {
		t.Errorf("%q", got)
	}
	out.Reset()
	job.Status, job.Error = models.Failed, "no space left"
	for range 2 {
		v.event(models.Event{Type: models.StateEvent, JobID: job.ID, Job: &job})
	}
	v.close()
	if got := out.String(); !strings.HasPrefix(got, "\x1b[3A\r\x1b[J") || strings.Contains(got, "\n") || strings.Count(errs.String(), "no space left") != 1 {
		t.Errorf("%q, %q", got, errs.String())
	}
	// More jobs than the terminal has lines.
	out.Reset()
	for i := range 100 {
		j := models.Job{ID: string(rune('a' + i)), Status: models.Pending}
		v.event(models.Event{Type: models.StateEvent, JobID: j.ID, Job: &j})
	}
	if v.region.Lines() != 22 || !strings.Contains(out.String(), "and 79 more") {
		t.Errorf("%d lines", v.region.Lines())
	}
}

// TestLines: at most one progress line in ten seconds.
func TestLines(t *testing.T) {
	var out bytes.Buffer
	a := &app{io: term.IO{Out: &out, Err: &out, Getenv: func(string) string { return "" }}}
	l := &lines{app: a, jobs: map[string]*lineState{}}
	job := models.Job{ID: "aafd6c12-0a97", Status: models.Running, Progress: &models.Progress{Phase: "exporting"}}
	for range 50 {
		job.Progress.PercentComplete++
		l.event(models.Event{Type: models.ProgressEvent, JobID: job.ID, Job: &job})
	}
	if got := out.String(); got != " INFO     Job aafd6c12 is running\n INFO     Job aafd6c12: exporting, 1.0%\n" {
		t.Error(got)
	}
	l.jobs[job.ID].at = time.Now().Add(-lineEvery)
	l.event(models.Event{Type: models.ProgressEvent, JobID: job.ID, Job: &job})
	if !strings.HasSuffix(out.String(), "exporting, 50.0%\n") {
		t.Error(out.String())
	}
}
