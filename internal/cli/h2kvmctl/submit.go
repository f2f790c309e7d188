package h2kvmctl

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/hyper2kvm/hyper2kvm/daemon/client"
	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/exit"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/joboptions"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

func (a *app) submitCommand() *cli.Command {
	return &cli.Command{
		Name:      "submit",
		Usage:     "give the daemon jobs",
		UsageText: "h2kvmctl submit -vm PATH -output DIR [options]\nh2kvmctl submit -file FILE [-wait]",
		Description: "Submits one job from flags, or the job or batch that a file holds. Options that are not\n" +
			"given take the daemon's defaults. Prints one line with \"Job ID: \" for each job accepted.\n" +
			"Exit codes: 1 some jobs of a batch were rejected; with -wait also 4 a job failed, 5 one was cancelled.",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "vm", OnlyOnce: true, Usage: "inventory `PATH`, unique name, moref:vm-123 or instance UUID of the VM"},
			&cli.StringFlag{Name: "output", OnlyOnce: true, Usage: "absolute path of the output folder `DIR` on the daemon's machine"},
			&cli.StringFlag{Name: "file", OnlyOnce: true, Usage: "YAML or JSON `FILE` with a job or a batch; - is standard input"},
			&cli.StringFlag{Name: "name", OnlyOnce: true, Usage: "`NAME` of the job (default: the VM's)"},
			&cli.IntFlag{Name: "priority", OnlyOnce: true, HideDefault: true, Usage: fmt.Sprintf("`N` among the waiting jobs: higher ones go first, %d to %d (default: 0)", -models.MaxPriority, models.MaxPriority)},
			vcenterFlag(),
			&cli.BoolFlag{Name: "wait", Usage: "show the progress until the jobs have ended"},
		}, joboptions.Flags()...),
		Action:        a.submit,
		ShellComplete: a.complete,
	}
}

func (a *app) submit(ctx context.Context, cmd *cli.Command) error {
	if err := exit.NoArguments(cmd, "give a VM with -vm, or a job file with -file"); err != nil {
		return err
	}
	send, err := a.submission(ctx, cmd)
	if err != nil {
		return err
	}
	c, err := a.client(cmd)
	if err != nil {
		return err
	}
	defer c.Close()
	resp, err := send(c)
	if err != nil && ctx.Err() != nil {
		return problem.New(problem.Cancelled, "submit", errors.New("interrupted before the daemon answered"),
			"it may have taken the job: look with `"+name+" query -all` before submitting it again")
	}
	if err != nil && resp.Rejected == 0 {
		return err
	}
	wait := cmd.Bool("wait") && len(resp.JobIDs) > 0
	if a.json && !wait {
		if err := a.io.JSON(resp); err != nil {
			return err
		}
	}
	if err != nil {
		return a.noneAccepted(resp, err)
	}
	if !a.json {
		a.io.Success("Accepted Jobs: %d", resp.Accepted)
		for _, id := range resp.JobIDs {
			a.io.Info("- Job ID: %s", id)
		}
		a.io.Success("Submitted %d job(s)", resp.Accepted)
	}
	var result error
	for _, text := range resp.Errors {
		a.fail(text)
	}
	if resp.Rejected > 0 {
		result = &exit.Error{Code: exit.Failed}
	}
	if !wait {
		return result
	}
	jobs, err := a.follow(ctx, c, resp.JobIDs)
	if a.json {
		// The submission, and how each job ended, in one document.
		err = errors.Join(err, a.io.JSON(submission{resp, jobs}))
	}
	if err == nil {
		err = outcome(jobs)
	}
	if err == nil {
		err = result
	}
	return err
}

// submission is an answer with the jobs, once they have ended.
type submission struct {
	models.SubmitResponse
	Jobs []models.Job `json:"jobs,omitempty"`
}

// noneAccepted says why no job was accepted: one error as it is, several each
// on a line of its own.
func (a *app) noneAccepted(resp models.SubmitResponse, err error) error {
	if len(resp.Errors) < 2 {
		return err
	}
	for _, text := range resp.Errors {
		a.fail(text)
	}
	return &exit.Error{Code: exit.Code(err), Err: problem.New(problem.KindOf(err), "", fmt.Errorf("none of %d jobs was accepted", resp.Rejected),
		"put right what is named above and submit the file again")}
}

// submission reads what is to be submitted, and gives what does it.
func (a *app) submission(ctx context.Context, cmd *cli.Command) (func(*client.Client) (models.SubmitResponse, error), error) {
	if cmd.IsSet("file") {
		return a.fileSubmission(ctx, cmd)
	}
	if cmd.String("vm") == "" {
		return nil, exit.UsageError(errors.New("no VM was given"), "give -vm PATH and -output DIR, or a job file with -file")
	}
	if cmd.String("output") == "" {
		return nil, exit.UsageError(errors.New("no output folder was given"), "give it as -output DIR")
	}
	def := models.Definition{Name: cmd.String("name"), VMPath: cmd.String("vm"), OutputPath: cmd.String("output")}
	var err error
	if def.Options, err = joboptions.Read(cmd); err != nil {
		return nil, err
	}
	if name := cmd.String("vcenter"); name != "" {
		def.VCenter = &models.VCenter{Name: name}
	}
	if cmd.IsSet("priority") {
		def.Options.Priority = new(cmd.Int("priority"))
	}
	if err := joboptions.Check(cmd, def, map[string]string{
		"output_path": "give an absolute path: the folder is on the daemon's machine",
	}); err != nil {
		return nil, err
	}
	return func(c *client.Client) (models.SubmitResponse, error) { return c.SubmitDefinition(ctx, def) }, nil
}

func (a *app) fileSubmission(ctx context.Context, cmd *cli.Command) (func(*client.Client) (models.SubmitResponse, error), error) {
	for _, f := range cmd.Flags {
		if n := f.Names()[0]; n != "file" && n != "wait" && f.IsSet() {
			return nil, exit.UsageError(fmt.Errorf("-%s does not go together with -file", n), "put it into the job file")
		}
	}
	file := cmd.String("file")
	if file == "" {
		return nil, exit.UsageError(errors.New("-file is empty"), "give a job file, or - for standard input")
	}
	var data []byte
	var err error
	if file == "-" {
		data, err = a.readInput(ctx)
	} else {
		data, err = readFile(file, client.MaxBody)
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, invalid("read job file "+file, err, "give -file a file that can be read, or - for standard input")
	}
	contentType := ""
	switch strings.ToLower(filepath.Ext(file)) {
	case ".json":
		contentType = "application/json"
	case ".yaml", ".yml":
		contentType = "application/yaml"
	}
	return func(c *client.Client) (models.SubmitResponse, error) { return c.Submit(ctx, data, contentType) }, nil
}

// readInput reads standard input until its end or that of ctx. A read of a
// terminal cannot be broken off: then its goroutine ends with the process.
func (a *app) readInput(ctx context.Context) ([]byte, error) {
	type result struct {
		data []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		data, err := readAll(a.io.In, client.MaxBody)
		done <- result{data, err}
	}()
	select {
	case r := <-done:
		return r.data, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
