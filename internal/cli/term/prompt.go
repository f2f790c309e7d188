package term

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/mattn/go-runewidth"
)

// The prompts need IO.Interactive. Each leaves the terminal as it was,
// whatever happens, and fails with ErrInterrupted or the cause of ctx's end.

const (
	maxAnswer = 4096 // runes
	invert    = "\x1b[7m"
)

// withKeys calls f with the terminal in raw mode.
func (s IO) withKeys(f func(*keyboard) error) (err error) {
	k, err := s.openKeyboard()
	if err != nil {
		return err
	}
	defer func() {
		if cerr := k.close(); err == nil {
			err = cerr
		}
	}()
	return f(k)
}

// Ask asks for a line of text; an empty answer is preset.
func (s IO) Ask(ctx context.Context, question, preset string) (string, error) {
	if preset != "" {
		question += " [" + preset + "]"
	}
	answer, err := s.line(ctx, question, false)
	if err == nil && strings.TrimSpace(answer) == "" {
		return preset, nil
	}
	return strings.TrimSpace(answer), err
}

// AskSecret asks for a text that is not shown.
func (s IO) AskSecret(ctx context.Context, question string) (string, error) {
	return s.line(ctx, question, true)
}

// Confirm asks a question that is answered with yes or no.
func (s IO) Confirm(ctx context.Context, question string, preset bool) (bool, error) {
	hint := "y/N"
	if preset {
		hint = "Y/n"
	}
	i, err := s.Choose(ctx, question+" ["+hint+"]", []string{"yes", "no"}, map[bool]int{true: 0, false: 1}[preset])
	return i == 0, err
}

// Choose asks for one of answers by its first letter, and gives its index;
// Enter takes preset.
func (s IO) Choose(ctx context.Context, question string, answers []string, preset int) (int, error) {
	for {
		text, err := s.line(ctx, question, false)
		if err != nil {
			return -1, err
		}
		text = strings.ToLower(strings.TrimSpace(text))
		if text == "" {
			return preset, nil
		}
		if i := slices.IndexFunc(answers, func(a string) bool { return strings.HasPrefix(a, text) }); i >= 0 {
			return i, nil
		}
		s.Warn("Answer with one of: %s", strings.Join(answers, ", "))
	}
}

// line reads a line with a minimum of editing.
func (s IO) line(ctx context.Context, question string, secret bool) (string, error) {
	question = Clean(question) + ": "
	if width := runewidth.StringWidth(question); width > s.Width()*2/3 {
		// A line that wraps could not be drawn again in place.
		fmt.Fprintln(s.Out, strings.TrimSpace(question))
		question = "> "
	}
	var text []rune
	show := func() {
		shown := string(text)
		if secret {
			shown = "" // not even its length
		}
		room := max(10, s.Width()-1-runewidth.StringWidth(question))
		if over := runewidth.StringWidth(shown) - room; over > 0 {
			shown = "…" + runewidth.TruncateLeft(shown, over+1, "")
		}
		fmt.Fprintf(s.Out, "\r\x1b[K%s%s", question, shown)
	}
	err := s.withKeys(func(k *keyboard) error {
		defer fmt.Fprint(s.Out, "\r\n")
		for {
			show()
			got, err := k.next(ctx)
			if err != nil {
				return err
			}
			switch got {
			case keyEnter, keyCtrlJ:
				return nil
			case keyCtrlC:
				return ErrInterrupted
			case keyCtrlD:
				if len(text) == 0 {
					return ErrInterrupted
				}
			default:
				text = edit(text, got)
			}
		}
	})
	return string(text), err
}

// edit applies a key to the end of text.
func edit(text []rune, k key) []rune {
	switch {
	case k == keyBackspace || k == keyCtrlH:
		return text[:max(0, len(text)-1)]
	case k == keyCtrlU:
		return text[:0]
	case k == keyCtrlW:
		for len(text) > 0 && unicode.IsSpace(text[len(text)-1]) {
			text = text[:len(text)-1]
		}
		for len(text) > 0 && !unicode.IsSpace(text[len(text)-1]) && text[len(text)-1] != '/' {
			text = text[:len(text)-1]
		}
		return text
	case k >= ' ' && !unsafe(k) && len(text) < maxAnswer:
		return append(text, k)
	}
	return text
}

// Option is one line of Select.
type Option struct {
	Text string // what the filter looks at, and what is shown first
	Note string // shown behind it
}

// Select asks for one or more of options, in a list that a typed text filters,
// and gives their indexes in order.
func (s IO) Select(ctx context.Context, question string, options []Option) ([]int, error) {
	p := newPicker(question, options)
	reg := Region{io: s}
	err := s.withKeys(func(k *keyboard) error {
		defer reg.Draw(nil, nil)
		for {
			reg.Draw(nil, p.lines(s.Width(), s.Height(), s.Styled()))
			got, err := k.next(ctx)
			if err != nil {
				return err
			}
			switch got {
			case keyCtrlC, keyCtrlD:
				return ErrInterrupted
			case keyEnter, keyCtrlJ:
				if p.accept() {
					return nil
				}
			default:
				p.press(got)
			}
		}
	})
	if err != nil {
		return nil, err
	}
	return p.chosen(), nil
}

// picker is the state of Select.
type picker struct {
	question string
	options  []Option
	folded   []string // texts as the filter compares them
	filter   []rune
	found    []int // indexes of the options that the filter leaves
	cursor   int   // index into found
	top      int   // the first of found that is shown
	page     int   // how many are shown
	marked   map[int]bool
}

func newPicker(question string, options []Option) *picker {
	p := &picker{question: Clean(question), options: make([]Option, len(options)), marked: map[int]bool{}, page: 10}
	for i, o := range options {
		p.options[i] = Option{Clean(o.Text), Clean(o.Note)}
		p.folded = append(p.folded, strings.ToLower(p.options[i].Text))
	}
	p.refilter()
	return p
}

// refilter finds the options that hold every word of the filter.
func (p *picker) refilter() {
	words := strings.Fields(strings.ToLower(string(p.filter)))
	p.found, p.cursor, p.top = p.found[:0], 0, 0
	for i, text := range p.folded {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(text, w) }) {
			p.found = append(p.found, i)
		}
	}
}

func (p *picker) press(k key) {
	move := func(by int) { p.cursor = max(0, min(len(p.found)-1, p.cursor+by)) }
	switch k {
	case keyUp, keyCtrlP:
		move(-1)
	case keyDown, keyCtrlN:
		move(1)
	case keyPageUp:
		move(-p.page)
	case keyPageDown:
		move(p.page)
	case keyHome:
		move(-len(p.found))
	case keyEnd:
		move(len(p.found))
	case keyTab:
		if len(p.found) > 0 {
			at := p.found[p.cursor]
			if p.marked[at] {
				delete(p.marked, at)
			} else {
				p.marked[at] = true
			}
			move(1)
		}
	case keyEscape:
		p.filter = p.filter[:0]
		p.refilter()
	default:
		before := string(p.filter)
		if p.filter = edit(p.filter, k); string(p.filter) != before {
			p.refilter()
		}
	}
}

// accept ends the choice, if there is one: without marks it is the line under
// the cursor.
func (p *picker) accept() bool {
	if len(p.marked) == 0 && len(p.found) > 0 {
		p.marked[p.found[p.cursor]] = true
	}
	return len(p.marked) > 0
}

func (p *picker) chosen() []int {
	var out []int
	for i := range p.options {
		if p.marked[i] {
			out = append(out, i)
		}
	}
	return out
}

// lines draws the list for a terminal of that size.
func (p *picker) lines(width, height int, styled bool) []string {
	const frame = 4 // question, help, count, and the line below the region
	p.page = max(1, min(12, height-frame-1))
	switch {
	case p.cursor < p.top:
		p.top = p.cursor
	case p.cursor >= p.top+p.page:
		p.top = p.cursor - p.page + 1
	}
	out := []string{
		p.question + ": " + string(p.filter),
		"type to filter, Up/Down move, Tab marks, Enter takes the marked, Ctrl-C ends",
	}
	shown := p.found[p.top:min(len(p.found), p.top+p.page)]
	text := 0
	for _, i := range shown {
		text = max(text, runewidth.StringWidth(p.options[i].Text))
	}
	note := 0
	for _, i := range shown {
		note = max(note, runewidth.StringWidth(p.options[i].Note))
	}
	const gutter = 8 // "> [x] " and the gap before the note
	text = min(text, max(20, width-1-gutter-note))
	for n, i := range shown {
		cursor, mark := " ", " "
		if p.top+n == p.cursor {
			cursor = ">"
		}
		if p.marked[i] {
			mark = "x"
		}
		line := fmt.Sprintf("%s [%s] %s  %s", cursor, mark, Pad(shortenMiddle(p.options[i].Text, text), text), p.options[i].Note)
		line = Shorten(line, width-1)
		if styled && cursor == ">" {
			line = invert + line + reset
		}
		out = append(out, line)
	}
	return append(out, fmt.Sprintf("%d of %d shown by the filter, %d marked", len(p.found), len(p.options), len(p.marked)))
}
