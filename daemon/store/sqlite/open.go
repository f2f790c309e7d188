package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

//go:embed migrations/*.sql
var files embed.FS

const (
	// applicationID marks the database as this program's: "h2kv".
	applicationID = 0x68326b76
	// FileName is the database's name in the state folder.
	FileName = "jobs.db"

	header = "SQLite format 3\x00"
	// checkTimeout bounds the look for damage at the start.
	checkTimeout = 2 * time.Minute
	// busyTimeout is how long a write waits for another one.
	busyTimeout = 10 * time.Second
	// connections is how many read at once, beside one writer.
	connections = 4
)

// Open opens the database in folder dir, making both if need be, and holds it
// for this process. A database that is damaged, of a newer version or another
// program's is refused and left as it is; an older one is brought up to date.
// Errors are *problem.Error with what to do.
func Open(ctx context.Context, dir string) (*Store, error) {
	path := filepath.Join(dir, FileName)
	what := "open the job store " + path
	if err := os.MkdirAll(dir, 0o700); err != nil { //nolint:gosec // the administrator names the folder
		return nil, problem.New(problem.Failed, what, err, "choose a state folder that this user may write to, with -state")
	}
	held, err := hold(path + ".lock")
	if err != nil {
		return nil, problem.New(problem.Conflict, what, err, "stop the other daemon, or choose another state folder with -state")
	}
	s := &Store{path: path, lock: held}
	if err := s.open(ctx); err != nil {
		err = errors.Join(err, held.release())
		if p, ok := errors.AsType[*problem.Error](err); ok {
			return nil, problem.New(p.Kind, what, p.Err, p.Advice)
		}
		if errors.Is(err, fs.ErrPermission) {
			return nil, problem.New(problem.Failed, what, err, "chown it to the daemon's user, as after a backup was put there by root, or choose another state folder with -state")
		}
		return nil, problem.New(problem.Failed, what, err, "if it is damaged, stop the daemon, move it away and put a backup in its place")
	}
	return s, nil
}

func (s *Store) open(ctx context.Context) (err error) {
	made, err := checkFile(s.path)
	if err != nil {
		return err
	}
	if !made {
		if err := judge(ctx, s.path); err != nil {
			return err
		}
	}
	if s.db, err = connect(s.path, url.Values{"_txlock": {"immediate"}, "_pragma": {"journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)"}}); err != nil {
		return err
	}
	s.db.SetMaxOpenConns(connections)
	if err := s.migrate(ctx); err != nil {
		return errors.Join(err, s.db.Close())
	}
	return nil
}

// connect opens the database file with options of the driver's.
func connect(path string, options url.Values) (*sql.DB, error) {
	options.Add("_pragma", "busy_timeout("+strconv.FormatInt(busyTimeout.Milliseconds(), 10)+")")
	return sql.Open("sqlite", (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: options.Encode()}).String())
}

// judge refuses a database that is damaged, another program's or newer. It
// reads only: to open a database for writing, and to close it, moves the
// write-ahead log into it, which a damaged one would not survive.
func judge(ctx context.Context, path string) (err error) {
	db, err := connect(path, url.Values{"mode": {"ro"}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1)
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	var found string
	err = db.QueryRowContext(ctx, `PRAGMA quick_check(1)`).Scan(&found)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return problem.New(problem.Failed, "", fmt.Errorf("it could not be checked for damage within %v", checkTimeout), "start again when the disk is less busy, or keep fewer jobs (retention)")
	}
	if err != nil {
		return err
	}
	if found != "ok" {
		return problem.New(problem.Failed, "", fmt.Errorf("it is damaged: %s", found), "move it and its -wal away together and put a backup in its place (hyper2kvmd backup makes them)")
	}
	names, err := migrations()
	if err != nil {
		return err
	}
	v, err := versionOf(ctx, db)
	switch {
	case err != nil:
		return err
	case v.application != applicationID && v.tables > 0:
		return foreign()
	case v.number > len(names):
		return problem.New(problem.Conflict, "", fmt.Errorf("it is of version %d, and this daemon knows up to %d", v.number, len(names)),
			"run the newer hyper2kvmd, or restore a backup from before its update")
	}
	return nil
}

// version says what a database is.
type version struct{ number, application, tables int }

func versionOf(ctx context.Context, db *sql.DB) (v version, err error) {
	for query, to := range map[string]*int{`PRAGMA user_version`: &v.number, `PRAGMA application_id`: &v.application, `SELECT count(*) FROM sqlite_schema`: &v.tables} {
		if err := db.QueryRowContext(ctx, query).Scan(to); err != nil {
			return v, err
		}
	}
	return v, nil
}

func migrations() ([]string, error) { return fs.Glob(files, "migrations/*.sql") }

// checkFile looks at the file before SQLite does, and makes it if there is none.
func checkFile(path string) (made bool, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if errors.Is(err, syscall.ELOOP) {
		return false, problem.New(problem.Conflict, "", errors.New("it is a symbolic link"), "put the database itself there")
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	begin := make([]byte, headerSize)
	n, err := io.ReadFull(f, begin)
	if n == 0 && errors.Is(err, io.EOF) {
		return true, nil
	}
	if err != nil || string(begin[:len(header)]) != header {
		return false, problem.New(problem.Conflict, "", errors.New("it is no SQLite database, or its beginning is damaged"), "move it away, and put a backup in its place if there is one")
	}
	// Opening a database for writing changes it.
	if app := binary.BigEndian.Uint32(begin[offApplicationID:]); app != applicationID && (app != 0 || binary.BigEndian.Uint32(begin[offSchemaCookie:]) != 0) {
		return false, foreign()
	}
	return false, nil
}

func foreign() error {
	return problem.New(problem.Conflict, "", errors.New("it is the database of another program"), "choose another state folder with -state")
}

// The database header (https://sqlite.org/fileformat2.html, section 1.3). The
// schema cookie counts changes of the schema, so that it is 0 without tables.
const (
	headerSize       = 100
	offSchemaCookie  = 40
	offApplicationID = 68
)

// migrate brings the database to the newest version: one transaction for each
// numbered file, which ends with the number as PRAGMA user_version.
func (s *Store) migrate(ctx context.Context) error {
	names, err := migrations()
	if err != nil {
		return err
	}
	v, err := versionOf(ctx, s.db)
	if err != nil {
		return err
	}
	return s.apply(ctx, names, v.number)
}

func (s *Store) apply(ctx context.Context, names []string, version int) error {
	for i := version; i < len(names); i++ {
		text, err := files.ReadFile(names[i])
		if err != nil {
			return err
		}
		err = s.write(ctx, func(tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, string(text)+fmt.Sprintf(";\nPRAGMA user_version = %d;\nPRAGMA application_id = %d;", i+1, applicationID))
			return err
		})
		if err != nil {
			return fmt.Errorf("bring it to version %d: %w", i+1, err)
		}
	}
	return nil
}

// Backup writes a copy of the database, as it is at this moment, to a new
// file.
func Backup(ctx context.Context, dir, file string) error {
	what := "back up the job store to " + file
	path := filepath.Join(dir, FileName)
	if _, err := os.Stat(path); err != nil {
		return problem.New(problem.NotFound, what, err, "name the daemon's state folder with -state")
	}
	if _, err := os.Lstat(file); err == nil {
		return problem.New(problem.Conflict, what, errors.New("the file is there already"), "choose another name")
	}
	partial := file + ".partial"
	// Made here, so that nobody else may read it.
	f, err := os.OpenFile(partial, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return problem.New(problem.Failed, what, err, "choose a folder that this user may write to; a partial file of an earlier attempt can be removed")
	}
	err = errors.Join(f.Close(), copyTo(ctx, path, partial))
	if err == nil {
		err = os.Rename(partial, file)
	}
	if err != nil {
		return problem.New(problem.Failed, what, errors.Join(err, os.Remove(partial)), "")
	}
	return nil
}

// copyTo has SQLite write a consistent copy, which works beside a running
// daemon, and syncs it.
func copyTo(ctx context.Context, path, to string) error {
	db, err := connect(path, url.Values{"mode": {"ro"}})
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, `VACUUM INTO ?`, to)
	if err = errors.Join(err, db.Close()); err != nil {
		return err
	}
	f, err := os.Open(to)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// lock says that a process has the database. SQLite's own locks allow several,
// which the queue is not made for.
type lock struct{ file *os.File }

func hold(path string) (*lock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600) //nolint:gosec // as in Open
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		who, rerr := io.ReadAll(io.LimitReader(f, 64))
		if rerr != nil || len(who) == 0 {
			who = []byte("unknown")
		}
		err = fmt.Errorf("it is in use by another hyper2kvmd, process %q", who)
		return nil, errors.Join(err, f.Close())
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())), 0)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &lock{f}, nil
}

// release lets go. The file stays: removing it would race with the next.
func (l *lock) release() error { return l.file.Close() }
