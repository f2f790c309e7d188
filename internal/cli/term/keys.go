package term

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"unicode/utf8"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// ErrInterrupted means that somebody pressed Ctrl-C, or Ctrl-D where nothing
// had been typed, at a prompt.
var ErrInterrupted = errors.New("interrupted")

// key is one key press: a rune, or a special key as a negative number.
type key = rune

const (
	keyUp key = -1 - iota
	keyDown
	keyPageUp
	keyPageDown
	keyHome
	keyEnd
	keyDelete
	keyLeft
	keyRight
	keyEscape
	keyResize // no key: the terminal has another size
	keyUnknown
)

// Control characters that terminals send for keys.
const (
	keyCtrlC     key = 0x03
	keyCtrlD     key = 0x04
	keyCtrlH     key = 0x08
	keyTab       key = '\t'
	keyCtrlJ     key = '\n'
	keyCtrlN     key = 0x0e
	keyCtrlP     key = 0x10
	keyEnter     key = '\r'
	keyCtrlU     key = 0x15
	keyCtrlW     key = 0x17
	keyBackspace key = 0x7f
)

var sequences = map[string]key{
	"[A": keyUp, "OA": keyUp, "[B": keyDown, "OB": keyDown, "[5~": keyPageUp, "[6~": keyPageDown,
	"[H": keyHome, "OH": keyHome, "[1~": keyHome, "[F": keyEnd, "OF": keyEnd, "[4~": keyEnd, "[3~": keyDelete,
	"[C": keyRight, "OC": keyRight, "[D": keyLeft, "OD": keyLeft,
}

// keyboard reads keys from a terminal in raw mode. It belongs to one
// goroutine.
type keyboard struct {
	file *os.File
	old  *term.State
	buf  []byte
	size func() [2]int
	last [2]int // size when a key was last given
}

// pollMillis is how long one wait for a key lasts: so soon the end of a
// context is seen, and a lone escape is taken for the key.
const pollMillis = 50

// openKeyboard puts the terminal into raw mode; close takes it back.
func (s IO) openKeyboard() (*keyboard, error) {
	f, ok := s.In.(*os.File)
	if !ok {
		return nil, errors.New("standard input is no terminal")
	}
	old, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	size := func() [2]int { return [2]int{s.Width(), s.Height()} }
	return &keyboard{file: f, old: old, size: size, last: size()}, nil
}

func (k *keyboard) close() error {
	if err := term.Restore(int(k.file.Fd()), k.old); err != nil {
		return fmt.Errorf("restore terminal: %w", err)
	}
	return nil
}

// next waits for a key, or for another size of the terminal. It fails when ctx
// ends or the terminal is gone.
func (k *keyboard) next(ctx context.Context) (key, error) {
	quiet := false
	for {
		if got, n := parseKey(k.buf, quiet); n > 0 {
			k.buf = k.buf[n:]
			return got, nil
		}
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		fds := []unix.PollFd{{Fd: int32(k.file.Fd()), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, pollMillis)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return 0, fmt.Errorf("read keys: %w", err)
		}
		quiet = n == 0 && err == nil
		if n <= 0 {
			if now := k.size(); now != k.last {
				k.last = now
				return keyResize, nil
			}
			continue
		}
		// Byte by byte, so that what is typed ahead is there for the next prompt.
		chunk := make([]byte, 1)
		n, err = k.file.Read(chunk)
		k.buf = append(k.buf, chunk[:n]...)
		if n == 0 {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return 0, fmt.Errorf("read keys: %w", err)
		}
	}
}

// parseKey takes one key off the front of buf and gives its length, 0 when
// buf does not hold a whole one. Quiet means that no more is about to come.
func parseKey(buf []byte, quiet bool) (key, int) {
	if len(buf) == 0 {
		return 0, 0
	}
	if buf[0] != 0x1b {
		if !utf8.FullRune(buf) && !quiet {
			return 0, 0
		}
		r, n := utf8.DecodeRune(buf)
		if r == utf8.RuneError && n == 1 {
			return keyUnknown, 1
		}
		return r, n
	}
	if len(buf) == 1 {
		if quiet {
			return keyEscape, 1
		}
		return 0, 0
	}
	end := -1
	switch buf[1] {
	case '[':
		// A control sequence ends with a byte from @ to ~ (ECMA-48, 5.4).
		if i := bytes.IndexFunc(buf[2:], func(r rune) bool { return r >= '@' && r <= '~' }); i >= 0 {
			end = 2 + i
		}
	case 'O':
		if len(buf) > 2 {
			end = 2
		}
	default:
		return keyUnknown, 2 // Alt with a key
	}
	if end < 0 {
		if quiet {
			return keyUnknown, len(buf)
		}
		return 0, 0
	}
	if got, ok := sequences[string(buf[1:end+1])]; ok {
		return got, end + 1
	}
	return keyUnknown, end + 1
}
