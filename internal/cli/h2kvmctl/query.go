package h2kvmctl

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/hyper2kvm/hyper2kvm/daemon/client"
	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/exit"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/term"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

// Widths of the table's columns that hold free text.
const (
	nameWidth = 24
	pathWidth = 40
	// withStart and withPath are how many columns a table with the times of the
	// starts takes, and one with the paths.
	withStart = 90
	withPath  = 72
)

// watchEvery is the shortest time between two looks of query -watch.
const watchEvery = 500 * time.Millisecond

// unheard is after how many times watchEvery query -watch looks again though no
// event came.
const unheard = 10

func (a *app) queryCommand() *cli.Command {
	return &cli.Command{
		Name:      "query",
		Usage:     "show jobs",
		UsageText: "h2kvmctl query -id ID[,ID]\nh2kvmctl query -all [-limit N]\nh2kvmctl query -status running,pending",
		Description: "An unambiguous beginning of an id is enough. For one job asked for with -id, a word that\n" +
			"names another final status than the job's own is shortened wherever names and texts hold it, so\n" +
			"that scripts can search the output for the status; -json has everything as it is.",
		Flags: []cli.Flag{
			idFlag("`ID[,ID]` of the jobs"),
			&cli.BoolFlag{Name: "all", Usage: "all jobs"},
			&cli.StringFlag{Name: "status", OnlyOnce: true, Usage: "jobs in the states `STATUS[,STATUS]`: " + strings.Join(statusNames(), ", ")},
			&cli.IntFlag{Name: "limit", OnlyOnce: true, Usage: "the newest `N` only; 0 is no limit", HideDefault: true},
			&cli.BoolFlag{Name: "watch", Usage: "show them again when they change, until all have ended"},
		},
		Action:        a.query,
		ShellComplete: a.complete,
	}
}

func (a *app) query(ctx context.Context, cmd *cli.Command) error {
	q, err := queryRequest(cmd)
	if err != nil {
		return err
	}
	watch := cmd.Bool("watch")
	if watch && a.json {
		return exit.UsageError(errors.New("-watch does not go together with -json"), "use `"+name+" watch -id ID -json`")
	}
	c, err := a.client(cmd)
	if err != nil {
		return err
	}
	defer c.Close()
	if watch {
		return a.watchQuery(ctx, c, func(ctx context.Context) (models.QueryResponse, error) { return c.Query(ctx, q) }, len(q.JobIDs) > 0)
	}
	resp, err := c.Query(ctx, q)
	if err != nil {
		return err
	}
	if a.json {
		return a.io.JSON(resp)
	}
	a.printJobs(resp, len(q.JobIDs) > 0)
	return nil
}

func queryRequest(cmd *cli.Command) (models.QueryRequest, error) {
	q := models.QueryRequest{All: cmd.Bool("all"), Limit: cmd.Int("limit")}
	if err := exit.NoArguments(cmd, "give job ids as -id ID[,ID]"); err != nil {
		return q, err
	}
	if cmd.IsSet("id") {
		var err error
		if q.JobIDs, err = ids(cmd); err != nil {
			return q, err
		}
	}
	for s := range strings.SplitSeq(cmd.String("status"), ",") {
		if s = strings.ToLower(strings.TrimSpace(s)); s == "" {
			continue
		}
		if !models.Status(s).Valid() {
			return q, exit.Unknown("status", s, statusNames())
		}
		q.Status = append(q.Status, models.Status(s))
	}
	switch {
	case q.All && q.JobIDs != nil:
		return q, exit.UsageError(errors.New("give either -id or -all"), "see "+name+" query -help")
	case !q.All && q.JobIDs == nil && q.Status == nil:
		return q, exit.UsageError(errors.New("which jobs was not said"), "give -id ID[,ID], -all or -status")
	case q.Limit < 0:
		return q, exit.UsageError(fmt.Errorf("-limit is %d", q.Limit), "give 0 for no limit")
	}
	return q, nil
}

// printJobs prints the table of jobs. ByID says that ids were asked for: then
// why a job failed is told as well, and for one job the fixed words are
// guarded.
func (a *app) printJobs(resp models.QueryResponse, byID bool) {
	guarded := byID && len(resp.Jobs) == 1
	now := time.Now()
	rows := make([][]string, len(resp.Jobs))
	for i, j := range resp.Jobs {
		cells := []string{short(j.ID), j.Definition.Name, j.Definition.VMPath, string(j.Status), progressOf(j), clock(j.StartedAt, now)}
		if guarded {
			for c, text := range cells {
				if c != 3 {
					cells[c] = guard(text, j.Status)
				}
			}
		}
		rows[i] = cells
	}
	a.io.Heading("Jobs")
	if len(rows) > 0 {
		head, limits := []string{"Job ID", "Name", "VM Path", "Status", "Progress", "Started"}, []int{term.Whole, nameWidth, pathWidth, term.Whole, term.Whole, term.Whole}
		// What tells least goes first where there is no room.
		if w := a.io.TableWidth(); w > 0 && w < withStart {
			drop(5, &head, &limits, rows)
			if w < withPath {
				drop(2, &head, &limits, rows)
			}
		}
		a.io.Table(head, rows, limits...)
	}
	if byID {
		for _, j := range resp.Jobs {
			if j.Error == "" || j.Status != models.Failed && j.Status != models.Cancelled {
				continue
			}
			text := term.Clean(j.Error)
			if guarded {
				fmt.Fprintf(a.io.Out, "Error: %s\n", guard(text, j.Status))
				continue
			}
			fmt.Fprintf(a.io.Out, "Error of job %s: %s\n", short(j.ID), text)
		}
	}
	a.io.Success("Found %d job(s)", len(resp.Jobs))
	if resp.Total > len(resp.Jobs) {
		a.io.Info("These are the newest of %d", resp.Total)
	}
}

// drop takes a column out of a table.
func drop(column int, head *[]string, limits *[]int, rows [][]string) {
	*head = slices.Delete(*head, column, column+1)
	*limits = slices.Delete(*limits, column, column+1)
	for i := range rows {
		rows[i] = slices.Delete(rows[i], column, column+1)
	}
}

// fixedWords are those by which scripts tell how a job ended.
var fixedWords = regexp.MustCompile(`(?i)completed|failed|cancelled`)

// guard shortens each of the fixed words in text that is not the job's status,
// as in "fail…-over-db": scripts look for them anywhere in the output.
func guard(text string, status models.Status) string {
	return fixedWords.ReplaceAllStringFunc(term.Clean(text), func(word string) string {
		if strings.EqualFold(word, string(status)) {
			return word
		}
		return word[:4] + "…"
	})
}

func progressOf(j models.Job) string {
	switch {
	case j.Status == models.Completed:
		return "100.0%"
	case j.Progress != nil && j.Progress.Phase != "":
		return fmt.Sprintf("%s (%.1f%%)", j.Progress.Phase, j.Progress.PercentComplete)
	case j.Status == models.Running:
		return "starting"
	}
	return "-"
}

// clock is the local time of day, with the day when it is another than now's.
func clock(t *time.Time, now time.Time) string {
	if t == nil {
		return "-"
	}
	local, today := t.Local(), now.Local()
	if local.YearDay() == today.YearDay() && local.Year() == today.Year() {
		return local.Format(time.TimeOnly)
	}
	return local.Format("2006-01-02 15:04")
}

// await returns at the first change, or after so many ticks; with an error when
// ctx ends.
func await(ctx context.Context, changed <-chan struct{}, tick <-chan time.Time, ticks int) error {
	for range ticks {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
			return nil
		case <-tick:
		}
	}
	return nil
}

// watchQuery shows the jobs again and again until all have ended: on a
// terminal in place, else each time that something has changed. It asks when
// the daemon's events tell of a change, and goes on after a restart of the
// daemon as the event stream does.
func (a *app) watchQuery(ctx context.Context, c *client.Client, query func(context.Context) (models.QueryResponse, error), byID bool) error {
	parent := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := func() error {
		if parent.Err() != nil {
			if a.io.Styled() {
				fmt.Fprintln(a.io.Out) // the terminal shows ^C
			}
			return &exit.Error{Code: exit.Interrupted} // there is nothing to say
		}
		return context.Cause(ctx)
	}
	changed := make(chan struct{}, 1)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel(nil)
	watching.Go(func() {
		err := c.Watch(ctx, "", 0, func(models.Event) error {
			select {
			case changed <- struct{}{}:
			default:
			}
			return nil
		})
		cancel(err)
	})
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	tables := a.newTables()
	away := false
	for {
		resp, err := query(ctx)
		// While the daemon is away the event stream decides how long to wait.
		gone := problem.KindOf(err) == problem.Unreachable
		switch {
		case err != nil && ctx.Err() != nil:
			return ended()
		case err != nil && !gone:
			return err
		case gone != away:
			tables.say(func() { a.tellAway(err) })
		}
		if away = gone; !away {
			tables.show(resp, byID)
			if !slices.ContainsFunc(resp.Jobs, func(j models.Job) bool { return !j.Status.Final() }) {
				return nil
			}
		}
		// A pause first: progress comes twice a second from each job. Then what
		// ended between the answer and the beginning of the stream is not told.
		for _, wait := range []struct {
			changed <-chan struct{}
			ticks   int
		}{{nil, 1}, {changed, unheard}} {
			if err := await(ctx, wait.changed, tick.C, wait.ticks); err != nil {
				return ended()
			}
		}
	}
}
