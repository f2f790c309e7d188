package output

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

// Partial is a file that is not whole yet, written from front to back. It
// belongs to one goroutine.
type Partial struct {
	folder *Folder
	name   string
	file   *os.File
	size   int64
}

// Open opens NAME.partial, with what an earlier run left in it, or makes it.
func (f *Folder) Open(name string) (*Partial, error) {
	file, err := f.root.OpenFile(name+PartialSuffix, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, fileMode)
	if err != nil {
		return nil, problem.New(problem.Failed, "write "+f.Path(name+PartialSuffix), plain(err), "check the folder's permissions")
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is not a regular file")
	}
	if err != nil {
		return nil, problem.New(problem.Failed, "write "+f.Path(name+PartialSuffix), errors.Join(plain(err), file.Close()), "move it away")
	}
	return &Partial{folder: f, name: name, file: file, size: info.Size()}, nil
}

// Name is the name the file will have.
func (p *Partial) Name() string { return p.name }

// Size is how many bytes it holds.
func (p *Partial) Size() int64 { return p.size }

// Write appends b. A full disk is a *SpaceError.
func (p *Partial) Write(b []byte) (int, error) {
	n, err := p.file.WriteAt(b, p.size)
	p.size += int64(n)
	if err != nil {
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			return n, &SpaceError{Path: p.folder.Path(p.name), Held: p.size, Err: plain(err)}
		}
		return n, fmt.Errorf("write %s: %w", p.folder.Path(p.name+PartialSuffix), plain(err))
	}
	return n, nil
}

// ReadAt reads what has been written.
func (p *Partial) ReadAt(b []byte, off int64) (int, error) { return p.file.ReadAt(b, off) }

// Reader reads all that has been written, from its beginning.
func (p *Partial) Reader() io.Reader { return io.NewSectionReader(p.file, 0, p.size) }

// Reset drops what the file holds.
func (p *Partial) Reset() error {
	p.size = 0
	if err := p.file.Truncate(0); err != nil {
		return fmt.Errorf("empty %s: %w", p.folder.Path(p.name+PartialSuffix), plain(err))
	}
	return nil
}

// Commit syncs the file and gives it its name, replacing a file of that name.
// The Partial is closed by it. The name itself is made durable with the
// receipt: a file that a power cut takes its name from is a partial one again.
func (p *Partial) Commit() error {
	if err := p.file.Sync(); err != nil {
		err = plain(err)
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			return &SpaceError{Path: p.folder.Path(p.name), Held: p.size, Err: err}
		}
		return fmt.Errorf("sync %s: %w", p.folder.Path(p.name+PartialSuffix), err)
	}
	if err := p.Close(); err != nil {
		return err
	}
	if err := p.folder.root.Rename(p.name+PartialSuffix, p.name); err != nil {
		return fmt.Errorf("rename %s to its final name: %w", p.folder.Path(p.name+PartialSuffix), err)
	}
	return nil
}

// Close closes the file and keeps it as it is, for a later run. It may be
// called again, and after Commit.
func (p *Partial) Close() error {
	if p.file == nil {
		return nil
	}
	err := p.file.Close()
	p.file = nil
	if err != nil {
		return fmt.Errorf("close %s: %w", p.folder.Path(p.name+PartialSuffix), plain(err))
	}
	return nil
}

// Discard closes the file and removes it.
func (p *Partial) Discard() error {
	return errors.Join(p.Close(), p.folder.remove(p.name+PartialSuffix))
}

// SpaceError says that the disk is full.
type SpaceError struct {
	Path string // the file that did not fit
	Held int64  // bytes of it that did
	Err  error
}

func (e *SpaceError) Error() string {
	return fmt.Sprintf("write %s: %v after %d bytes", e.Path, e.Err, e.Held)
}

// Unwrap gives the cause.
func (e *SpaceError) Unwrap() error { return e.Err }
