package term

import (
	"bytes"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mattn/go-runewidth"

	"github.com/hyper2kvm/hyper2kvm/progress"
)

func snapshot() progress.Snapshot {
	return progress.Snapshot{
		Phase: progress.Exporting, Percent: 45, Received: 3 << 30, BytesPerSecond: 25 << 20, Remaining: 187 * time.Second,
		Files: []progress.File{
			{Name: "web-disk-0.vmdk", State: progress.Downloading, Position: 1 << 30, Capacity: 4 << 30, Received: 500 << 20},
			{Name: "web-disk-1.vmdk", State: progress.Retrying, Position: 1 << 30, Capacity: 2 << 30, Attempt: 2},
			{Name: "web-disk-2.vmdk", State: progress.Kept, Position: 5, Capacity: 5, Received: 5},
			{Name: "web-file-0.nvram", State: progress.Waiting},
		},
	}
}

func TestExportRows(t *testing.T) {
	b := &Bars{io: plainIO(&bytes.Buffer{}), files: map[string]*meter{}}
	got := b.exportRows("web", snapshot(), 79)
	want := []string{
		"web                ████████░░░░░░░░░░░  45.0%  3.0 GiB  25.0 MiB/s  3m07s left",
		"  web-disk-0.vmdk  ████░░░░░░░░░░░░░░░  25.0%  500.0 MiB",
		"  web-disk-1.vmdk  █████████░░░░░░░░░░  50.0%  retrying (attempt 2)",
		"  web-disk-2.vmdk  ███████████████████ 100.0%  5 B  kept",
		"  web-file-0.nvram ░░░░░░░░░░░░░░░░░░░   0.0%  waiting",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for width := 1; width < 120; width++ {
		for _, row := range b.exportRows("日本語サーバー日本語サーバー", snapshot(), width) {
			if runewidth.StringWidth(row) > width {
				t.Errorf("%d columns in %d: %q", runewidth.StringWidth(row), width, row)
			}
		}
	}
	if rows := b.exportRows("web", progress.Snapshot{Phase: progress.Preparing}, 79); !slices.Equal(rows, []string{"web  preparing"}) {
		t.Errorf("%q", rows)
	}
}

func TestExportRowsWithoutRoom(t *testing.T) {
	b := &Bars{io: plainIO(&bytes.Buffer{}), files: map[string]*meter{}}
	s := progress.Snapshot{Phase: progress.Exporting}
	for range 30 {
		s.Files = append(s.Files, progress.File{Name: "done.vmdk", State: progress.Done})
	}
	s.Files = append(s.Files, progress.File{Name: "busy.vmdk", State: progress.Downloading})
	if rows := b.exportRows("x", s, 79); !strings.Contains(rows[1], "busy") {
		t.Errorf("the file in transfer is not shown:\n%s", strings.Join(rows, "\n"))
	}
}

func TestMeter(t *testing.T) {
	m := &meter{}
	begin := time.Unix(0, 0)
	file := func(n int64) progress.File {
		return progress.File{Received: n, Position: 4 * n, Capacity: 4000}
	}
	if m.add(begin, file(0)); m.rate() != 0 || m.left(file(0)) >= 0 {
		t.Error("it knows after one sample")
	}
	for i := range int64(21) {
		m.add(begin.Add(time.Duration(i)*time.Second), file(10*i))
	}
	if m.rate() != 10 || m.left(file(200)) != 80*time.Second {
		t.Errorf("rate %d, left %v", m.rate(), m.left(file(200)))
	}
	if len(m.samples) > 12 {
		t.Errorf("%d samples are kept", len(m.samples))
	}
	// The disk starts again.
	m.add(begin.Add(21*time.Second), file(0))
	m.add(begin.Add(22*time.Second), file(5))
	if m.rate() != 5 {
		t.Errorf("rate %d after a new start", m.rate())
	}
}

func TestBarsWithoutTerminal(t *testing.T) {
	var out bytes.Buffer
	b := NewBars(plainIO(&out))
	sink := b.Sink("web")
	sink.Report(progress.Event{Kind: progress.Step, Snapshot: progress.Snapshot{Phase: progress.Preparing}})
	sink.Report(progress.Event{
		Kind: progress.Remark, Level: slog.LevelWarn, Message: "transfer is retried",
		Attrs: []slog.Attr{slog.String("file", "a\x1b[2J")}, Snapshot: progress.Snapshot{Phase: progress.Preparing},
	})
	b.Share("verifying", 1, 2) // quick work says nothing
	b.Say(slog.LevelInfo, "said")
	if _, err := b.Write([]byte("logged\n")); err != nil {
		t.Error(err)
	}
	b.Clear()
	b.Close()
	b.Close()
	got := out.String()
	if strings.Contains(got, "\x1b") {
		t.Errorf("an escape in %q", got)
	}
	if !strings.HasPrefix(got, " INFO     preparing\n WARNING  transfer is retried | file=") || !strings.HasSuffix(got, "\n INFO     said\nlogged\n") ||
		strings.Count(got, "\n") != 4 {
		t.Errorf("got %q", got)
	}
}

// TestRegion draws into a pipe: what matters is how far the cursor goes up.
func TestRegion(t *testing.T) {
	var out bytes.Buffer
	r := Region{io: plainIO(&out)} // 80 by 24
	r.Draw(nil, nil)
	if out.Len() > 0 {
		t.Errorf("nothing is drawn as %q", out.String())
	}
	r.Draw(nil, []string{"one", invert + strings.Repeat("x", 100) + reset})
	want := "\r\x1b[Jone\r\n" + invert + strings.Repeat("x", 78) + "…" + reset + "\r\n"
	if out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
	out.Reset()
	r.Draw([]byte("above\n"), []string{"one"})
	if want := "\x1b[2A\r\x1b[Jabove\none\r\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
	out.Reset()
	r.drawn = []int{200, 10} // drawn before the terminal was made narrower
	r.Draw(nil, slices.Repeat([]string{"x"}, 50))
	if got := out.String(); !strings.HasPrefix(got, "\x1b[4A") || strings.Count(got, "\r\n") != 22 || !strings.Contains(got, "and 29 more") {
		t.Errorf("got %q", got)
	}
}

// TestLive draws bars into a pseudo terminal's place, a file, by force: all
// goroutines end and nothing stays on the screen.
func TestLive(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "screen")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	io := IO{In: strings.NewReader(""), Out: f, Err: f, Getenv: func(string) string { return "" }}
	b := NewBars(io)
	b.live = true
	b.done = make(chan struct{})
	go b.run()
	sink := b.Sink("web")
	sink.Report(progress.Event{Time: time.Now(), Kind: progress.Tick, Snapshot: snapshot()})
	sink.Report(progress.Event{Time: time.Now(), Kind: progress.Remark, Level: slog.LevelWarn, Message: "watch out", Snapshot: snapshot()})
	b.Share("verifying", 1, 2)
	b.Clear()
	b.Say(slog.LevelInfo, "after")
	b.Close()
	got, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"watch out", "after"} {
		if strings.Count(string(got), want) != 1 {
			t.Errorf("%q is not there once in %q", want, got)
		}
	}
	if len(b.region.drawn) > 0 {
		t.Error("bars are left on the screen")
	}
}
