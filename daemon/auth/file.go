package auth

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

const (
	// lockTimeout is how long a change waits for another one of the same file.
	lockTimeout = 5 * time.Second
	lockPoll    = 20 * time.Millisecond
)

// ListTokens reads a token file, in the order of creation. A file that does
// not exist holds none. One that others may read or write is refused.
func ListTokens(file string) ([]Token, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK, 0) // not waiting for a pipe's writer
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fileProblem("read", file, plain(err), "run this as the user of the daemon")
	}
	defer f.Close()
	return readTokens(f, file)
}

func fileProblem(verb, file string, err error, advice string) error {
	return problem.New(problem.Invalid, fmt.Sprintf("%s token file %s", verb, file), err, advice)
}

// readTokens reads an opened token file and judges who else may.
func readTokens(f *os.File, name string) ([]Token, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, fileProblem("read", name, plain(err), "")
	}
	if !info.Mode().IsRegular() {
		return nil, fileProblem("read", name, errors.New("it is not a regular file"), "give another")
	}
	if p := info.Mode().Perm(); p&0o037 != 0 {
		return nil, fileProblem("read", name, fmt.Errorf("others may use it (mode %#o)", p), "chmod 600 "+name+", or 640 for root's file in the daemon's group")
	}
	// Whoever owns the file makes operators. Root runs the commands for other
	// users and is not asked.
	if st, ok := info.Sys().(*syscall.Stat_t); ok && os.Geteuid() != 0 && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return nil, fileProblem("read", name, fmt.Errorf("it belongs to another user (uid %d)", st.Uid), "chown it to the user of the daemon")
	}
	data, err := io.ReadAll(io.LimitReader(f, maxTokenFile+1))
	if err == nil && len(data) > maxTokenFile {
		err = fmt.Errorf("it is larger than %d bytes", maxTokenFile)
	}
	if err != nil {
		return nil, fileProblem("read", name, plain(err), "")
	}
	tokens, err := parseTokens(data)
	if err != nil {
		return nil, fileProblem("read", name, err, "remove that line and add the token again")
	}
	return tokens, nil
}

// AddToken adds a token to a file, which is made if need be, and gives it with
// its secret. Nothing keeps the secret: it cannot be shown again. Expires may
// be zero. A name that is taken is a problem.Conflict.
func AddToken(ctx context.Context, file, name string, role Role, expires time.Time) (Token, string, error) {
	const what = "add token"
	if err := checkName(name); err != nil {
		return Token{}, "", problem.New(problem.Invalid, what, err, "")
	}
	if _, err := ParseRole(string(role)); err != nil {
		return Token{}, "", problem.New(problem.Invalid, what, err, "")
	}
	secret := newSecret()
	t := Token{
		ID: newID(), Name: name, Role: role, Created: time.Now().UTC().Truncate(time.Second),
		Expires: expires.UTC(), hash: hashSecret(secret),
	}
	if expires.IsZero() {
		t.Expires = time.Time{}
	} else if t.Expired(time.Now()) {
		return Token{}, "", problem.New(problem.Invalid, what, errors.New("it would have expired already"), "give a time to come")
	}
	err := changeTokens(ctx, file, func(tokens []Token) ([]Token, error) {
		if len(tokens) >= maxTokens {
			return nil, problem.New(problem.Conflict, what, fmt.Errorf("the file holds %d tokens", len(tokens)), "remove those that are not in use")
		}
		for _, have := range tokens {
			if have.Name == name {
				return nil, problem.New(problem.Conflict, what, fmt.Errorf("there is a token named %q (%s)", name, have.ID),
					"choose another name, or remove that one first")
			}
			if have.ID == t.ID {
				return nil, problem.New(problem.Conflict, what, errors.New("the random id is taken"), "try again")
			}
		}
		return append(tokens, t), nil
	})
	if err != nil {
		return Token{}, "", err
	}
	return t, secret, nil
}

// RemoveToken removes the token of that id or name and gives what it was. An
// unknown one is a problem.NotFound. When a name is another's id, the id
// counts.
func RemoveToken(ctx context.Context, file, which string) (Token, error) {
	var gone Token
	err := changeTokens(ctx, file, func(tokens []Token) ([]Token, error) {
		i := slices.IndexFunc(tokens, func(t Token) bool { return t.ID == which })
		if i < 0 {
			i = slices.IndexFunc(tokens, func(t Token) bool { return t.Name == which })
		}
		if i < 0 {
			// Not repeated: it may be a token's secret.
			return nil, problem.New(problem.NotFound, "remove token", errors.New("no token has this id or name"), "see: hyper2kvmd token list")
		}
		gone = tokens[i]
		return slices.Delete(tokens, i, i+1), nil
	})
	return gone, err
}

// changeTokens rewrites a token file under a lock, so that readers see it whole
// and of two changes none is lost. The lock is on the folder: the file itself
// is replaced.
func changeTokens(ctx context.Context, file string, change func([]Token) ([]Token, error)) (err error) {
	fail := func(err error, advice string) error { return fileProblem("change", file, plain(err), advice) }
	dir, base := filepath.Split(file)
	if base == "" {
		return fail(errors.New("it names a folder"), "give the file's name")
	}
	if dir == "" {
		dir = "."
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fail(err, "make the folder first, with the daemon's user as its owner")
	}
	defer root.Close()
	folder, err := root.Open(".")
	if err != nil {
		return fail(err, "")
	}
	defer folder.Close()
	if err := lock(ctx, folder); err != nil {
		return fail(err, "another change is under way: try again")
	}
	info, err := folder.Stat()
	if err != nil {
		return fail(err, "")
	}
	owner := ownerOfNew(info)
	var tokens []Token
	switch f, err := root.OpenFile(base, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fail(err, "run this as the user of the daemon; a symbolic link is not followed")
	default:
		defer f.Close()
		if tokens, err = readTokens(f, file); err != nil {
			return err
		}
		if info, err = f.Stat(); err != nil {
			return fail(err, "")
		}
		owner = ownerOf(info)
		owner.mode = info.Mode().Perm()
	}
	if tokens, err = change(tokens); err != nil {
		return err
	}
	data, err := formatTokens(tokens)
	if err != nil {
		return err
	}
	if err := replace(root, folder, base, data, owner); err != nil {
		return fail(err, "run this as the user of the daemon")
	}
	return nil
}

// owner is whose a token file is. A daemon that may not change its tokens reads
// them by its group.
type owner struct {
	uid, gid int
	mode     os.FileMode
}

func ownerOf(info os.FileInfo) owner {
	o := owner{os.Geteuid(), os.Getegid(), 0o600}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		o.uid, o.gid = int(st.Uid), int(st.Gid)
	}
	return o
}

// ownerOfNew is whose a new file in a folder becomes: its owner's, or, when
// root keeps the folder for a group, that group's to read.
func ownerOfNew(folder os.FileInfo) owner {
	o := ownerOf(folder)
	if o.uid == 0 && o.gid != 0 && folder.Mode().Perm()&0o040 != 0 {
		o.mode = 0o640
	}
	return o
}

// replace puts data in the place of base, whole or not at all. When root
// changes the daemon's tokens the daemon must still be able to read them.
func replace(root *os.Root, folder *os.File, base string, data []byte, of owner) (err error) {
	temp := "." + base + "." + newID()
	f, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	placed := false
	defer func() {
		if !placed {
			err = errors.Join(err, root.Remove(temp))
		}
	}()
	if os.Geteuid() == 0 {
		if err := f.Chown(of.uid, of.gid); err != nil {
			return err
		}
		if err := f.Chmod(of.mode); err != nil {
			return err
		}
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := root.Rename(temp, base); err != nil {
		return err
	}
	placed = true
	return folder.Sync()
}

// lock takes the folder's lock, which ends when it is closed. The kernel's
// waiting flock knows no context, hence the asking.
func lock(ctx context.Context, folder *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		err := unix.Flock(int(folder.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for its lock: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

// plain takes the operation and path out of an *fs.PathError: the messages
// here name the path already.
func plain(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}
