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
	if s.dumb() {
		return s.dumbLine(ctx, question, secret)
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
		if runewidth.StringWidth(question) > s.Width()*2/3 {
			// A line that wraps could not be drawn again in place.
			fmt.Fprint(s.Out, strings.Join(wrap(strings.TrimSpace(question), s.Width()-1), "\r\n"), "\r\n")
			question = "> "
		}
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
			case keyResize:
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
