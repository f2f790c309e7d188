package h2kvmctl

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"github.com/hyper2kvm/hyper2kvm/daemon/api"
	"github.com/hyper2kvm/hyper2kvm/daemon/jobs"
	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/daemon/store/memory"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/term"
	"github.com/hyper2kvm/hyper2kvm/internal/jsondoc"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
	"github.com/hyper2kvm/hyper2kvm/progress"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake does what a job's VM path asks for: one with "bad" fails, one with
// "slow" runs until it is cancelled, any other completes.
type fake struct{}

func (fake) Run(ctx context.Context, s jobs.Spec, sink progress.Sink) (models.Result, error) {
	d := s.Definition
	snap := progress.Snapshot{
		Phase: progress.Exporting, Current: "disk-1.vmdk", Received: 5 << 20, Total: 20 << 20, Percent: 25, BytesPerSecond: 1 << 20, Remaining: 15 * time.Second,
		Files: []progress.File{{Name: "disk-1.vmdk", State: progress.Downloading, Position: 25, Capacity: 100, Received: 5 << 20, Attempt: 2}},
	}
	sink.Report(progress.Event{Time: time.Now(), Kind: progress.Remark, Level: slog.LevelWarn, Message: "transfer will be retried",
		Attrs: []slog.Attr{slog.Int("attempt", 2)}, Snapshot: snap})
	switch {
	case strings.Contains(d.VMPath, "bad"):
		return models.Result{}, problem.New(problem.Conflict, "export VM "+d.VMPath,
			errors.New("the task was CANCELLED before it completed \x1b[31m"), "shut it down")
	case strings.Contains(d.VMPath, "slow"):
		<-ctx.Done()
		return models.Result{}, context.Cause(ctx)
	}
	return models.Result{
		VMName: "web01", OutputDir: d.OutputPath, OVFPath: d.OutputPath + "/web01.ovf", Files: []string{d.OutputPath + "/web01.ovf", d.OutputPath + "/web01-disk-1.vmdk"},
		TotalSize: 20 << 20, Duration: "1m2.5s", Warnings: []string{"the host gave no hash"},
	}, nil
}

func (fake) ListVMs(_ context.Context, vcenter string) ([]models.VM, error) {
	if vcenter != "" {
		return []models.VM{{Path: "/" + vcenter + "/vm/only", Name: "only", PowerState: "poweredOff"}}, nil
	}
	return []models.VM{
		{Path: "/DC0/vm/web01", Name: "web01", PowerState: "poweredOff", CPUs: 2, MemoryMB: 4096, Storage: 3 << 30, GuestOS: "Debian"},
		{Path: "/DC0/vm/数据库", Name: "数据库", PowerState: "poweredOn", CPUs: 16, MemoryMB: 65536, Storage: 5 << 40},
		{Path: "/DC0/vm/evil\x1b[2J", Name: "evil", Template: true},
	}, nil
}

// serve gives a daemon's address.
func serve(defers func(func())) string {
	manager := jobs.NewManager(jobs.Options{Runner: fake{}, Store: memory.New(0)})
	server := httptest.NewServer(api.NewHandler(api.Options{Manager: manager, VMs: fake{}}))
	defers(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := manager.Close(ctx); err != nil {
			panic(err)
		}
		server.Close()
	})
	return server.URL
}

// section is the one of docs/json.md about the command among args.
func section(args []string) string {
	for command, section := range map[string]string{
		"submit": "submission", "query": "jobs", "watch": "job", "status": "status", "limits": "limits", "cancel": "cancellation",
		"retry": "retry", "logs": "log", "list": "virtual-machines",
	} {
		if slices.Contains(args, command) {
			return section
		}
	}
	return ""
}

var jobID = regexp.MustCompile(`Job ID: (\S*)\n`)

func TestScripts(t *testing.T) {
	doc, err := jsondoc.Read(jsonDoc)
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("H2KVMD_URL", serve(e.Defer))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// ctl CODE ARG... runs h2kvmctl with $STDIN as input and wants that
			// exit code; what it prints as JSON must be as docs/json.md says. Ids that were printed go into $ID, $ID2 and so on.
			"ctl": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) == 0 {
					ts.Fatalf("usage: ctl CODE ARG...")
				}
				want, err := strconv.Atoi(args[0])
				ts.Check(err)
				var in io.Reader = strings.NewReader("")
				if file := ts.Getenv("STDIN"); file != "" {
					in = strings.NewReader(ts.ReadFile(file))
				}
				for i, a := range args {
					// The process does not change its folder.
					if f := ts.MkAbs(a); strings.HasPrefix(a, "file:") {
						args[i] = strings.Replace(f, "file:", "", 1)
					}
				}
				var out, errs bytes.Buffer
				code := Run(context.Background(), args[1:], term.IO{In: in, Out: &out, Err: &errs, Getenv: ts.Getenv})
				_, _ = ts.Stdout().Write(out.Bytes())
				_, _ = ts.Stderr().Write(errs.Bytes())
				if code != want {
					ts.Fatalf("exit code %d, want %d", code, want)
				}
				if out.Len() > 0 && (slices.Contains(args, "-json") || slices.Contains(args, "--json")) {
					for _, diff := range doc.Check(section(args[1:]), out.Bytes()) {
						ts.Fatalf("%s", diff)
					}
				}
				if bytes.ContainsRune(out.Bytes(), 0x1b) || bytes.ContainsRune(errs.Bytes(), 0x1b) {
					ts.Fatalf("an escape is in %q %q", out.String(), errs.String())
				}
				for i, m := range jobID.FindAllStringSubmatch(out.String(), -1) {
					name := "ID"
					if i > 0 {
						name += strconv.Itoa(i + 1)
					}
					ts.Setenv(name, m[1])
					ts.Setenv("SHORT", m[1][:8])
				}
			},
		},
	})
}

// buffer is a stream that another goroutine waits for.
type buffer struct {
	text  chan string
	total strings.Builder
}

func (b *buffer) Write(p []byte) (int, error) {
	b.text <- string(p)
	return len(p), nil
}

// until reads the stream until it holds text.
func (b *buffer) until(t *testing.T, text string) {
	t.Helper()
	late := time.After(20 * time.Second)
	for !strings.Contains(b.total.String(), text) {
		select {
		case s := <-b.text:
			b.total.WriteString(s)
		case <-late:
			t.Fatalf("%q does not come, only\n%s", text, b.total.String())
		}
	}
}

// start runs h2kvmctl beside the test.
func start(ctx context.Context, url string, args ...string) (out *buffer, errs *bytes.Buffer, code chan int) {
	out, errs, code = &buffer{text: make(chan string, 1000)}, &bytes.Buffer{}, make(chan int, 1)
	go func() {
		code <- Run(ctx, args, term.IO{In: strings.NewReader(""), Out: out, Err: errs, Getenv: func(k string) string {
			return map[string]string{"H2KVMD_URL": url}[k]
		}})
	}()
	return out, errs, code
}

// TestCancelWhileWaiting: -wait ends with 5 when the job is cancelled from
// elsewhere, and watch shows the same.
func TestCancelWhileWaiting(t *testing.T) {
	url := serve(t.Cleanup)
	out, errs, code := start(t.Context(), url, "submit", "-wait", "-vm", "/DC0/vm/slow", "-output", "/tmp/slow")
	out.until(t, "exporting, 25.0%, 5.0 MiB, 1.0 MiB/s, 15s left")
	id := jobID.FindStringSubmatch(out.total.String())[1]
	other, _, otherCode := start(t.Context(), url, "watch", "-id", id[:8])
	other.until(t, "is running")
	table, _, tableCode := start(t.Context(), url, "query", "-watch", "-id", id)
	table.until(t, "exporting (25.0%)")
	cancel, _, cancelCode := start(t.Context(), url, "cancel", "-all")
	cancel.until(t, "Job ID: "+id+"\n")
	for what, want := range map[chan int]int{code: 5, otherCode: 5, tableCode: 0, cancelCode: 0} {
		if got := <-what; got != want {
			t.Errorf("exit code %d, want %d", got, want)
		}
	}
	if !strings.Contains(errs.String(), "(slow) cancelled: ") {
		t.Errorf("stderr: %s", errs)
	}
	table.until(t, "cancelled")
}

// TestDetach: an interrupt ends the watching, and says so, not the job.
func TestDetach(t *testing.T) {
	url := serve(t.Cleanup)
	ctx, interrupt := context.WithCancel(t.Context())
	out, errs, code := start(ctx, url, "submit", "-wait", "-vm", "/DC0/vm/slow", "-output", "/tmp/slow")
	out.until(t, "is running")
	id := jobID.FindStringSubmatch(out.total.String())[1]
	interrupt()
	if got := <-code; got != 130 || !strings.Contains(errs.String(), "h2kvmctl cancel -id "+id[:8]) {
		t.Errorf("exit code %d\n%s", got, errs)
	}
	query, _, code := start(t.Context(), url, "query", "-id", id)
	query.until(t, "running")
	if got := <-code; got != 0 {
		t.Errorf("exit code %d", got)
	}
}

// TestInterruptedInput: waiting for standard input can be interrupted.
func TestInterruptedInput(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ctx, interrupt := context.WithCancel(t.Context())
	code := make(chan int, 1)
	var out, errs bytes.Buffer
	go func() {
		code <- Run(ctx, []string{"submit", "-file", "-"}, term.IO{In: r, Out: &out, Err: &errs, Getenv: func(string) string { return "" }})
	}()
	interrupt()
	if got := <-code; got != 130 {
		t.Errorf("exit code %d\n%s", got, errs.String())
	}
	w.Close()
	r.Close()
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

// TestFullDisk: an answer that cannot be written is no success.
func TestFullDisk(t *testing.T) {
	url := serve(t.Cleanup)
	for _, args := range [][]string{{"status"}, {"status", "-json"}, {"-help"}} {
		var errs bytes.Buffer
		code := Run(t.Context(), args, term.IO{In: strings.NewReader(""), Out: full{}, Err: &errs, Getenv: func(string) string { return url }})
		if args[0] == "status" {
			// H2KVMD_TOKEN is the URL, too: any token does for this daemon.
			if code != 1 || !strings.Contains(errs.String(), "no space left") {
				t.Errorf("%q: exit code %d\n%s", args, code, errs.String())
			}
		} else if code == 0 {
			t.Errorf("%q: exit code 0", args)
		}
	}
}
