package h2kvmctl

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/urfave/cli/v3"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/exit"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/term"
)

func (a *app) limitsCommand() *cli.Command {
	return &cli.Command{
		Name:      "limits",
		Usage:     "show what bounds the daemon's work, or change it",
		UsageText: "h2kvmctl limits\n" + "h2kvmctl limits -bandwidth 200MB/s -streams-per-host 4\n" + "h2kvmctl limits -id ID[,ID] -bandwidth 20MB/s",
		Description: "A change holds until the next one, or until the daemon reads its configuration again.\n" +
			"Jobs and streams that run already run to their end; a bandwidth counts at once.\n" +
			"With -id the bandwidth is that of running jobs.",
		Flags: []cli.Flag{
			idFlag("`ID[,ID]` of running jobs whose bandwidth is meant"),
			&cli.StringFlag{Name: "bandwidth", OnlyOnce: true, Usage: "take at most `RATE`, such as 50MB/s; 0 is no limit"},
			&cli.IntFlag{Name: "max-running-jobs", OnlyOnce: true, HideDefault: true, Usage: fmt.Sprintf("run `N` jobs at once, 1 to %d", models.MaxRunningJobs)},
			&cli.IntFlag{Name: "streams-per-host", OnlyOnce: true, HideDefault: true, Usage: "open `N` streams of one ESXi host at once; 0 is no limit"},
			&cli.IntFlag{Name: "max-streams", OnlyOnce: true, HideDefault: true, Usage: "open `N` streams at once in all; 0 is no limit"},
		},
		Action:        a.limits,
		ShellComplete: a.complete,
	}
}

func (a *app) limits(ctx context.Context, cmd *cli.Command) error {
	if err := exit.NoArguments(cmd, "see "+name+" limits -help"); err != nil {
		return err
	}
	request, change, err := limitsRequest(cmd)
	if err != nil {
		return err
	}
	c, err := a.client(cmd)
	if err != nil {
		return err
	}
	defer c.Close()
	var l models.Limits
	if change {
		l, err = c.ChangeLimits(ctx, request)
	} else {
		l, err = c.Limits(ctx)
	}
	if err != nil {
		return err
	}
	if a.json {
		return a.io.JSON(l)
	}
	a.showLimits(l)
	if !change {
		a.io.Success("Retrieved limits")
		return nil
	}
	if n := len(request.JobIDs); n > 0 {
		a.io.Success("Changed the bandwidth of %d job(s)", n)
	}
	if request.MaxRunningJobs != nil || request.StreamsPerHost != nil || request.MaxStreams != nil || request.Bandwidth != nil {
		a.io.Success("Changed limits, until the daemon reads its configuration again")
	}
	return nil
}

// limitsRequest reads the flags; change is false when none was given.
func limitsRequest(cmd *cli.Command) (r models.LimitsRequest, change bool, err error) {
	const advice = "see " + name + " limits -help"
	for flag, to := range map[string]**int{"max-running-jobs": &r.MaxRunningJobs, "streams-per-host": &r.StreamsPerHost, "max-streams": &r.MaxStreams} {
		if cmd.IsSet(flag) {
			*to, change = new(cmd.Int(flag)), true
		}
	}
	var rate *models.Bandwidth
	if cmd.IsSet("bandwidth") {
		b, err := models.ParseBandwidth(cmd.String("bandwidth"))
		if err != nil {
			return r, false, exit.UsageError(fmt.Errorf("-bandwidth %.40q %w", cmd.String("bandwidth"), err), "give it as -bandwidth 50MB/s")
		}
		rate, change = &b, true
	}
	if cmd.IsSet("id") {
		if r.JobIDs, err = ids(cmd); err != nil {
			return r, false, err
		}
		if rate == nil {
			return r, false, exit.UsageError(errors.New("-id needs -bandwidth"), advice)
		}
		r.JobBandwidth = rate
	} else {
		r.Bandwidth = rate
	}
	if !change {
		return r, false, nil
	}
	if bad := r.Check(); bad != nil {
		return r, false, exit.UsageError(bad[0], advice)
	}
	return r, true, nil
}

func (a *app) showLimits(l models.Limits) {
	bound := func(n int) string {
		if n == 0 {
			return "no limit"
		}
		return strconv.Itoa(n)
	}
	rate := func(b models.Bandwidth) string {
		if b == 0 {
			return "no limit"
		}
		return term.Rate(int64(b))
	}
	a.io.Heading("Limits")
	rows := [][]string{
		{"Jobs at once", strconv.Itoa(l.MaxRunningJobs), strconv.Itoa(l.RunningJobs)},
		{"Streams at once", bound(l.MaxStreams), strconv.Itoa(l.Streams)},
		{"Streams per host", bound(l.StreamsPerHost), ""},
	}
	for _, host := range slices.Sorted(maps.Keys(l.Hosts)) {
		use := strconv.Itoa(l.Hosts[host].Open)
		if n := l.Hosts[host].Waiting; n > 0 {
			use += fmt.Sprintf(", %d wait", n)
		}
		rows = append(rows, []string{"  " + host, "", use})
	}
	rows = append(rows, []string{"Bandwidth", rate(l.Bandwidth), ""})
	for _, id := range slices.Sorted(maps.Keys(l.Jobs)) {
		rows = append(rows, []string{"  job " + id, rate(l.Jobs[id]), ""})
	}
	a.io.Table([]string{"Limit", "Value", "In use"}, rows)
}
