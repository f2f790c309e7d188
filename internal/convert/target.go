package convert

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hyper2kvm/hyper2kvm/internal/output"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

// target is where one disk's image goes.
type target struct {
	source entry
	path   string // absolute
	device bool
}

// place chooses a target for each disk, and refuses what is there already.
func place(in *input, out string, opts Options) ([]target, error) {
	out, err := filepath.Abs(out)
	if err != nil {
		return nil, problem.New(problem.Invalid, "", err, "")
	}
	if isDevice(out) {
		switch {
		case len(in.disks) != 1:
			return nil, problem.New(problem.Conflict, "", fmt.Errorf("%s is a block device and the input has %d disks", out, len(in.disks)),
				"convert one VMDK at a time to a device")
		case opts.Format != Raw:
			return nil, problem.New(problem.Invalid, "", fmt.Errorf("%s is a block device", out), "use the format raw")
		case !opts.WholeDevice:
			return nil, problem.New(problem.Conflict, "", fmt.Errorf("%s is a block device, and all it holds would be overwritten", out),
				"say so with -whole-device, once you are sure that it is the right one")
		}
		return []target{{source: in.disks[0], path: out, device: true}}, nil
	}
	info, err := os.Stat(out)
	folder := err == nil && info.IsDir()
	if errors.Is(err, fs.ErrNotExist) && (in.packaged || strings.HasSuffix(out, "/")) {
		if err := os.MkdirAll(out, 0o750); err != nil {
			return nil, problem.New(problem.Failed, "", err, "choose a folder that this user may write to")
		}
		folder = true
	}
	if in.packaged && !folder {
		return nil, problem.New(problem.Conflict, "", fmt.Errorf("%s is no folder", out), "name a folder: it gets an image of each disk")
	}
	var targets []target
	seen := map[string]string{}
	for _, d := range in.disks {
		t := target{source: d, path: out}
		if folder {
			base := strings.TrimSuffix(filepath.Base(d.name), filepath.Ext(d.name))
			t.path = filepath.Join(out, output.Stem(base, "disk")+"."+string(opts.Format))
		}
		if other, twice := seen[t.path]; twice {
			return nil, problem.New(problem.Conflict, "", fmt.Errorf("%s and %s would both become %s", other, d.name, t.path), "convert them one by one")
		}
		seen[t.path] = d.name
		if _, err := os.Lstat(t.path); err == nil && !opts.Overwrite {
			return nil, problem.New(problem.Conflict, "", fmt.Errorf("%s is there already", t.path), "choose another name, or ask for -overwrite")
		}
		targets = append(targets, t)
	}
	return targets, nil
}

// outputFile is an image on its way.
type outputFile struct {
	*os.File
	target target
	whole  bool
}

// open opens a device exclusively, or makes NAME.partial. That is locked, so
// that two runs cannot write to one file.
func (t target) open() (*outputFile, error) {
	if t.device {
		f, err := os.OpenFile(t.path, os.O_RDWR|syscall.O_EXCL, 0)
		if errors.Is(err, syscall.EBUSY) {
			return nil, problem.New(problem.Conflict, "", fmt.Errorf("%s is in use", t.path), "unmount it, and take it out of any volume group or RAID")
		}
		if err != nil {
			return nil, err
		}
		return &outputFile{File: f, target: t}, nil
	}
	name := t.path + output.PartialSuffix
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o640)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", name)
	}
	if err == nil {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
			err = problem.New(problem.Conflict, "", fmt.Errorf("%s is being written by another process", name), "wait for that one to end")
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &outputFile{File: f, target: t}, nil
}

// wrote names the file in an error of a write to it.
func (f *outputFile) wrote(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return problem.New(problem.Failed, "", err, "free some space beside "+f.target.path+" and convert again")
	}
	return err
}

// commit syncs the image and gives it its name. It gives its size in bytes.
func (f *outputFile) commit() (size int64, err error) {
	if err := f.Sync(); err != nil {
		return 0, f.wrote(fmt.Errorf("sync %s: %w", f.target.path, err))
	}
	if size, err = f.Seek(0, io.SeekEnd); err != nil {
		return 0, err
	}
	if !f.target.device {
		if err := os.Rename(f.target.path+output.PartialSuffix, f.target.path); err != nil {
			return 0, err
		}
		dir, err := os.Open(filepath.Dir(f.target.path))
		if err != nil {
			return 0, err
		}
		if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
			return 0, fmt.Errorf("sync folder of %s: %w", f.target.path, err)
		}
	}
	f.whole = true
	return size, nil
}

// close closes the file; one that is not whole is removed.
func (f *outputFile) close() error {
	var err error
	if !f.whole && !f.target.device {
		err = os.Remove(f.target.path + output.PartialSuffix)
	}
	return errors.Join(err, f.Close())
}
