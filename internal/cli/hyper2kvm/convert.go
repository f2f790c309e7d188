package hyper2kvm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/exit"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/term"
	"github.com/hyper2kvm/hyper2kvm/internal/convert"
	"github.com/hyper2kvm/hyper2kvm/progress"
)

// tickInterval is how often the bars of a conversion move.
const tickInterval = 250 * time.Millisecond

func (a *app) convertCommand() *cli.Command {
	return &cli.Command{
		Name:      "convert",
		Usage:     "make qcow2 or raw images of local VMDK disks, an OVA or an OVF folder",
		UsageText: name + " convert IN OUT [options]",
		Description: "IN is a .vmdk (stream-optimized, monolithic sparse, or a descriptor with its flat files), an\n" +
			".ova, an .ovf or the folder it lies in. OUT is the image, a folder that gets one image for each\n" +
			"disk, or with -whole-device a block device. A manifest beside the disks is checked on the way.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "format", OnlyOnce: true, Usage: "`FORMAT` of the images: qcow2 or raw (default: what OUT ends in, else qcow2)"},
			&cli.BoolFlag{Name: "compress", Usage: "keep what is compressed in IN compressed, in qcow2"},
			&cli.BoolFlag{Name: "verify-grains", Usage: "inflate and check also the grains that -compress leaves as they are"},
			&cli.BoolFlag{Name: "whole-device", Usage: "overwrite the block device OUT"},
			&cli.BoolFlag{Name: "overwrite", Usage: "replace images that are there"},
			&cli.IntFlag{Name: "parallel", OnlyOnce: true, Value: 4, Usage: fmt.Sprintf("`N` disks at a time, %d to %d", models.MinParallel, models.MaxParallel)},
		},
		Action:        a.convert,
		ShellComplete: a.complete,
	}
}

func (a *app) convert(ctx context.Context, cmd *cli.Command) error {
	if cmd.Args().Len() != 2 {
		return exit.UsageError(errors.New("convert takes an input and an output"), "for example: "+name+" convert web01.ova images/")
	}
	in, out := cmd.Args().Get(0), cmd.Args().Get(1)
	opts := convert.Options{
		Format: convert.Format(strings.ToLower(cmd.String("format"))), Compress: cmd.Bool("compress"), VerifyGrains: cmd.Bool("verify-grains"),
		WholeDevice: cmd.Bool("whole-device"), Overwrite: cmd.Bool("overwrite"), Parallel: cmd.Int("parallel"),
	}
	byName := convert.FormatOf(out)
	switch {
	case opts.Format == "" && byName != "":
		opts.Format = byName
	case opts.Format == "" && opts.WholeDevice:
		opts.Format = convert.Raw
	case opts.Format == "":
		opts.Format = convert.QCOW2
	case opts.Format != convert.QCOW2 && opts.Format != convert.Raw:
		return exit.UsageError(fmt.Errorf("-format is %.40q", cmd.String("format")), "use qcow2 or raw")
	case byName != "" && byName != opts.Format:
		return exit.UsageError(fmt.Errorf("-format is %s, and %s ends in %s", opts.Format, filepath.Base(out), filepath.Ext(out)), "make them agree")
	}
	if opts.Compress && opts.Format == convert.Raw {
		return exit.UsageError(errors.New("raw images have no compression"), "leave -compress out, or use the format qcow2")
	}
	if opts.Parallel < models.MinParallel || opts.Parallel > models.MaxParallel {
		return exit.UsageError(fmt.Errorf("-parallel is %d", opts.Parallel), fmt.Sprintf("use %d to %d", models.MinParallel, models.MaxParallel))
	}
	result, err := a.convertShown(ctx, in, out, opts)
	if err != nil {
		return err
	}
	if a.json {
		return a.io.JSON(result)
	}
	a.converted(result, opts)
	return nil
}

// convertShown converts with bars, which are gone when it returns.
func (a *app) convertShown(ctx context.Context, in, out string, opts convert.Options) (convert.Result, error) {
	bars := term.NewBars(a.errIO())
	defer bars.Close()
	stop := context.AfterFunc(ctx, func() { bars.Say(slog.LevelWarn, "stopping: images that are not whole are removed") })
	defer stop()
	tracker := progress.NewTracker(bars.Sink(filepath.Base(in)))
	tick, end := context.WithCancel(ctx)
	var ticking sync.WaitGroup
	ticking.Go(func() { tracker.Run(tick, tickInterval) })
	result, err := convert.Run(ctx, in, out, opts, tracker)
	end()
	ticking.Wait()
	bars.Clear()
	return result, err
}

// converted says what lies where.
func (a *app) converted(r convert.Result, opts convert.Options) {
	var capacity, size int64
	stored := false
	for _, d := range r.Disks {
		capacity += d.Capacity
		size += d.Size
		stored = stored || !d.Checked && !d.Verified && opts.Compress
	}
	took := ""
	if d, err := time.ParseDuration(r.Duration); err == nil {
		took = " in " + d.Round(10*time.Millisecond).String()
	}
	a.io.Success("Converted %d disk(s) of %s, %s for the guest%s", len(r.Disks), r.Input, term.Size(capacity), took)
	for _, d := range r.Disks {
		proof := ""
		if d.Verified {
			proof = ", agrees with the manifest"
		}
		a.io.Info("- %s  %s (%s VMDK %s%s)", d.Path, term.Size(d.Size), d.Kind, d.Source, proof)
	}
	for _, w := range r.Warnings {
		a.io.Warn("%s", w)
	}
	if stored {
		a.io.Info("The structure was checked; -verify-grains also inflates and checks every grain")
	}
}
