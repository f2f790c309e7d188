package hyper2kvm

import (
	"context"
	"errors"

	"github.com/urfave/cli/v3"

	"github.com/hyper2kvm/hyper2kvm/internal/cli/exit"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/term"
	"github.com/hyper2kvm/hyper2kvm/internal/output"
)

func (a *app) verifyCommand() *cli.Command {
	return &cli.Command{
		Name:      "verify",
		Usage:     "compare an export with its receipt",
		UsageText: name + " verify DIR",
		Description: "Reads every file of the export in DIR and compares size and SHA-256 with hyper2kvm.json.\n" +
			"Ends with 0 when all agree, with 1 when one differs or the folder holds no finished export.",
		Action: a.verify,
	}
}

func (a *app) verify(ctx context.Context, cmd *cli.Command) error {
	if cmd.Args().Len() != 1 {
		return exit.UsageError(errors.New("verify takes one folder"), "name the folder of an export: "+name+" verify DIR")
	}
	bar := term.NewBars(a.errIO())
	report, err := output.Verify(ctx, cmd.Args().First(), func(done, total int64) { bar.Share("verifying", done, total) })
	bar.Close()
	if err != nil {
		return err
	}
	if a.json {
		if err := a.io.JSON(report); err != nil {
			return err
		}
	} else {
		a.report(report)
	}
	if !report.OK {
		return &exit.Error{Code: exit.Failed}
	}
	return nil
}

// proofs says for people how a file was shown to be the one on the host.
var proofs = map[output.Proof]string{
	output.ProofHost:   "agreed with the host's manifest",
	output.ProofGrains: "grain checksums, the host gave no hash",
	output.ProofNone:   "length only",
	output.ProofLocal:  "made here",
}

func (a *app) report(r output.VerifyReport) {
	a.io.Heading("Verify " + r.Dir)
	var size int64
	bad := 0
	rows := make([][]string, len(r.Files))
	for i, f := range r.Files {
		size += f.Size
		state := "OK"
		if !f.OK {
			bad++
			state = "PROBLEM"
		}
		proof := proofs[f.Proof]
		if proof == "" {
			proof = string(f.Proof)
		}
		rows[i] = []string{f.Name, term.Size(f.Size), state, proof}
	}
	a.io.Table([]string{"File", "Size", "Now", "At the export"}, rows)
	if !r.OK {
		for _, f := range r.Files {
			if !f.OK {
				a.fail("%s: %s", f.Name, f.Problem)
			}
		}
		a.fail("%d of %d file(s) of %s differ from the receipt: export again, with -overwrite", bad, len(r.Files), r.VM.Path)
		return
	}
	a.io.Success("All %d file(s) of %s agree with the receipt (%s)", len(r.Files), r.VM.Path, term.Size(size))
	if !r.Verified {
		a.io.Info("At the export the host gave no hash for some disks: these were checked by their grains alone")
	}
}
