// Package output is the output folder of an export: who holds it, which of its
// files are whole, and the receipt that says so. A file is NAME.partial until
// it has been synced; it never has its name before. The package knows neither
// vSphere nor what is in the files.
package output

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

// Names of the files that are about the folder itself.
const (
	// ReceiptName is the receipt. Its presence means that the export is whole.
	ReceiptName = "hyper2kvm.json"
	// PartialSuffix marks files that are not whole.
	PartialSuffix = ".partial"

	journalName = ReceiptName + PartialSuffix
	lockName    = ".hyper2kvm.lock"

	fileMode = 0o640
	dirMode  = 0o750
	// maxRecord bounds what is read of a receipt, a journal or a lock.
	maxRecord = 16 << 20
)

// Folder is an output folder held for one export. Its methods are safe for
// concurrent use, but a Partial belongs to one goroutine.
type Folder struct {
	dir     string
	root    *os.Root
	lock    *os.File
	above   tree
	created []string // folders that did not exist before, outermost first, as above names them
}

// tree is what a folder is made in. *os.Root is one that no name leads out of.
type tree interface {
	Stat(name string) (fs.FileInfo, error)
	Mkdir(name string, mode fs.FileMode) error
	Remove(name string) error
	OpenRoot(name string) (*os.Root, error)
	Close() error
}

// everything is the tree of all absolute paths.
type everything struct{}

func (everything) Stat(name string) (fs.FileInfo, error)     { return os.Stat(name) }
func (everything) Mkdir(name string, mode fs.FileMode) error { return os.Mkdir(name, mode) }
func (everything) Remove(name string) error                  { return os.Remove(name) }
func (everything) OpenRoot(name string) (*os.Root, error)    { return os.OpenRoot(name) }
func (everything) Close() error                              { return nil }

type holder struct {
	PID   int       `json:"pid"`
	Host  string    `json:"host"`
	VM    string    `json:"vm"`
	Since time.Time `json:"since"`
}

// Hold makes dir if need be and takes it for the export of vm, a VM's path for
// messages. It fails with problem.Conflict when another export holds it,
// whether in this process or in another one.
func Hold(dir, vm string) (*Folder, error) {
	what := "use output folder " + dir
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, problem.New(problem.Invalid, what, err, "")
	}
	return holdIn(everything{}, dir, dir, vm)
}

// HoldBelow is Hold of a folder that lies below another one, base, which must
// exist: no symbolic link leads out of that, whoever makes one while this runs.
func HoldBelow(base, dir, vm string) (*Folder, error) {
	what := "use output folder " + dir
	rel, err := filepath.Rel(base, dir)
	if err == nil && !filepath.IsLocal(rel) {
		err = errors.New("it is not below " + base)
	}
	if err != nil {
		return nil, problem.New(problem.Invalid, what, err, "choose a folder below "+base)
	}
	above, err := os.OpenRoot(base)
	if err != nil {
		return nil, problem.New(problem.Failed, what, fmt.Errorf("open %s: %w", base, plain(err)), "make the output root, or choose another")
	}
	return holdIn(above, rel, filepath.Join(base, rel), vm)
}

// holdIn takes the folder that is called name in above and dir elsewhere.
func holdIn(above tree, name, dir, vm string) (_ *Folder, err error) {
	f := &Folder{dir: dir, above: above}
	defer func() {
		if err != nil {
			f.removeCreated()
			err = errors.Join(err, above.Close())
		}
	}()
	if f.created, err = makeDirs(above, name); err == nil {
		f.root, err = above.OpenRoot(name)
	}
	if err != nil {
		return nil, problem.New(problem.Failed, "use output folder "+dir, plain(err), "choose a folder that this user may write to")
	}
	if err := f.takeLock(vm); err != nil {
		return nil, errors.Join(err, f.root.Close())
	}
	return f, nil
}

// makeDirs is os.MkdirAll that tells which folders it made.
func makeDirs(in tree, dir string) (created []string, err error) {
	var missing []string
	for d := dir; ; d = filepath.Dir(d) {
		info, err := in.Stat(d)
		if err == nil {
			if !info.IsDir() {
				return nil, fmt.Errorf("%s is not a folder", d)
			}
			break
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			return nil, err
		}
		missing = append(missing, d)
		if d == filepath.Dir(d) {
			break
		}
	}
	for i := len(missing) - 1; i >= 0; i-- {
		switch err := in.Mkdir(missing[i], dirMode); {
		case err == nil:
			created = append(created, missing[i])
		case !errors.Is(err, fs.ErrExist):
			return created, err
		}
	}
	return created, nil
}

// takeLock locks the lock file. A file that its last holder removed between
// the open and the lock is no lock any more, hence the loop.
func (f *Folder) takeLock(vm string) error {
	what := "use output folder " + f.dir
	for range 100 {
		file, err := f.root.OpenFile(lockName, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, fileMode)
		if err != nil {
			return problem.New(problem.Failed, what, plain(err), "choose a folder that this user may write to")
		}
		if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			who := readHolder(file)
			file.Close()
			if !errors.Is(err, unix.EWOULDBLOCK) {
				return problem.New(problem.Failed, what, fmt.Errorf("lock it: %w", err), "choose a folder on a file system that has locks")
			}
			return problem.New(problem.Conflict, what, fmt.Errorf("it is in use by %s", who),
				"wait for that export to end, or choose another folder")
		}
		mine, err1 := file.Stat()
		there, err2 := f.root.Lstat(lockName)
		if err1 != nil || err2 != nil || !os.SameFile(mine, there) {
			file.Close()
			continue
		}
		host, _ := os.Hostname() // only for the message that another export shows
		record, err := json.Marshal(holder{PID: os.Getpid(), Host: host, VM: vm, Since: time.Now().UTC().Truncate(time.Second)})
		if err == nil {
			if err = file.Truncate(0); err == nil {
				_, err = file.WriteAt(record, 0)
			}
		}
		if err != nil {
			err = errors.Join(err, f.root.Remove(lockName), file.Close())
			return problem.New(problem.Failed, what, plain(err), "")
		}
		f.lock = file
		return nil
	}
	return problem.New(problem.Conflict, what, errors.New("its lock changes hands too fast"), "choose another folder")
}

func readHolder(file *os.File) string {
	var h holder
	data, err := io.ReadAll(io.LimitReader(file, 64<<10))
	if err != nil || json.Unmarshal(data, &h) != nil || h.PID == 0 {
		return "another export"
	}
	return fmt.Sprintf("the export of %q (process %d on %q, since %s)", h.VM, h.PID, h.Host, h.Since.Format(time.RFC3339))
}

// Close gives the folder back. Folders that Hold made and that are empty
// again go away.
func (f *Folder) Close() error {
	if f.lock == nil {
		return nil
	}
	// Removed before it is unlocked: whoever waits for the name finds a new
	// file or none.
	err := errors.Join(f.root.Remove(lockName), f.lock.Close(), f.root.Close())
	f.lock = nil
	f.removeCreated()
	return errors.Join(err, f.above.Close())
}

// removeCreated removes what Hold made; a folder with files in it stays.
func (f *Folder) removeCreated() {
	for i := len(f.created) - 1; i >= 0; i-- {
		if f.above.Remove(f.created[i]) != nil {
			return
		}
	}
}

// Dir is the folder's absolute path.
func (f *Folder) Dir() string { return f.dir }

// Path is the absolute path of a file in the folder.
func (f *Folder) Path(name string) string { return filepath.Join(f.dir, name) }

// FreeAt is how many bytes this user may write to the file system that a folder
// is on, or would be on: it need not exist yet. The error is a
// problem.Failed.
func FreeAt(dir string) (int64, error) {
	for at := filepath.Clean(dir); ; at = filepath.Dir(at) {
		var st unix.Statfs_t
		err := unix.Statfs(at, &st)
		if err == nil {
			return int64(st.Bavail) * st.Bsize, nil
		}
		if !errors.Is(err, fs.ErrNotExist) || at == filepath.Dir(at) {
			return 0, problem.New(problem.Failed, "ask for free space of "+at, err, "choose a folder that this user may write to")
		}
	}
}

// Free is how many bytes this user may still write to the folder's file
// system.
func (f *Folder) Free() (int64, error) {
	var st unix.Statfs_t
	if err := f.statfs(&st); err != nil {
		return 0, fmt.Errorf("ask for free space of %s: %w", f.dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

func (f *Folder) statfs(st *unix.Statfs_t) error {
	d, err := f.root.Open(".")
	if err != nil {
		return plain(err)
	}
	defer d.Close()
	return unix.Fstatfs(int(d.Fd()), st)
}

// Put writes a small file whole: partial, synced, renamed.
func (f *Folder) Put(name string, data []byte) error {
	p, err := f.Open(name)
	if err != nil {
		return err
	}
	defer p.Close()
	if err := p.Reset(); err != nil {
		return err
	}
	if _, err := p.Write(data); err != nil {
		return err
	}
	return p.Commit()
}

func (f *Folder) exists(name string) (bool, error) {
	_, err := f.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// remove removes a file that may be gone already.
func (f *Folder) remove(name string) error {
	if err := f.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", f.Path(name), plain(err))
	}
	return nil
}

// syncDir makes names durable.
func (f *Folder) syncDir() error {
	d, err := f.root.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync folder %s: %w", f.dir, err)
	}
	return nil
}

// plain takes the operation and path out of an *fs.PathError: the messages
// here name the path already.
func plain(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}
