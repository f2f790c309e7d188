package term

import (
	"bytes"
	"fmt"
	"os"
	"strings"

	"github.com/mattn/go-runewidth"
	"golang.org/x/term"
)

// Region is the lines at the bottom of a terminal that are drawn again in
// place. Between two calls the cursor stands below them and is never hidden,
// so that there is nothing to restore when the process dies. It is used by one
// goroutine at a time.
type Region struct {
	io    IO
	drawn []int // widths in columns of the lines on the screen
}

// NewRegion gives an empty region at the bottom of standard output, which
// should be a terminal.
func NewRegion(s IO) *Region { return &Region{io: s} }

// Lines is how many lines are on the screen.
func (r *Region) Lines() int { return len(r.drawn) }

// Height is the terminal's height in rows, 24 when there is none.
func (s IO) Height() int {
	if f, ok := s.Out.(*os.File); ok {
		if _, h, err := term.GetSize(int(f.Fd())); err == nil && h > 0 {
			return h
		}
	}
	return 24
}

// Draw replaces what the region shows by lines, and puts above, which are
// whole lines, over it for good. Lines hold no escapes. They are cut to the
// terminal's width, because a wrapped one would be counted wrong, and their
// number to its height.
func (r *Region) Draw(above []byte, lines []string) {
	width := r.io.Width()
	if most := max(1, r.io.Height()-2); len(lines) > most {
		more := fmt.Sprintf("  and %d more", len(lines)-most+1)
		lines = append(lines[:most-1:most-1], more)
	}
	if len(lines) == 0 && len(r.drawn) == 0 && len(above) == 0 {
		return
	}
	var b bytes.Buffer
	rows := 0
	for _, w := range r.drawn {
		// A terminal made narrower meanwhile has wrapped them.
		rows += max(1, (w+width-1)/width)
	}
	if rows > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", rows)
	}
	b.WriteString("\r\x1b[J")
	b.Write(above)
	r.drawn = r.drawn[:0]
	for _, line := range lines {
		line, inverted := strings.CutPrefix(line, invert)
		line = Shorten(strings.TrimSuffix(line, reset), width-1)
		r.drawn = append(r.drawn, runewidth.StringWidth(line))
		if inverted {
			line = invert + line + reset
		}
		b.WriteString(line + "\r\n") // raw mode needs both
	}
	// In one piece, so that nothing flickers.
	_, _ = r.io.Out.Write(b.Bytes()) // a terminal that is gone ends the process by SIGHUP
}
