package term

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/mattn/go-runewidth"
)

// List is a table of which rows are chosen.
type List struct {
	Question string
	Head     []string
	Rows     [][]string // cells, as many as Head has
	// Match, unless nil, judges one word of the filter: whether it is a
	// condition, and if so, of which rows it holds. Other words are looked for
	// in the cells.
	Match func(word string) (holds func(row int) bool, ok bool)
	// Detail, unless nil, gives what there is to say of a row, as lines.
	Detail func(ctx context.Context, row int) ([]string, error)
	// Sum, unless nil, says something of the marked rows.
	Sum  func(rows []int) string
	Hint string // how to filter
}

// Select asks for one or more rows of a list, which a typed text filters, and
// gives their indexes in order.
func (s IO) Select(ctx context.Context, l List) ([]int, error) {
	if s.dumb() {
		return s.dumbSelect(ctx, l)
	}
	p := newPicker(l)
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
			case keyRight:
				if p.list.Detail != nil && len(p.found) > 0 {
					if err := s.detail(ctx, k, &reg, p, p.found[p.cursor]); err != nil {
						return err
					}
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

var errFetched = errors.New("fetched")

// detail shows what there is to say of a row until a key goes back.
func (s IO) detail(ctx context.Context, k *keyboard, reg *Region, p *picker, at int) error {
	var lines []string
	var failed error
	fetch, stop := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		lines, failed = p.list.Detail(fetch, at)
		stop(errFetched)
	}()
	defer func() {
		stop(nil)
		<-done
	}()
	title := p.list.Rows[at][0]
	reg.Draw(nil, []string{title, "reading …"})
	waiting, top := fetch, 0
	for {
		got, err := k.next(waiting)
		switch {
		case errors.Is(err, errFetched):
			<-done
			if failed != nil {
				lines = []string{Clean(failed.Error())}
			}
			waiting = ctx
		case err != nil:
			return err
		}
		page := max(1, s.Height()-4)
		switch got {
		case keyCtrlC, keyCtrlD:
			return ErrInterrupted
		case keyLeft, keyEscape, keyBackspace:
			return nil
		case keyEnter, keyCtrlJ, keyTab:
			p.press(keyTab)
			return nil
		case keyDown:
			top++
		case keyUp:
			top--
		case keyPageDown:
			top += page
		case keyPageUp:
			top -= page
		}
		if waiting == fetch {
			continue
		}
		top = max(0, min(top, len(lines)-page))
		out := append([]string{title}, lines[top:min(len(lines), top+page)]...)
		reg.Draw(nil, append(out, "Left goes back, Tab marks it, Up/Down scroll"))
	}
}

// picker is the state of Select.
type picker struct {
	list   List
	folded []string // what the filter looks at
	widths []int    // of the columns
	filter []rune
	found  []int // rows that the filter leaves
	cursor int   // index into found
	top    int   // the first of found that is shown
	page   int   // how many are shown
	marked map[int]bool
}

func newPicker(l List) *picker {
	p := &picker{list: l, marked: map[int]bool{}, page: 10, widths: make([]int, len(l.Head)), folded: make([]string, len(l.Rows))}
	p.list.Question = Clean(l.Question)
	p.list.Rows = make([][]string, len(l.Rows))
	for i, h := range l.Head {
		p.widths[i] = runewidth.StringWidth(h)
	}
	for r, row := range l.Rows {
		cells := make([]string, len(l.Head))
		for i := range cells {
			if i < len(row) {
				cells[i] = Clean(row[i])
			}
			p.widths[i] = max(p.widths[i], runewidth.StringWidth(cells[i]))
		}
		p.list.Rows[r] = cells
		p.folded[r] = strings.ToLower(strings.Join(cells, "\x00"))
	}
	p.refilter()
	return p
}

// refilter finds the rows for which every word of the filter holds.
func (p *picker) refilter() {
	var texts []string
	var holds []func(int) bool
	for _, word := range strings.Fields(strings.ToLower(string(p.filter))) {
		if p.list.Match != nil {
			if f, ok := p.list.Match(word); ok {
				holds = append(holds, f)
				continue
			}
		}
		texts = append(texts, word)
	}
	p.found, p.cursor, p.top = p.found[:0], 0, 0
	for i, text := range p.folded {
		if !slices.ContainsFunc(texts, func(w string) bool { return !strings.Contains(text, w) }) &&
			!slices.ContainsFunc(holds, func(f func(int) bool) bool { return !f(i) }) {
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

// accept ends the choice, if there is one: without marks it is the row under
// the cursor.
func (p *picker) accept() bool {
	if len(p.marked) == 0 && len(p.found) > 0 {
		p.marked[p.found[p.cursor]] = true
	}
	return len(p.marked) > 0
}

func (p *picker) chosen() []int {
	var out []int
	for i := range p.list.Rows {
		if p.marked[i] {
			out = append(out, i)
		}
	}
	return out
}

// lines draws the list for a terminal of that size.
func (p *picker) lines(width, height int, styled bool) []string {
	const frame = 5 // question, help, head, count, and the line below the region
	p.page = max(1, min(16, height-frame-1))
	switch {
	case p.cursor < p.top:
		p.top = p.cursor
	case p.cursor >= p.top+p.page:
		p.top = p.cursor - p.page + 1
	}
	const gutter = 6 // "> [x] "
	widths := slices.Clone(p.widths)
	fit(widths, 2, width-1-gutter+2, func(int) bool { return false })
	row := func(cells []string) string {
		var b strings.Builder
		for i, cell := range cells {
			b.WriteString(Pad(shortenCell(cell, widths[i]), widths[i]) + "  ")
		}
		return strings.TrimRight(b.String(), " ")
	}
	help := "Up/Down move, Tab marks, Enter takes the marked, Ctrl-C ends"
	if p.list.Detail != nil {
		help = "Up/Down move, Tab marks, Right shows details, Enter takes, Ctrl-C ends"
	}
	filter := string(p.filter)
	if filter == "" && p.list.Hint != "" {
		filter = "(" + p.list.Hint + ")"
	}
	out := []string{p.list.Question + ": " + filter, help, strings.Repeat(" ", gutter) + row(p.list.Head)}
	for n, i := range p.found[p.top:min(len(p.found), p.top+p.page)] {
		cursor, mark := " ", " "
		if p.top+n == p.cursor {
			cursor = ">"
		}
		if p.marked[i] {
			mark = "x"
		}
		line := Shorten(fmt.Sprintf("%s [%s] %s", cursor, mark, row(p.list.Rows[i])), width-1)
		if styled && cursor == ">" {
			line = invert + line + reset
		}
		out = append(out, line)
	}
	count := fmt.Sprintf("%d of %d shown by the filter, %d marked", len(p.found), len(p.list.Rows), len(p.marked))
	if p.list.Sum != nil && len(p.marked) > 0 {
		count += ": " + p.list.Sum(p.chosen())
	}
	return append(out, count)
}
