package progress

import (
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"
)

func TestLines(t *testing.T) {
	var got []string
	lines := NewLines(LineFormat{
		Print:    func(l slog.Level, text string) { got = append(got, l.String()+" "+text) },
		Size:     func(n int64) string { return fmt.Sprintf("%dB", n) },
		Duration: time.Duration.String,
		Attrs:    func(a []slog.Attr) string { return fmt.Sprint(a) },
	})
	begin := time.Unix(1000, 0)
	report := func(after time.Duration, e Event) {
		e.Time = begin.Add(after)
		lines.Report(e)
	}
	at := func(percent float64) Snapshot {
		return Snapshot{Phase: Exporting, Percent: percent, Received: int64(percent), BytesPerSecond: 5, Remaining: 90 * time.Second}
	}
	report(0, Event{Kind: Step, Level: slog.LevelDebug, Message: "phase", Snapshot: Snapshot{Phase: Preparing}})
	report(0, Event{Kind: Remark, Level: slog.LevelInfo, Message: "found VM", Attrs: []slog.Attr{slog.String("vm", "x")}, Snapshot: Snapshot{Phase: Preparing}})
	report(0, Event{Kind: Remark, Level: slog.LevelDebug, Message: "not for people", Snapshot: Snapshot{Phase: Preparing}})
	report(time.Second, Event{Kind: Tick, Snapshot: at(0)})
	report(2*time.Second, Event{Kind: Tick, Snapshot: at(50)})    // much, but too soon
	report(11*time.Second, Event{Kind: Tick, Snapshot: at(9.9)})  // too little
	report(12*time.Second, Event{Kind: Tick, Snapshot: at(10)})   // enough
	report(71*time.Second, Event{Kind: Tick, Snapshot: at(10.5)}) // too little
	unknown := at(10.5)
	unknown.Remaining, unknown.BytesPerSecond = -1, 0
	report(72*time.Second, Event{Kind: Tick, Snapshot: unknown}) // a minute is over
	report(73*time.Second, Event{Kind: Remark, Level: slog.LevelError, Message: "panic", Attrs: []slog.Attr{slog.String("stack", "goroutine 1")}, Snapshot: at(11)})
	report(74*time.Second, Event{Kind: Tick, Snapshot: Snapshot{Phase: Finalizing}})
	want := []string{
		"INFO preparing", "INFO found VM | [vm=x]", "INFO exporting",
		"INFO exporting: 10.0%, 10B, 5B/s, 1m30s left", "INFO exporting: 10.5%, 10B",
		"ERROR panic", "INFO finalizing",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
}
