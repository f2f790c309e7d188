// Package term is the one room for looks: whether there is a terminal, what
// colours and boxes are drawn on it, how sizes, rates and times are written.
// Off a terminal everything here is plain text without a single escape.
package term

import (
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/mattn/go-runewidth"
	"golang.org/x/term"
)

// IO are the streams and the environment of a command, so that a test can
// run a whole binary in its own process.
type IO struct {
	In      io.Reader
	Out     io.Writer
	Err     io.Writer
	Getenv  func(string) string
	NoColor bool // asked for by a flag
	// Columns, unless 0, is how wide tables may be although Out is no
	// terminal: that of which what is written becomes a part.
	Columns int
}

// System gives the process's own streams.
func System() IO {
	return IO{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv}
}

// Styled reports whether colours and cursor movement may be used on standard
// output: it is a terminal, and neither NO_COLOR, TERM=dumb nor a flag says
// otherwise.
func (s IO) Styled() bool {
	return s.Terminal() && !s.NoColor && s.Getenv("NO_COLOR") == "" && s.Getenv("TERM") != "dumb"
}

// Terminal reports whether standard output is a terminal.
func (s IO) Terminal() bool { return isTerminal(s.Out) }

// Interactive reports whether a person can be asked: both standard input and
// output are a terminal.
func (s IO) Interactive() bool { return isTerminal(s.In) && isTerminal(s.Out) }

// dumb reports whether the terminal cannot move its cursor.
func (s IO) dumb() bool { return s.Getenv("TERM") == "dumb" }

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Width is the terminal's width in columns, 80 when there is none.
func (s IO) Width() int {
	if f, ok := s.Out.(*os.File); ok {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
			return w
		}
	}
	return 80
}

// Escapes of the few styles in use.
const (
	reset  = "\x1b[0m"
	bold   = "\x1b[1m"
	green  = "\x1b[30;42m"
	cyan   = "\x1b[30;46m"
	yellow = "\x1b[30;43m"
)

func (s IO) badge(style, label, format string, args []any) {
	text := fmt.Sprintf(format, args...)
	if s.Styled() {
		s.styledBadge(style, label, text)
		return
	}
	s.plainBadge(style, label, text)
}

const badgeIndent = 10 // the label and what is around it

func (s IO) styledBadge(style, label, text string) {
	lines := wrap(Clean(text), s.Width()-badgeIndent)
	fmt.Fprintf(s.Out, "%s %-7s %s %s\n", style, label, reset, lines[0])
	for _, l := range lines[1:] {
		fmt.Fprintf(s.Out, "%*s%s\n", badgeIndent, "", l)
	}
}

// Wrap breaks a text that is to be written to w, indented by so many columns, at
// spaces if w is a terminal; elsewhere it stays one line.
func Wrap(w io.Writer, text string, indent int) []string {
	if !isTerminal(w) {
		return []string{text}
	}
	return wrap(text, IO{Out: w}.Width()-indent)
}

// wrap breaks a text at spaces into lines of at most width columns; a longer
// word, a path say, stays whole, so that it can be copied.
func wrap(text string, width int) []string {
	if runewidth.StringWidth(text) <= width {
		return []string{text}
	}
	var lines []string
	line, used := "", 0
	for _, word := range strings.Split(text, " ") {
		w := runewidth.StringWidth(word)
		if used > 0 && used+1+w > width {
			lines = append(lines, line)
			line, used = "", 0
		}
		if used > 0 {
			line += " "
			used++
		}
		line += word
		used += w
	}
	return append(lines, line)
}

func (s IO) plainBadge(_, label, text string) {
	fmt.Fprintf(s.Out, " %-7s  %s\n", label, Clean(text))
}

// Success says that something is done.
func (s IO) Success(format string, args ...any) { s.badge(green, "SUCCESS", format, args) }

// Info says something worth knowing.
func (s IO) Info(format string, args ...any) { s.badge(cyan, "INFO", format, args) }

// Next says what a command is for and gives it. On a terminal that is too
// narrow for both, the command has lines of its own that only the terminal
// breaks, so that it can be copied.
func (s IO) Next(what, command string) {
	if s.Styled() && runewidth.StringWidth(what+": "+command) > s.Width()-badgeIndent {
		s.Info("%s:", what)
		fmt.Fprintln(s.Out, Clean(command))
		return
	}
	s.Info("%s: %s", what, command)
}

// Warn says something to look at.
func (s IO) Warn(format string, args ...any) { s.badge(yellow, "WARNING", format, args) }

// Heading begins a section, as "# text".
func (s IO) Heading(text string) {
	if s.Styled() {
		fmt.Fprintf(s.Out, "%s# %s%s\n", bold, Clean(text), reset)
		return
	}
	fmt.Fprintf(s.Out, "# %s\n", Clean(text))
}

// Table draws a boxed table. Cells are cleaned and aligned by the width they
// have on a terminal; columns wider than their limit (0 is none) are shortened,
// and on a terminal the widest ones, until the table fits. Paths lose their
// beginning, because their end tells more.
func (s IO) Table(head []string, rows [][]string, limits ...int) {
	limit := func(i int) int {
		if i < len(limits) && limits[i] > 0 {
			return limits[i]
		}
		return math.MaxInt
	}
	all := append([][]string{head}, rows...)
	widths := make([]int, len(head))
	for r, row := range all {
		cells := make([]string, len(head))
		for i := range head {
			if i < len(row) {
				cells[i] = Clean(row[i])
			}
			widths[i] = max(widths[i], min(runewidth.StringWidth(cells[i]), limit(i)))
		}
		all[r] = cells
	}
	if most := s.TableWidth(); most > 0 {
		fit(widths, 3, most-1, func(i int) bool { return i < len(limits) && limits[i] == Whole })
	}
	for _, row := range all {
		for i := range row {
			row[i] = shortenCell(row[i], widths[i])
		}
	}
	line := func(left, mid, right string) {
		parts := make([]string, len(widths))
		for i, w := range widths {
			parts[i] = strings.Repeat("─", w+2)
		}
		fmt.Fprintln(s.Out, left+strings.Join(parts, mid)+right)
	}
	line("┌", "┬", "┐")
	for r, row := range all {
		var b strings.Builder
		for i, cell := range row {
			pad := strings.Repeat(" ", widths[i]-runewidth.StringWidth(cell))
			if r == 0 && s.Styled() {
				cell = bold + cell + reset
			}
			b.WriteString("│ " + cell + pad + " ")
		}
		fmt.Fprintln(s.Out, b.String()+"│")
		if r == 0 {
			line("├", "┼", "┤")
		}
	}
	line("└", "┴", "┘")
}

// TableWidth is how many columns a table may take; 0 means that it does not
// matter.
func (s IO) TableWidth() int {
	if s.Columns == 0 && s.Terminal() {
		return s.Width()
	}
	return s.Columns
}

// minColumn is the least width to which a column is made narrower.
const minColumn = 8

// Whole is the limit of a column of Table that stays as wide as its cells, as
// long as others can give way.
const Whole = -1

// fit makes the widest of columns narrower, gap apart, until they are not wider
// than most, as far as that can be; those to keep come last.
func fit(widths []int, gap, most int, keep func(i int) bool) {
	total := 0
	for _, w := range widths {
		total += w + gap
	}
	for ; total > most; total-- {
		widest := -1
		for _, kept := range []bool{false, true} {
			for i, w := range widths {
				if keep(i) == kept && w > minColumn && (widest < 0 || w > widths[widest]) {
					widest = i
				}
			}
			if widest >= 0 {
				break
			}
		}
		if widest < 0 {
			return
		}
		widths[widest]--
	}
}

// shortenCell is Shorten that keeps the end of a path.
func shortenCell(text string, width int) string {
	w := runewidth.StringWidth(text)
	if w <= width || !strings.HasPrefix(text, "/") {
		return Shorten(text, width)
	}
	return runewidth.TruncateLeft(text, w-width+1, "…")
}

// Shorten cuts s to at most width columns, with an ellipsis where it was cut.
func Shorten(s string, width int) string {
	if runewidth.StringWidth(s) <= width {
		return s
	}
	return runewidth.Truncate(s, width, "…")
}

// Clean takes control characters and escape sequences out of text that came
// from elsewhere: a VM's name must not move the cursor.
func Clean(s string) string {
	s = strings.ToValidUTF8(s, "\ufffd") // a lone 0x9b is an 8-bit CSI
	clean := true
	for _, r := range s {
		if unsafe(r) {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case unsafe(r):
			return '�'
		}
		return r
	}, s)
}

func unsafe(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) }

// Size writes bytes with binary units: "1.2 GiB".
func Size(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", max(0, n))
	}
	v := float64(n)
	unit := -1
	for v >= 1023.95 && unit < 5 {
		v /= 1024
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGTPE"[unit])
}

// Rate writes bytes per second: "25.0 MiB/s".
func Rate(n int64) string { return Size(n) + "/s" }

// Duration writes a time in two units: "1h02m", "3m07s", "12s"; an unknown
// (negative) one is "--".
func Duration(d time.Duration) string {
	if d < 0 {
		return "--"
	}
	s := int64(d.Round(time.Second) / time.Second)
	switch {
	case s >= 86400:
		return fmt.Sprintf("%dd%02dh", s/86400, s%86400/3600)
	case s >= 3600:
		return fmt.Sprintf("%dh%02dm", s/3600, s%3600/60)
	case s >= 60:
		return fmt.Sprintf("%dm%02ds", s/60, s%60)
	}
	return fmt.Sprintf("%ds", s)
}
