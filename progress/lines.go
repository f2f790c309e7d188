package progress

import (
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// Between two lines with numbers at least lineEvery passes; then one comes
// when lineStep percent have been done since the last, or after lineLatest.
const (
	lineEvery  = 10 * time.Second
	lineLatest = time.Minute
	lineStep   = 10.0
)

// LineFormat is how Lines writes what it reports. All of it is required.
type LineFormat struct {
	// Print writes one line, without a line feed at its end.
	Print    func(level slog.Level, text string)
	Size     func(bytes int64) string
	Duration func(time.Duration) string
	// Attrs writes the details of a remark.
	Attrs func([]slog.Attr) string
}

// Lines is a Sink that writes plain lines: one for each phase and remark, and
// the numbers now and then. It is used by one goroutine at a time.
type Lines struct {
	format  LineFormat
	phase   Phase
	percent float64
	at      time.Time // of the last line with numbers, or of the phase's
}

// NewLines returns a Sink that writes with format.
func NewLines(format LineFormat) *Lines { return &Lines{format: format} }

// Report is part of Sink.
func (l *Lines) Report(e Event) {
	s := e.Snapshot
	if s.Phase != l.phase {
		l.phase, l.percent, l.at = s.Phase, s.Percent, e.Time
		l.format.Print(slog.LevelInfo, string(s.Phase))
	}
	if e.Kind == Remark && e.Level >= slog.LevelInfo {
		l.format.Print(e.Level, RemarkText(e, l.format.Attrs))
	}
	since := e.Time.Sub(l.at)
	if s.Phase != Exporting || since < lineEvery || s.Percent < l.percent+lineStep && since < lineLatest {
		return
	}
	l.percent, l.at = s.Percent, e.Time
	l.format.Print(slog.LevelInfo, l.numbers(s))
}

// RemarkText is a remark on one line: its message, and its details as attrs
// writes them. A stack, which is for logs, is left out.
func RemarkText(e Event, attrs func([]slog.Attr) string) string {
	var shown []slog.Attr
	for _, a := range e.Attrs {
		if a.Key != "stack" {
			shown = append(shown, a)
		}
	}
	if len(shown) == 0 {
		return e.Message
	}
	return e.Message + " | " + attrs(shown)
}

func (l *Lines) numbers(s Snapshot) string {
	parts := []string{fmt.Sprintf("%.1f%%", s.Percent), l.format.Size(s.Received)}
	if s.BytesPerSecond > 0 {
		parts = append(parts, l.format.Size(s.BytesPerSecond)+"/s")
	}
	if s.Remaining > 0 {
		parts = append(parts, l.format.Duration(s.Remaining)+" left")
	}
	return string(s.Phase) + ": " + strings.Join(parts, ", ")
}
