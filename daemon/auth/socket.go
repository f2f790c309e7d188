package auth

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

const (
	// socketMode lets the daemon's user and group in.
	socketMode = 0o660
	// maxSocketPath is what fits into a sockaddr_un, its final zero left out,
	// after the name of the folder that the socket is made in.
	maxSocketPath = 107 - len("/.h2k-0123456789/s")

	probeTimeout = 2 * time.Second
)

// CheckSocketPath refuses a path that is too long for a socket.
func CheckSocketPath(path string) error {
	if len(path) > maxSocketPath {
		return problem.New(problem.Invalid, "listen on "+path, fmt.Errorf("its name has %d bytes", len(path)), fmt.Sprintf("choose one of at most %d", maxSocketPath))
	}
	return nil
}

// ListenUnix listens on a unix socket at path. The socket gets its place once
// its permissions are set; one that a daemon left behind is replaced, one that
// somebody listens on, and a file that is no socket, are not. Close removes
// it.
func ListenUnix(ctx context.Context, path string) (net.Listener, error) {
	what := "listen on " + path
	fail := func(err error, advice string) error { return problem.New(problem.Failed, what, err, advice) }
	if err := CheckSocketPath(path); err != nil {
		return nil, err
	}
	if err := vacant(ctx, path); err != nil {
		return nil, problem.New(problem.Conflict, what, err, "stop what uses it, or choose another with unix_socket")
	}
	// Made under its name, it would have the process's umask for a moment.
	dir, err := os.MkdirTemp(filepath.Dir(path), ".h2k-")
	if err != nil {
		return nil, fail(plain(err), "choose a folder that this user may write to")
	}
	defer os.RemoveAll(dir)
	inner := filepath.Join(dir, "s")
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", inner)
	if err != nil {
		return nil, fail(err, "")
	}
	unixListener, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fail(fmt.Errorf("the listener is a %T", l), ""), l.Close())
	}
	unixListener.SetUnlinkOnClose(false) // it would look for the inner name
	s := &socket{UnixListener: unixListener, path: path}
	if err := os.Chmod(inner, socketMode); err != nil {
		return nil, errors.Join(fail(plain(err), ""), l.Close())
	}
	if s.info, err = os.Lstat(inner); err != nil {
		return nil, errors.Join(fail(plain(err), ""), l.Close())
	}
	if err := os.Rename(inner, path); err != nil {
		return nil, errors.Join(fail(plain(err), ""), l.Close())
	}
	return s, nil
}

// vacant judges what has the socket's name now.
func vacant(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return plain(err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("a file that is no socket has this name")
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return nil // nobody is behind it
	}
	if err != nil {
		return fmt.Errorf("it cannot be told whether a program listens on it: %w", err)
	}
	conn.Close()
	return errors.New("another program listens on it")
}

// socket is a listener that removes its name, unless another one has taken it.
type socket struct {
	*net.UnixListener
	path string
	info os.FileInfo
}

// Close is part of net.Listener.
func (s *socket) Close() error {
	err := s.UnixListener.Close()
	if now, lerr := os.Lstat(s.path); lerr == nil && os.SameFile(now, s.info) {
		err = errors.Join(err, os.Remove(s.path))
	}
	return err
}

// peer is the process at the other end of a unix socket, as the kernel noted
// it when it connected.
type peer struct{ uid, pid int }

func (p peer) identity() Identity {
	who := "uid:" + strconv.Itoa(p.uid)
	return Identity{Who: who, ID: who, Role: Operator}
}

type peerKey struct{}

// ConnContext is for http.Server.ConnContext: it remembers the peer of a unix
// socket for Identify.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	p := peer{uid: -1, pid: -1} // unknown to the kernel, but let in by the file
	if raw, err := u.SyscallConn(); err == nil {
		// An error leaves the peer unknown.
		_ = raw.Control(func(fd uintptr) {
			if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
				p = peer{uid: int(cred.Uid), pid: int(cred.Pid)}
			}
		})
	}
	return context.WithValue(ctx, peerKey{}, p)
}

func peerOf(ctx context.Context) (peer, bool) {
	p, ok := ctx.Value(peerKey{}).(peer)
	return p, ok
}

// Remote says where a request came from: its address, or the process behind a
// unix socket.
func Remote(ctx context.Context, remoteAddr string) string {
	if p, ok := peerOf(ctx); ok {
		return fmt.Sprintf("unix:pid=%d", p.pid)
	}
	return remoteAddr
}

// Local reports whether a request comes straight from this machine: from a
// loopback address or over a unix socket, and not through a proxy that says so.
func Local(r *http.Request) bool {
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-Ip", "Via"} {
		if _, ok := r.Header[name]; ok {
			return false
		}
	}
	if _, ok := peerOf(r.Context()); ok {
		return true
	}
	addr, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && addr.Addr().Unmap().IsLoopback()
}
