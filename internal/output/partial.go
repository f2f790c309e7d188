package output

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

// Partial is a file that is not whole yet. It belongs to one goroutine.
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
func (p *Partial) Write(b []byte) (int, error) { return p.WriteAt(b, p.size) }

// WriteAt writes b at off, which may lie before or behind the end. A full disk
// is a *SpaceError.
func (p *Partial) WriteAt(b []byte, off int64) (int, error) {
	n, err := p.file.WriteAt(b, off)
	p.size = max(p.size, off+int64(n))
	if err != nil {
		return n, p.Wrote(err)
	}
	return n, nil
}

// File is the file itself, for a writer that places bytes in it on its own.
// Such a writer's errors go through Wrote.
func (p *Partial) File() *os.File { return p.file }

// Wrote names the file in an error of a write to it: a full disk becomes a
// *SpaceError.
func (p *Partial) Wrote(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return &SpaceError{Path: p.folder.Path(p.name), Held: p.size, Err: plain(err)}
	}
	return fmt.Errorf("write %s: %w", p.folder.Path(p.name+PartialSuffix), plain(err))
}

// Sum gives the size of the file and its hash, read back while it is being
// synced. onRead, which may be nil, hears of every n bytes passed.
func (p *Partial) Sum(ctx context.Context, onRead func(n int)) (size int64, sums Sums, err error) {
	var synced error
	done := make(chan struct{})
	go func() {
		defer close(done)
		synced = p.file.Sync()
	}()
	if onRead == nil {
		onRead = func(int) {}
	}
	size, sums, err = sum(ctx, p.file, onRead)
	<-done
	if synced != nil {
		return 0, Sums{}, p.Wrote(synced)
	}
	if err != nil {
		return 0, Sums{}, fmt.Errorf("read back %s: %w", p.folder.Path(p.name+PartialSuffix), plain(err))
	}
	return size, sums, nil
}

// Sync makes what was written durable.
func (p *Partial) Sync() error {
	if err := p.file.Sync(); err != nil {
		return p.Wrote(err)
	}
	return nil
}

// ReadAt reads what has been written.
func (p *Partial) ReadAt(b []byte, off int64) (int, error) { return p.file.ReadAt(b, off) }

// Reader reads all that has been written, from its beginning.
func (p *Partial) Reader() io.Reader { return io.NewSectionReader(p.file, 0, p.size) }

// Reset drops what the file holds.
func (p *Partial) Reset() error {
	return p.Truncate(0)
}

// Truncate drops what the file holds from byte size on.
func (p *Partial) Truncate(size int64) error {
	p.size = size
	if err := p.file.Truncate(size); err != nil {
		return fmt.Errorf("cut %s to %d bytes: %w", p.folder.Path(p.name+PartialSuffix), size, plain(err))
	}
	return nil
}

// Commit syncs the file and gives it its name, replacing a file of that name.
// The Partial is closed by it. The name itself is made durable with the
// receipt: a file that a power cut takes its name from is a partial one again.
func (p *Partial) Commit() error {
	if err := p.Sync(); err != nil {
		return err
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
