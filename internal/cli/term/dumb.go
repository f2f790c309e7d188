package term

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// dumbLine reads a line on a terminal that cannot move its cursor: the
// terminal itself edits it. Ctrl-C is a signal there, which ends ctx.
func (s IO) dumbLine(ctx context.Context, question string, secret bool) (text string, err error) {
	f, ok := s.In.(*os.File)
	if !ok {
		return "", errors.New("standard input is no terminal")
	}
	fmt.Fprint(s.Out, question)
	if secret {
		restore, err := noEcho(int(f.Fd()))
		if err != nil {
			return "", err
		}
		defer func() {
			fmt.Fprintln(s.Out)
			err = errors.Join(err, restore())
		}()
	}
	var line []byte
	for {
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, pollMillis)
		if ctx.Err() != nil {
			fmt.Fprintln(s.Out)
			return "", ErrInterrupted
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return "", fmt.Errorf("read a line: %w", err)
		}
		if n <= 0 {
			continue
		}
		one := make([]byte, 1)
		switch n, err := f.Read(one); {
		case n == 0 && (err == nil || errors.Is(err, io.EOF)) && len(line) == 0:
			return "", ErrInterrupted // Ctrl-D
		case n == 0 && err != nil && !errors.Is(err, io.EOF):
			return "", fmt.Errorf("read a line: %w", err)
		case n == 0 || one[0] == '\n':
			return Clean(string(line)), nil
		case len(line) < maxAnswer:
			line = append(line, one[0])
		}
	}
}

// noEcho has a terminal not show what is typed, until restore is called.
func noEcho(fd int) (restore func() error, err error) {
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("hide what is typed: %w", err)
	}
	silent := *old
	silent.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &silent); err != nil {
		return nil, fmt.Errorf("hide what is typed: %w", err)
	}
	return func() error {
		if err := unix.IoctlSetTermios(fd, unix.TCSETS, old); err != nil {
			return fmt.Errorf("show again what is typed: %w", err)
		}
		return nil
	}, nil
}

// maxDumb is how many rows a dumb terminal is shown at once.
const maxDumb = 30

// dumbSelect asks for a filter until what is left is chosen by numbers.
func (s IO) dumbSelect(ctx context.Context, l List) ([]int, error) {
	p := newPicker(l)
	for {
		shown := p.found[:min(len(p.found), maxDumb)]
		for n, at := range shown {
			fmt.Fprintf(s.Out, "%4d  %s\n", n+1, strings.Join(p.list.Rows[at], "  "))
		}
		fmt.Fprintf(s.Out, "%d of %d\n", len(shown), len(p.list.Rows))
		answer, err := s.dumbLine(ctx, l.Question+" (numbers such as 1 3-5, or words to look for): ", false)
		if err != nil {
			return nil, err
		}
		if picked, ok := numbers(answer, len(shown)); ok {
			for _, n := range picked {
				p.marked[shown[n-1]] = true
			}
			return p.chosen(), nil
		}
		p.filter = []rune(answer)
		p.refilter()
	}
}

// numbers reads "1 3-5"; false when it is something else.
func numbers(text string, most int) (out []int, ok bool) {
	for word := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == ' ' || r == ',' }) {
		low, high, span := strings.Cut(word, "-")
		if !span {
			high = low
		}
		a, err1 := strconv.Atoi(low)
		b, err2 := strconv.Atoi(high)
		if err1 != nil || err2 != nil || a < 1 || b < a || b > most {
			return nil, false
		}
		for n := a; n <= b; n++ {
			out = append(out, n)
		}
	}
	return out, len(out) > 0
}
