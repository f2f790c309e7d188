package metrics

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"gopkg.in/yaml.v3"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
)

// site answers a scrape.
type site struct{ err error }

func (s site) Status(context.Context) (models.DaemonStatus, error) {
	return models.DaemonStatus{PendingJobs: 5, RunningJobs: 2, CompletedJobs: 7, FailedJobs: 1, CancelledJobs: 3}, s.err
}

func (s site) Query(_ context.Context, q models.QueryRequest) (models.QueryResponse, error) {
	if !slices.Equal(q.Status, []models.Status{models.Running}) {
		return models.QueryResponse{}, errors.New("another question")
	}
	rate := func(n int64) *models.Progress { return &models.Progress{BytesPerSecond: n} }
	berlin := models.Definition{VCenter: &models.VCenter{Name: "berlin"}}
	return models.QueryResponse{Jobs: []models.Job{{Progress: rate(5)}, {Definition: berlin, Progress: rate(100)}, {Definition: berlin}}}, s.err
}

func (s site) Limits(context.Context) (models.Limits, error) {
	return models.Limits{MaxRunningJobs: 4, StreamsPerHost: 8, Bandwidth: 1e6, Hosts: map[string]models.HostStreams{"esx1": {Open: 3, Waiting: 2}}}, s.err
}

func (s site) OldestPending(context.Context) (time.Time, error) {
	return time.Now().Add(-time.Hour), s.err
}

// busy gives metrics in which everything has happened once.
func busy() *Metrics {
	m := New()
	h := m.Host("berlin", "esx1")
	h.Took(1000)
	h.Took(24)
	h.Retried()
	h.Renewed(nil)
	h.Renewed(errors.New("away"))
	h.Proved("host-manifest")
	h.Damaged()
	begun, ended := time.Unix(1000, 0), time.Unix(1090, 0)
	m.Ended(models.Job{Status: models.Completed, CreatedAt: time.Unix(995, 0), StartedAt: &begun, CompletedAt: &ended,
		Definition: models.Definition{VCenter: &models.VCenter{Name: "berlin"}}})
	m.Ended(models.Job{Status: models.Cancelled, CompletedAt: &ended})
	return m
}

func scrape(t *testing.T, m *Metrics, jobs Jobs, log *slog.Logger) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler(jobs, log).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != 200 || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/plain") {
		t.Errorf("status %d, %v", w.Code, w.Header())
	}
	return w.Body.String()
}

func TestScrape(t *testing.T) {
	m := busy()
	m.Know("munich")
	text := scrape(t, m, site{}, slog.New(slog.DiscardHandler))
	for _, want := range []string{
		`hyper2kvm_transfer_bytes_total{host="esx1",vcenter="berlin"} 1024`, `hyper2kvm_transfer_retries_total{host="esx1",vcenter="berlin"} 1`,
		`hyper2kvm_lease_renewals_total{host="esx1",vcenter="berlin"} 1`, `hyper2kvm_lease_renewal_failures_total{host="esx1",vcenter="berlin"} 1`,
		`hyper2kvm_files_verified_total{host="esx1",proof="host-manifest",vcenter="berlin"} 1`, `hyper2kvm_verification_failures_total{host="esx1",vcenter="berlin"} 1`,
		`hyper2kvm_job_ends_total{status="completed",vcenter="berlin"} 1`, `hyper2kvm_job_ends_total{status="cancelled",vcenter="default"} 1`,
		`hyper2kvm_job_ends_total{status="failed",vcenter="default"} 0`, `hyper2kvm_job_ends_total{status="failed",vcenter="munich"} 0`,
		`hyper2kvm_job_queue_wait_seconds_sum 5`, `hyper2kvm_job_queue_wait_seconds_count 1`, `hyper2kvm_job_duration_seconds_sum{status="completed"} 90`,
		`hyper2kvm_jobs{status="pending"} 5`, `hyper2kvm_jobs{status="running"} 2`, `hyper2kvm_jobs{status="completed"} 7`,
		`hyper2kvm_jobs{status="failed"} 1`, `hyper2kvm_jobs{status="cancelled"} 3`,
		`hyper2kvm_transfer_bytes_per_second{vcenter="berlin"} 100`, `hyper2kvm_transfer_bytes_per_second{vcenter="default"} 5`,
		`hyper2kvm_host_streams{host="esx1",state="open"} 3`, `hyper2kvm_host_streams{host="esx1",state="waiting"} 2`,
		`hyper2kvm_max_running_jobs 4`, `hyper2kvm_host_streams_limit 8`, `hyper2kvm_streams_limit 0`, `hyper2kvm_bandwidth_limit_bytes_per_second 1e+06`,
		`hyper2kvm_build_info{goversion=`, "go_goroutines ", "process_resident_memory_bytes ",
	} {
		if !strings.Contains(text, "\n"+want) {
			t.Errorf("%s is missing", want)
		}
	}
	if !regexp.MustCompile(`\nhyper2kvm_job_queue_oldest_seconds 360\d`).MatchString(text) {
		t.Error("the oldest job is missing")
	}
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v, %v", problems, err)
	}
	if lint, err := testutil.GatherAndLint(busy().registry); err != nil || len(lint) > 0 {
		t.Errorf("promlint: %v, %v", lint, err)
	}
}

// TestGaps: what cannot be asked is left out, the rest is told.
func TestGaps(t *testing.T) {
	var log bytes.Buffer
	text := scrape(t, busy(), site{errors.New("the store is away")}, slog.New(slog.NewTextHandler(&log, nil)))
	if !strings.Contains(text, "hyper2kvm_transfer_bytes_total") || strings.Contains(text, "hyper2kvm_jobs{") || strings.Count(log.String(), "the store is away") != 4 {
		t.Errorf("%s\n%s", log.String(), text)
	}
}

// TestHostsAreBounded: names come from vCenters.
func TestHostsAreBounded(t *testing.T) {
	m := New()
	for i := range 3 * maxHosts {
		m.Host("vc", fmt.Sprint(i)).Took(1)
	}
	if n := testutil.CollectAndCount(m.bytes); n != maxHosts+1 {
		t.Errorf("%d hosts", n)
	}
	if got := testutil.ToFloat64(m.bytes.WithLabelValues(otherHost, otherHost)); got != 2*maxHosts {
		t.Errorf("the others took %v", got)
	}
}

var metricName = regexp.MustCompile(`\b(?:hyper2kvm|process|go)_[a-z0-9_]+\b`)

// names are the metrics there are, with those of histograms.
func names(t *testing.T) map[string]bool {
	t.Helper()
	known := map[string]bool{}
	for _, line := range strings.Split(scrape(t, busy(), site{}, slog.New(slog.DiscardHandler)), "\n") {
		if name := metricName.FindString(line); name != "" && !strings.HasPrefix(line, "# HELP") {
			known[name] = true
		}
	}
	return known
}

// TestExamples: dashboard and alerts use metrics that exist.
func TestExamples(t *testing.T) {
	known := names(t)
	for file, parse := range map[string]func([]byte, any) error{
		"../../packaging/grafana/hyper2kvm.json": json.Unmarshal, "../../packaging/prometheus/alerts.yaml": yaml.Unmarshal,
	} {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var v any
		if err := parse(data, &v); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		found := metricName.FindAllString(string(data), -1)
		if len(found) < 5 {
			t.Errorf("%s: only %v", file, found)
		}
		for _, name := range found {
			if !known[name] {
				t.Errorf("%s: there is no %s", file, name)
			}
		}
	}
}

// TestDocument: docs/operating.md names every metric with its type and labels.
func TestDocument(t *testing.T) {
	data, err := os.ReadFile("../../docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	described := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(hyper2kvm_[a-z_]+)` \\| (\\w+) \\| ([^|]*) \\| [^|]+ \\|$").FindAllStringSubmatch(string(data), -1) {
		described[m[1]] = m[2] + " " + strings.TrimSpace(m[3])
	}
	exist := map[string]string{}
	text := scrape(t, busy(), site{}, slog.New(slog.DiscardHandler))
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (hyper2kvm_[a-z_]+) (\w+)$`).FindAllStringSubmatch(text, -1) {
		series := regexp.MustCompile(`(?m)^` + m[1] + `(?:_count)?(?:\{([^}]*)\})? `).FindStringSubmatch(text)
		var labels []string
		for _, l := range regexp.MustCompile(`(\w+)="`).FindAllStringSubmatch(series[1], -1) {
			labels = append(labels, "`"+l[1]+"`")
		}
		exist[m[1]] = m[2] + " " + strings.Join(labels, ", ")
	}
	for name, what := range exist {
		if described[name] != what {
			t.Errorf("%s is described as %q, it is %q", name, described[name], what)
		}
	}
	for name := range described {
		if exist[name] == "" {
			t.Errorf("there is no %s", name)
		}
	}
}

func BenchmarkTook(b *testing.B) {
	h := New().Host("vc", "esx")
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			h.Took(128 << 10)
		}
	})
}
