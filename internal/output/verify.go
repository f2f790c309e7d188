package output

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

// FileReport is what a check found of one file. Problem is empty when OK.
type FileReport struct {
	Name    string `json:"name"`
	Role    Role   `json:"role"`
	Size    int64  `json:"size"`
	SHA256  string `json:"sha256"` // of the data only where the receipt has sha256_data
	Proof   Proof  `json:"proof"`
	OK      bool   `json:"ok"`
	Problem string `json:"problem,omitempty"`
}

// VerifyReport is what a check found of an export. Verified repeats the
// receipt: whether every disk had agreed with the host's manifest.
type VerifyReport struct {
	Dir      string       `json:"dir"`
	VM       VM           `json:"vm"`
	Exported time.Time    `json:"exported_at"`
	Version  string       `json:"version"`
	Format   string       `json:"format"`
	Verified bool         `json:"verified"`
	Files    []FileReport `json:"files"`
	OK       bool         `json:"ok"`
}

// Verify reads every file of the export in dir and compares size and SHA-256
// with the receipt. Files that differ are reported in the VerifyReport, not as
// an error; an error means that the check could not be made, because there is
// no receipt or ctx ended. onProgress, which may be nil, hears how many bytes
// have been read of how many, from several goroutines.
func Verify(ctx context.Context, dir string, onProgress func(done, total int64)) (VerifyReport, error) {
	what := "verify " + dir
	abs, err := filepath.Abs(dir)
	if err != nil {
		return VerifyReport{}, problem.New(problem.Invalid, what, err, "")
	}
	root, err := os.OpenRoot(abs)
	if err != nil {
		return VerifyReport{}, problem.New(problem.NotFound, what, plain(err), "name the folder of an export")
	}
	defer root.Close()
	f := &Folder{dir: abs, root: root}

	var receipt Receipt
	found, err := f.readJSON(ReceiptName, &receipt)
	if err != nil {
		return VerifyReport{}, problem.New(problem.Failed, what, err, "the receipt cannot be trusted: export again")
	}
	if !found {
		if unfinished, _ := f.exists(journalName); unfinished {
			return VerifyReport{}, problem.New(problem.Failed, what, errors.New("the export in it is not finished"),
				"run the same export again: it goes on where it stopped")
		}
		return VerifyReport{}, problem.New(problem.NotFound, what, fmt.Errorf("there is no %s in it", ReceiptName),
			"name a folder that a finished export wrote")
	}
	if err := checkFiles(receipt.Files); err != nil {
		return VerifyReport{}, problem.New(problem.Failed, what, err, "the receipt cannot be trusted: export again")
	}
	if len(receipt.Files) == 0 {
		return VerifyReport{}, problem.New(problem.Failed, what, errors.New("its receipt names no files"),
			"the receipt cannot be trusted: export again")
	}

	report := VerifyReport{
		Dir: abs, VM: receipt.VM, Exported: receipt.Completed, Version: receipt.Version,
		Format: receipt.Format, Verified: receipt.Verified,
		Files: make([]FileReport, len(receipt.Files)), OK: true,
	}
	total := receipt.Size()
	var done atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.NumCPU())
	for i, file := range receipt.Files {
		group.Go(func() error {
			report.Files[i] = FileReport{Name: file.Name, Role: file.Role, Size: file.Size, SHA256: file.SHA256 + file.DataSHA256, Proof: file.Proof}
			why, err := f.check(ctx, file, func(n int) {
				if now := done.Add(int64(n)); onProgress != nil {
					onProgress(now, total)
				}
			})
			if err != nil {
				return err
			}
			report.Files[i].OK, report.Files[i].Problem = why == "", why
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return VerifyReport{}, problem.New(problem.KindOf(err), what, err, "")
	}
	for _, file := range report.Files {
		report.OK = report.OK && file.OK
	}
	return report, nil
}

// check compares one file with its record; why is what is wrong with it.
func (f *Folder) check(ctx context.Context, file File, onRead func(int)) (why string, err error) {
	in, err := f.root.OpenFile(file.Name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return "it is missing", nil
	}
	if err != nil {
		return "it cannot be opened: " + plain(err).Error(), nil
	}
	defer in.Close()
	info, err := in.Stat()
	switch {
	case err != nil:
		return "it cannot be read: " + plain(err).Error(), nil
	case !info.Mode().IsRegular():
		return "it is not a regular file", nil
	case info.Size() != file.Size:
		return fmt.Sprintf("it has %d bytes, the receipt says %d", info.Size(), file.Size), nil
	}
	_, got, err := sumAs(ctx, in, info.Size(), file.DataSHA256 != "", onRead)
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if err != nil {
		return "it cannot be read: " + plain(err).Error(), nil
	}
	if want := (Sums{file.SHA256, file.DataSHA256}); got != want {
		return fmt.Sprintf("its SHA-256 is %s, the receipt says %s", got.SHA256+got.Data, want.SHA256+want.Data), nil
	}
	return "", nil
}
