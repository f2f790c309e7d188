package auth

import (
	"crypto/sha256"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lookEvery is how often files are looked at for a change, at most. A
	// look is one stat a file and happens when somebody asks for the value:
	// there is no goroutine behind it.
	lookEvery = time.Second
	// settled is how old a change must be to be told by its time alone: file
	// systems count in ticks, and a second change within one tick looks like
	// the first.
	settled = 2 * time.Second
)

// live is a value that is read from files, and read again when they change.
// When the new files are not good, the value stays as it was and the log says
// why. Its methods are safe for concurrent use.
type live[T any] struct {
	what  string // for the log: "tokens", "certificates"
	files []string
	// load reads the files and gives, beside the value, a hash of what they
	// hold.
	load func() (T, [sha256.Size]byte, error)
	// changed, which may be nil, hears of each reload that brought a change.
	changed func(before, now T)
	log     *slog.Logger

	mu      sync.Mutex
	value   T
	content [sha256.Size]byte
	seen    []stamp
	looked  time.Time
	fresh   bool   // seen is too young to be trusted
	failure string // as logged last
}

// stamp is what changes when a file does. The time of the inode's change
// covers its content, its rights, and that another file has taken its name.
type stamp struct {
	missing  bool
	dev, ino uint64
	size     int64
	changed  unix.Timespec
}

// newLive reads the files for the first time.
func newLive[T any](what string, log *slog.Logger, load func() (T, [sha256.Size]byte, error), files ...string) (*live[T], error) {
	l := &live[T]{what: what, files: files, load: load, log: log}
	now := time.Now()
	l.seen, l.fresh = stamps(files, now)
	l.looked = now
	var err error
	l.value, l.content, err = load()
	return l, err
}

// get gives the newest good value.
func (l *live[T]) get() T {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); now.Sub(l.looked) >= lookEvery || now.Before(l.looked) {
		seen, fresh := stamps(l.files, now)
		changed := l.fresh || len(seen) != len(l.seen)
		for i := range seen {
			changed = changed || seen[i] != l.seen[i]
		}
		l.looked = now
		if changed {
			l.seen, l.fresh = seen, fresh
			_ = l.reload() // the log has the error
		}
	}
	return l.value
}

// again reads the files whatever their times say.
func (l *live[T]) again() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.looked = time.Now()
	l.seen, l.fresh = stamps(l.files, l.looked)
	return l.reload()
}

// reload takes the stamps' files. The caller holds mu and has taken the
// stamps before: a change in between is seen at the next look.
func (l *live[T]) reload() error {
	value, content, err := l.load()
	if err != nil {
		if text := err.Error(); text != l.failure {
			l.failure = text
			l.log.Error("changed files were not taken, what was read before stays in force",
				slog.String("what", l.what), slog.String("error", text))
		}
		return fmt.Errorf("reload %s: %w", l.what, err)
	}
	l.failure = ""
	before := l.value
	l.value = value
	if content != l.content {
		l.content = content
		l.log.Info("changed files were read again", slog.String("what", l.what))
		if l.changed != nil {
			l.changed(before, value)
		}
	}
	return nil
}

// stamps looks at the files. Fresh reports that one of them has changed so
// recently that its stamp does not tell it from a later change.
func stamps(files []string, now time.Time) (out []stamp, fresh bool) {
	for _, f := range files {
		var st unix.Stat_t
		if err := unix.Stat(f, &st); err != nil {
			// Why it cannot be looked at is what reading it will say.
			out = append(out, stamp{missing: true})
			continue
		}
		out = append(out, stamp{dev: st.Dev, ino: st.Ino, size: st.Size, changed: st.Ctim})
		fresh = fresh || now.Sub(time.Unix(st.Ctim.Unix())) < settled
	}
	return out, fresh
}
