package term

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/mattn/go-runewidth"

	"github.com/hyper2kvm/hyper2kvm/internal/logging"
	"github.com/hyper2kvm/hyper2kvm/progress"
)

const (
	// meterWindow is how far back the rate of one file looks.
	meterWindow = 10 * time.Second
	// maxAbove bounds, in bytes, what waits for a terminal that takes nothing.
	maxAbove = 1 << 20
	// The widths in columns of a bar row's parts.
	minLabel, maxLabel = 10, 30
	minBar, maxBar     = 5, 30
)

// Bars shows the progress of long work. On a terminal it draws bars in place,
// by a goroutine of its own, so that a terminal that is held (Ctrl-S) holds
// nothing else. Elsewhere it writes plain lines, few of them. All methods are
// safe for concurrent use.
type Bars struct {
	io   IO
	live bool

	mu    sync.Mutex
	above []byte                   // whole lines that are yet to be written above the bars
	rows  func(width int) []string // what the bars show; nil is nothing
	said  string                   // last remark that has no line of its own
	files map[string]*meter        // by name
	share struct{ at time.Time }   // of the last plain line of Share

	drawing sync.Mutex
	region  Region // guarded by drawing

	wake, stop, done chan struct{}
	once             sync.Once
}

// NewBars shows progress on io.Out. Close must be called.
func NewBars(io IO) *Bars {
	b := &Bars{
		io: io, live: io.Styled(), region: Region{io: io},
		files: map[string]*meter{},
		wake:  make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
	}
	if b.live {
		go b.run()
	} else {
		close(b.done)
	}
	return b
}

func (b *Bars) run() {
	defer close(b.done)
	for {
		select {
		case <-b.stop:
			return
		case <-b.wake:
			b.draw()
		}
	}
}

func (b *Bars) draw() {
	b.drawing.Lock()
	defer b.drawing.Unlock()
	b.mu.Lock()
	above := b.above
	b.above = nil
	var rows []string
	if b.rows != nil {
		rows = b.rows(b.io.Width() - 1)
	}
	b.mu.Unlock()
	b.region.Draw(above, rows)
}

// changed has the bars drawn soon.
func (b *Bars) changed() {
	select {
	case b.wake <- struct{}{}:
	default: // it will be
	}
}

// Clear takes the bars off the screen, and returns when that is done.
func (b *Bars) Clear() {
	b.mu.Lock()
	b.rows, b.said = nil, ""
	clear(b.files)
	b.mu.Unlock()
	if b.live {
		b.draw()
	}
}

// Close takes the bars off the screen and ends them. It may be called again.
func (b *Bars) Close() {
	b.once.Do(func() { close(b.stop) })
	<-b.done
	b.Clear()
}

// Say writes a line above the bars: an INFO below slog.LevelWarn, else a
// WARNING.
func (b *Bars) Say(level slog.Level, text string) {
	var line bytes.Buffer
	to := b.io
	to.Out = &line
	badge := to.plainBadge
	if b.live {
		badge = to.styledBadge
	}
	if level >= slog.LevelWarn {
		badge(yellow, "WARNING", text)
	} else {
		badge(cyan, "INFO", text)
	}
	_, _ = b.Write(line.Bytes()) // it has no errors
}

// Write is for a log that shares the terminal: p, which must be whole lines,
// goes above the bars.
func (b *Bars) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.live {
		return b.io.Out.Write(p)
	}
	if len(b.above)+len(p) <= maxAbove {
		b.above = append(b.above, p...)
	}
	b.changed()
	return len(p), nil
}

// Sink shows one export, by the name of title.
func (b *Bars) Sink(title string) progress.Sink {
	if b.live {
		return progress.SinkFunc(func(e progress.Event) { b.event(Clean(title), e) })
	}
	return progress.NewLines(progress.LineFormat{
		Print: b.Say, Size: Size, Duration: Duration, Attrs: logging.Attrs,
	})
}

func (b *Bars) event(title string, e progress.Event) {
	text := ""
	if e.Kind == progress.Remark {
		text = progress.RemarkText(e, logging.Attrs)
	}
	if e.Level >= slog.LevelWarn && text != "" {
		b.Say(e.Level, text)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if text != "" && e.Level < slog.LevelWarn {
		b.said = text
	}
	for _, f := range e.Snapshot.Files {
		m := b.files[f.Name]
		if m == nil {
			m = &meter{}
			b.files[f.Name] = m
		}
		m.add(e.Time, f)
	}
	s := e.Snapshot
	b.rows = func(width int) []string { return b.exportRows(title, s, width) }
	b.changed()
}

// Share shows work that is counted in bytes, done of total.
func (b *Bars) Share(label string, done, total int64) {
	percent := 100.0
	if total > 0 {
		percent = min(100, 100*float64(done)/float64(total))
	}
	text := fmt.Sprintf("%5.1f%%  %s of %s", percent, Size(done), Size(total))
	if !b.live {
		b.mu.Lock()
		now := time.Now()
		first := b.share.at.IsZero()
		due := now.Sub(b.share.at) >= meterWindow
		if first || due {
			b.share.at = now
		}
		b.mu.Unlock()
		if due && !first {
			b.Say(slog.LevelInfo, label+": "+strings.TrimSpace(text))
		}
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rows = func(width int) []string {
		return Layout([]Row{{Clean(label), percent, text}}, width)
	}
	b.changed()
}

// Row is one bar: what it is of, how far that is, and what else there is to
// say of it.
type Row struct {
	Label   string
	Percent float64
	Text    string
}

// exportRows gives one bar for the whole and one for each file. Where there is
// no room for all, files in transfer come first.
func (b *Bars) exportRows(title string, s progress.Snapshot, width int) []string {
	if len(s.Files) == 0 {
		text := title + "  " + string(s.Phase)
		if b.said != "" {
			text += ": " + b.said
		}
		return []string{Shorten(Clean(text), width)}
	}
	whole := []string{fmt.Sprintf("%5.1f%%", s.Percent), Size(s.Received)}
	if s.Phase == progress.Exporting || s.Phase == progress.Converting {
		whole = append(whole, Rate(s.BytesPerSecond), left(s.Remaining))
	} else {
		whole = append(whole, string(s.Phase))
	}
	rows := []Row{{title, s.Percent, strings.Join(whole, "  ")}}
	fits := len(s.Files) < b.io.Height()-2
	var idle []Row
	for _, f := range s.Files {
		percent := 0.0
		if f.Capacity > 0 {
			percent = min(100, 100*float64(f.Position)/float64(f.Capacity))
		}
		r := Row{"  " + Clean(f.Name), percent, b.fileText(f, percent)}
		switch {
		case fits, f.State == progress.Downloading, f.State == progress.Retrying, f.State == progress.Checking, f.State == progress.Broken:
			rows = append(rows, r)
		default:
			idle = append(idle, r)
		}
	}
	return Layout(append(rows, idle...), width)
}

func (b *Bars) fileText(f progress.File, percent float64) string {
	text := fmt.Sprintf("%5.1f%%  ", percent)
	switch f.State {
	case progress.Downloading:
		text += Size(f.Received)
		if m := b.files[f.Name]; m != nil {
			text += "  " + Rate(m.rate()) + "  " + left(m.left(f))
		}
	case progress.Retrying:
		text += fmt.Sprintf("retrying (attempt %d)", f.Attempt)
	case progress.Done:
		text += Size(f.Received) + "  done"
	case progress.Kept:
		text += Size(f.Received) + "  kept"
	default:
		text += string(f.State)
	}
	return text
}

func left(d time.Duration) string {
	if d < 0 {
		return "-- left"
	}
	return Duration(d) + " left"
}

// Layout gives rows of at most width columns: labels, bars and texts stand
// below each other. Where there is little room the bars go first. Labels and
// texts must be clean.
func Layout(rows []Row, width int) []string {
	label, text := minLabel, 0
	for _, r := range rows {
		label = max(label, runewidth.StringWidth(r.Label))
		text = max(text, runewidth.StringWidth(r.Text))
	}
	label = min(label, maxLabel, max(minLabel, width-text-minBar-3))
	bar := min(maxBar, width-label-text-3)
	out := make([]string, len(rows))
	for i, r := range rows {
		line := Pad(shortenMiddle(r.Label, label), label) + " "
		if bar >= minBar {
			full := min(bar, max(0, int(r.Percent/100*float64(bar))))
			line += strings.Repeat("█", full) + strings.Repeat("░", bar-full) + " "
		}
		out[i] = Shorten(line+r.Text, width)
	}
	return out
}

// suffixes end the names of a VM's disks, which differ in front of them.
var suffixes = []string{".qcow2", ".vmdk", ".raw"}

// shortenMiddle cuts s to width columns and keeps its end, where disks of one
// VM differ.
func shortenMiddle(s string, width int) string {
	have := runewidth.StringWidth(s)
	if have <= width {
		return s
	}
	tail := min(width*2/3, 12)
	for _, suffix := range suffixes {
		if name, ok := strings.CutSuffix(s, suffix); ok && tail < len(suffix)+2 {
			return shortenMiddle(name, width) // else it would be the whole end
		}
	}
	head := width - tail - 1
	return runewidth.Truncate(s, head, "") + "…" + runewidth.TruncateLeft(s, have-tail, "")
}

// meter measures one file's rate.
type meter struct{ samples []fileSample }

type fileSample struct {
	at                 time.Time
	received, position int64
}

// add takes a sample; one that falls behind the last begins anew, because the
// transfer did.
func (m *meter) add(at time.Time, f progress.File) {
	n := len(m.samples)
	if n > 0 && (f.Received < m.samples[n-1].received || f.Position < m.samples[n-1].position) {
		m.samples, n = m.samples[:0], 0
	}
	if n > 0 && at.Sub(m.samples[n-1].at) < meterWindow/100 {
		return
	}
	m.samples = append(m.samples, fileSample{at, f.Received, f.Position})
	old := 0
	for old < len(m.samples)-1 && at.Sub(m.samples[old].at) > meterWindow {
		old++
	}
	m.samples = m.samples[old:]
}

// span gives the first and last sample, and the seconds between them; 0 when
// there are none.
func (m *meter) span() (first, last fileSample, seconds float64) {
	if len(m.samples) < 2 {
		return first, last, 0
	}
	first, last = m.samples[0], m.samples[len(m.samples)-1]
	return first, last, last.at.Sub(first.at).Seconds()
}

// rate is the recent rate in bytes of the stream per second.
func (m *meter) rate() int64 {
	first, last, seconds := m.span()
	if seconds <= 0 {
		return 0
	}
	return int64(float64(last.received-first.received) / seconds)
}

// left is the estimated time until the position is at the disk's end;
// negative while unknown.
func (m *meter) left(f progress.File) time.Duration {
	first, last, seconds := m.span()
	moved := last.position - first.position
	if seconds <= 0 || moved <= 0 || f.Capacity <= 0 {
		return -1
	}
	rest := max(0, f.Capacity-f.Position)
	s := float64(rest) / (float64(moved) / seconds)
	if s > float64(1<<62)/float64(time.Second) {
		return -1
	}
	return time.Duration(s * float64(time.Second))
}
