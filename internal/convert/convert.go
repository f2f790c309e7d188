// Package convert makes disk images of VMDK files that lie on this machine:
// single ones, those of an OVF folder, and those in an OVA. It is the export's
// engine without a host: decoder, writer, and the manifest's hashes on the same
// bytes.
package convert

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hyper2kvm/hyper2kvm/internal/image"
	"github.com/hyper2kvm/hyper2kvm/internal/image/qcow2"
	"github.com/hyper2kvm/hyper2kvm/internal/image/raw"
	"github.com/hyper2kvm/hyper2kvm/internal/image/vmdk"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
	"github.com/hyper2kvm/hyper2kvm/progress"
)

// Format is what the images are.
type Format string

// The formats.
const (
	QCOW2 Format = "qcow2"
	Raw   Format = "raw"
)

// FormatOf gives the format that a file's name asks for; "" when it asks for
// none.
func FormatOf(name string) Format {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".qcow2":
		return QCOW2
	case ".raw", ".img":
		return Raw
	}
	return ""
}

// Options say how to convert.
type Options struct {
	Format Format
	// Compress keeps what is compressed in the input compressed, in qcow2.
	Compress bool
	// VerifyGrains inflates and checks also the grains that stay as they are.
	VerifyGrains bool
	// WholeDevice allows a block device as the output, which is overwritten.
	WholeDevice bool
	// Overwrite replaces images that exist.
	Overwrite bool
	// Parallel is how many disks are converted at once; at least 1.
	Parallel int
}

// Disk is one disk that was converted. Sizes are bytes.
type Disk struct {
	Source string `json:"source"` // the file in the input
	Kind   string `json:"kind"`   // vmdk.Info.Kind
	Path   string `json:"path"`   // absolute path of the image, or of the device
	// Capacity is what the guest sees, Size the image file's length, Read what
	// was read of the input.
	Capacity int64 `json:"capacity"`
	Size     int64 `json:"size"`
	Read     int64 `json:"read"`
	// Verified says that the source agreed with the manifest beside it.
	Verified bool `json:"verified"`
	// Checked says that every grain was inflated and agreed with its checksum.
	Checked bool `json:"grains_checked"`
}

// Result is what a conversion left.
type Result struct {
	Input    string   `json:"input"`
	Format   Format   `json:"format"`
	Disks    []Disk   `json:"disks"`
	Duration string   `json:"duration"` // Go duration
	Warnings []string `json:"warnings,omitempty"`
}

// Run converts the disks of in to out. In is a VMDK file, an OVA, a descriptor
// or the folder it lies in. Out is the image of a single disk, a block device,
// or a folder, which gets an image of each disk; it is made if need be. An
// image has its name once it is whole and synced. Errors are *problem.Error
// and name the disk.
func Run(ctx context.Context, in, out string, opts Options, tracker *progress.Tracker) (Result, error) {
	started := time.Now()
	what := "convert " + in
	fail := func(err error) error {
		if p, ok := errors.AsType[*problem.Error](err); ok {
			if p.What == "" {
				return problem.New(p.Kind, what, p.Err, p.Advice)
			}
			return err
		}
		if u, ok := errors.AsType[*vmdk.UnsupportedError](err); ok {
			return problem.New(problem.Conflict, what, errors.New(u.What), u.Advice)
		}
		kind := problem.KindOf(err)
		if ctx.Err() != nil {
			kind, err = problem.Cancelled, context.Cause(ctx)
		}
		advice := ""
		if vmdk.IsDamage(err) {
			advice = "the file is damaged or not whole: export the VM or fetch the file again"
		}
		return problem.New(kind, what, err, advice)
	}
	tracker.Enter(progress.Preparing)
	source, err := open(in)
	if err != nil {
		return Result{}, fail(err)
	}
	defer source.Close()
	targets, err := place(source, out, opts)
	if err != nil {
		return Result{}, fail(err)
	}
	// A decoder may read far to find something other than zeros.
	stop := context.AfterFunc(ctx, func() {
		if err := source.Close(); err != nil {
			tracker.Remark(slog.LevelWarn, "could not close the input", slog.String("error", err.Error()))
		}
	})
	defer stop()
	result := Result{Input: in, Format: opts.Format, Disks: make([]Disk, len(targets)), Warnings: source.warnings}
	tracker.Enter(progress.Converting)
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(max(1, opts.Parallel))
	handles := make([]*progress.Handle, len(targets))
	for i, t := range targets {
		handles[i] = tracker.Add(filepath.Base(t.path), 0)
		handles[i].Weigh(t.source.size)
	}
	for i, t := range targets {
		handle := handles[i]
		group.Go(func() (err error) {
			defer func() {
				if v := recover(); v != nil {
					tracker.Remark(slog.LevelError, "panic", slog.Any("value", v), slog.String("stack", string(debug.Stack())))
					err = fmt.Errorf("internal error: %v", v)
				}
				if err != nil {
					handle.Fail(err.Error())
				}
			}()
			if gctx.Err() != nil {
				return context.Cause(gctx)
			}
			handle.SetState(progress.Downloading)
			result.Disks[i], err = convert(gctx, source, t, opts, handle)
			if u, ok := errors.AsType[*vmdk.UnsupportedError](err); ok {
				return problem.New(problem.Conflict, "", fmt.Errorf("%s: %s", t.source.name, u.What), u.Advice)
			}
			if err != nil && gctx.Err() == nil {
				return fmt.Errorf("%s: %w", t.source.name, err)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return Result{}, fail(err)
	}
	result.Duration = time.Since(started).Round(time.Millisecond).String()
	return result, nil
}

// convert makes one image.
func convert(ctx context.Context, in *input, t target, opts Options, handle *progress.Handle) (d Disk, err error) {
	d = Disk{Source: t.source.name, Path: t.path}
	src, err := in.disk(ctx, t.source)
	if err != nil {
		return d, err
	}
	d.Kind, d.Capacity = src.info.Kind, src.info.Capacity
	handle.SetCapacity(d.Capacity)
	file, err := t.open()
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, file.close()) }()
	var w image.Writer
	if opts.Format == Raw {
		w, err = raw.NewWriter(ctx, file.File, d.Capacity, raw.Options{Whole: opts.WholeDevice})
	} else {
		w, err = qcow2.NewWriter(ctx, file.File, d.Capacity, qcow2.Options{Compress: opts.Compress, VerifyGrains: opts.VerifyGrains})
	}
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, w.Abort()) }()
	last := int64(0)
	err = image.Copy(ctx, w, src, func(position int64) {
		handle.Took(src.read - last)
		handle.Holds(src.read, position)
		last = src.read
	})
	if err == nil {
		err = w.Finish(ctx)
	}
	if err != nil {
		return d, file.wrote(err)
	}
	handle.SetState(progress.Checking)
	if d.Verified, err = src.verify(); err != nil {
		return d, err
	}
	d.Checked = src.info.Compressed && (opts.Format == Raw || !opts.Compress || opts.VerifyGrains)
	d.Read = src.read
	if d.Size, err = file.commit(); err != nil {
		return d, err
	}
	handle.Finish(progress.Done, d.Read)
	return d, nil
}

// isDevice reports whether a path names a block device.
func isDevice(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0
}
