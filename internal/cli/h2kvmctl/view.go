package h2kvmctl

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

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
		return &live{app: a, region: term.NewRegion(a.io), last: map[string]models.Status{}}
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

func (*lines) say(message func()) { message() }
func (*lines) close()             {}

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
	region *term.Region
	jobs   []models.Job // those that have not ended, in the order of their first event
	last   map[string]models.Status
}

func (v *live) event(e models.Event) {
	if e.Log != nil && e.Log.Level == "WARN" {
		v.region.Draw(nil, nil)
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
			v.region.Draw(nil, nil)
			v.app.ended(j)
		}
	case i >= 0:
		v.jobs[i] = j
	default:
		v.jobs = append(v.jobs, j)
	}
}

func (v *live) draw() {
	var rows []term.Row
	for _, j := range busyFirst(v.jobs) {
		label := term.Clean(short(j.ID) + " " + j.Definition.Name)
		p := j.Progress
		if p == nil || j.Status != models.Running {
			rows = append(rows, term.Row{Label: label, Text: string(j.Status)})
			continue
		}
		rows = append(rows, term.Row{Label: label, Percent: p.PercentComplete, Text: jobText(p)})
		if len(v.jobs) > 1 {
			continue // one line each
		}
		for _, f := range p.Files {
			share := 0.0
			if f.Capacity > 0 {
				share = min(100, 100*float64(f.Position)/float64(f.Capacity))
			}
			rows = append(rows, term.Row{Label: "  " + term.Clean(f.Name), Percent: share, Text: fileText(f, share)})
		}
	}
	v.region.Draw(nil, term.Layout(rows, v.app.io.Width()-1))
}

// busyFirst puts what runs before what waits, and that before what has ended:
// there may not be room for all.
func busyFirst(jobs []models.Job) []models.Job {
	order := []models.Status{models.Running, models.Pending, models.Failed, models.Cancelled, models.Completed}
	jobs = slices.Clone(jobs)
	slices.SortStableFunc(jobs, func(a, b models.Job) int {
		return cmp.Or(cmp.Compare(slices.Index(order, a.Status), slices.Index(order, b.Status)), a.CreatedAt.Compare(b.CreatedAt))
	})
	return jobs
}

// jobText says where a job stands, beside its bar.
func jobText(p *models.Progress) string {
	out := []string{fmt.Sprintf("%5.1f%%", p.PercentComplete), term.Size(p.BytesDownloaded)}
	if p.Phase != "exporting" {
		return strings.Join(append(out, term.Clean(p.Phase)), "  ")
	}
	left := time.Duration(-1)
	if d, err := time.ParseDuration(p.EstimatedRemaining); err == nil {
		left = d
	}
	return strings.Join(append(out, term.Rate(p.BytesPerSecond), term.Duration(left)+" left"), "  ")
}

// fileText says where a file stands, beside its bar.
func fileText(f models.FileProgress, share float64) string {
	text := fmt.Sprintf("%5.1f%%  ", share)
	switch {
	case f.State == "retrying":
		return text + fmt.Sprintf("retrying (attempt %d)", f.Attempt)
	case f.State == "downloading" && f.Attempt > 1:
		return text + fmt.Sprintf("%s  attempt %d", term.Size(f.Bytes), f.Attempt)
	case f.State == "downloading":
		return text + term.Size(f.Bytes)
	case f.State == "done", f.State == "kept":
		return text + term.Size(f.Bytes) + "  " + f.State
	}
	return text + term.Clean(f.State)
}

func (v *live) say(message func()) {
	v.region.Draw(nil, nil)
	message()
	v.draw()
}

func (v *live) close() { v.region.Draw(nil, nil) }

// tables shows tables: on a terminal in place of what was shown before, else
// when the state or phase of a job has changed, and progress every lineEvery.
type tables struct {
	app    *app
	region *term.Region
	before string
	states string
	at     time.Time // of the last table off a terminal
}

func (a *app) newTables() *tables { return &tables{app: a, region: term.NewRegion(a.io)} }

// tableFrame is how many lines of a table of jobs are none of its rows.
const tableFrame = 6

// show shows the table of an answer.
func (t *tables) show(resp models.QueryResponse, byID bool) {
	var b bytes.Buffer
	to := *t.app
	to.io.Out = &b
	if !t.app.io.Styled() {
		var states strings.Builder
		for _, j := range resp.Jobs {
			fmt.Fprint(&states, j.ID, j.Status)
			if j.Progress != nil {
				fmt.Fprint(&states, j.Progress.Phase)
			}
		}
		if states.String() == t.states && time.Since(t.at) < lineEvery {
			return
		}
		to.printJobs(resp, byID)
		if b.String() != t.before {
			t.before, t.states, t.at = b.String(), states.String(), time.Now()
			fmt.Fprint(t.app.io.Out, t.before)
		}
		return
	}
	if len(resp.Jobs)+tableFrame > t.app.io.Height() {
		resp.Jobs = busyFirst(resp.Jobs)
	}
	to.io.Columns = t.app.io.Width() - 1 // the last one stays empty, as lines that are drawn again need it
	to.printJobs(resp, byID)
	t.region.Draw(nil, strings.Split(strings.TrimRight(b.String(), "\n"), "\n"))
}

// say prints a message over the table.
func (t *tables) say(message func()) {
	t.region.Draw(nil, nil)
	message()
}
