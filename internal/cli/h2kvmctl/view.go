package h2kvmctl

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/mattn/go-runewidth"
	xterm "golang.org/x/term"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/term"
)

// Plain progress lines of one job come at most every lineEvery: one when
// lineStep percent have been done since the last, or after lineLatest.
const (
	lineEvery  = 10 * time.Second
	lineLatest = time.Minute
	lineStep   = 10
)

// newView gives the view that suits standard output.
func (a *app) newView() view {
	if a.io.Styled() {
		return &live{app: a, region: region{io: a.io}, last: map[string]models.Status{}}
	}
	return &lines{app: a, jobs: map[string]*lineState{}}
}

// lines is the view where the cursor cannot be moved: one line for each change
// of state, and progress now and then.
type lines struct {
	app  *app
	jobs map[string]*lineState
}

type lineState struct {
	status  models.Status
	phase   string
	percent float64
	at      time.Time // of the last line
}

func (l *lines) event(e models.Event) {
	if e.Log != nil {
		l.app.warning(e)
	}
	if e.Job == nil {
		return
	}
	j := *e.Job
	s := l.jobs[j.ID]
	if s == nil {
		s = &lineState{}
		l.jobs[j.ID] = s
	}
	if s.status != j.Status {
		s.status = j.Status
		if j.Status.Final() {
			l.app.ended(j)
			return
		}
		l.app.io.Info("%s is %s", title(j), j.Status)
		s.at = time.Now()
	}
	p := j.Progress
	if p == nil || j.Status != models.Running {
		return
	}
	since := time.Since(s.at)
	if p.Phase == s.phase && (since < lineEvery || p.PercentComplete < s.percent+lineStep && since < lineLatest) {
		return
	}
	s.phase, s.percent, s.at = p.Phase, p.PercentComplete, time.Now()
	l.app.io.Info("%s: %s", title(j), strings.Join(facts(p), ", "))
}

func (*lines) close() {}

// title names a job for people.
func title(j models.Job) string {
	if j.Definition.Name == "" {
		return "Job " + short(j.ID)
	}
	return fmt.Sprintf("Job %s (%s)", short(j.ID), j.Definition.Name)
}

// facts says where a job stands: phase, share, amount, rate, time left.
func facts(p *models.Progress) []string {
	out := []string{p.Phase, fmt.Sprintf("%.1f%%", p.PercentComplete)}
	if p.BytesDownloaded > 0 {
		out = append(out, term.Size(p.BytesDownloaded))
	}
	if p.BytesPerSecond > 0 {
		out = append(out, term.Rate(p.BytesPerSecond))
	}
	if left, err := time.ParseDuration(p.EstimatedRemaining); err == nil && left > 0 {
		out = append(out, term.Duration(left)+" left")
	}
	return out
}

// warning shows a log line that a person should see while watching. How a job
// ends is told by its state, not by the log lines about it.
func (a *app) warning(e models.Event) {
	if e.Log.Level != "WARN" || e.Log.Message == "job cancelled" {
		return
	}
	text := e.Log.Message
	if e.Log.Attrs != "" {
		text += " | " + e.Log.Attrs
	}
	a.io.Warn("Job %s: %s", short(e.JobID), text)
}

// ended says how a job ended: a failure or cancellation on standard error.
func (a *app) ended(j models.Job) {
	if j.Status != models.Completed {
		text := fmt.Sprintf("%s %s", title(j), j.Status)
		if j.Error != "" {
			text += ": " + j.Error
		}
		a.fail(text)
		return
	}
	r := j.Result
	if r == nil {
		a.io.Success("%s completed", title(j))
		return
	}
	took := ""
	if d, err := time.ParseDuration(r.Duration); err == nil {
		took = " in " + term.Duration(d)
	}
	a.io.Success("%s completed: %d file(s), %s%s", title(j), len(r.Files), term.Size(r.TotalSize), took)
	if r.OVFPath != "" {
		a.io.Info("OVF: %s", r.OVFPath)
	} else if r.OutputDir != "" {
		a.io.Info("Folder: %s", r.OutputDir)
	}
	for _, w := range r.Warnings {
		a.io.Warn("%s", w)
	}
}

// live is the view on a terminal: bars that are drawn again in place.
type live struct {
	app    *app
	region region
	jobs   []models.Job // those that have not ended, in the order of their first event
	last   map[string]models.Status
}

func (v *live) event(e models.Event) {
	if e.Log != nil && e.Log.Level == "WARN" {
		v.region.erase()
		v.app.warning(e)
	}
	if e.Job != nil {
		v.take(*e.Job)
	}
	v.draw()
}

func (v *live) take(j models.Job) {
	i := slices.IndexFunc(v.jobs, func(o models.Job) bool { return o.ID == j.ID })
	ended := j.Status.Final() && !v.last[j.ID].Final()
	v.last[j.ID] = j.Status
	switch {
	case j.Status.Final():
		if i >= 0 {
			v.jobs = slices.Delete(v.jobs, i, i+1)
		}
		if ended {
			v.region.erase()
			v.app.ended(j)
		}
	case i >= 0:
		v.jobs[i] = j
	default:
		v.jobs = append(v.jobs, j)
	}
}

// Widths of the live view's parts, in columns.
const (
	labelWidth = 26
	barWidth   = 24
)

func (v *live) draw() {
	var out []string
	for _, j := range v.jobs {
		label := short(j.ID) + " " + j.Definition.Name
		p := j.Progress
		if p == nil || j.Status != models.Running {
			out = append(out, row(label, 0, string(j.Status)))
			continue
		}
		out = append(out, row(label, p.PercentComplete, strings.Join(facts(p), "  ")))
		if len(v.jobs) > 1 {
			continue // one line each
		}
		for _, f := range p.Files {
			share := 0.0
			if f.Capacity > 0 {
				share = 100 * float64(f.Position) / float64(f.Capacity)
			}
			state := f.State
			if f.Attempt > 1 {
				state += fmt.Sprintf(" (attempt %d)", f.Attempt)
			}
			out = append(out, row("  "+f.Name, share, state))
		}
	}
	v.region.draw(out)
}

func (v *live) close() { v.region.erase() }

// row is one line of the live view: label, bar, facts.
func row(label string, percent float64, text string) string {
	full := int(percent / 100 * barWidth)
	full = min(barWidth, max(0, full))
	return term.Pad(term.Shorten(term.Clean(label), labelWidth), labelWidth) +
		" " + strings.Repeat("█", full) + strings.Repeat("░", barWidth-full) + "  " + term.Clean(text)
}

// region is the lines at the bottom of a terminal that are drawn again in
// place. Between two calls the cursor stands below them and is never hidden,
// so that there is nothing to restore when the process dies.
type region struct {
	io     term.IO
	widths []int // of the lines that are drawn
}

// draw replaces what the region shows. Lines are cut to the terminal's width,
// because a wrapped one would be counted wrong, and their number to its
// height.
func (r *region) draw(text []string) {
	width, height := r.io.Width(), 24
	if f, ok := r.io.Out.(*os.File); ok {
		if _, h, err := xterm.GetSize(int(f.Fd())); err == nil && h > 0 {
			height = h
		}
	}
	if most := max(1, height-2); len(text) > most {
		text = append(text[:most-1:most-1], fmt.Sprintf("and %d more", len(text)-most+1))
	}
	var b bytes.Buffer
	rows := 0
	for _, w := range r.widths {
		// One that was drawn before the terminal became narrower is wrapped now.
		rows += 1 + max(0, w-1)/width
	}
	if rows > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\r", rows)
	}
	r.widths = r.widths[:0]
	for _, line := range text {
		line = term.Shorten(line, width-1)
		r.widths = append(r.widths, runewidth.StringWidth(line))
		fmt.Fprintf(&b, "%s\x1b[K\n", line)
	}
	b.WriteString("\x1b[J")
	// In one piece, so that nothing flickers.
	fmt.Fprint(r.io.Out, b.String())
}

// erase takes the region off the screen.
func (r *region) erase() {
	if len(r.widths) > 0 {
		r.draw(nil)
	}
}

// newTables gives a function that shows what table prints: on a terminal in
// place of what was shown before, else when it has changed.
func (a *app) newTables() func(table func(*app)) {
	reg := region{io: a.io}
	before := ""
	return func(table func(*app)) {
		var b bytes.Buffer
		to := *a
		to.io.Out = &b
		table(&to)
		if a.io.Styled() {
			reg.draw(strings.Split(strings.TrimRight(b.String(), "\n"), "\n"))
			return
		}
		if b.String() != before {
			before = b.String()
			fmt.Fprint(a.io.Out, before)
		}
	}
}
