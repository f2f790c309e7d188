package term

import (
	"fmt"
	"strings"
	"time"

	"github.com/mattn/go-runewidth"
)

// Box draws a box with a title around lines.
func (s IO) Box(title string, lines ...string) {
	title = Clean(title)
	width := runewidth.StringWidth(title) + 1
	for i, line := range lines {
		lines[i] = Shorten(Clean(line), max(20, s.Width()-4))
		width = max(width, runewidth.StringWidth(lines[i]))
	}
	fmt.Fprintf(s.Out, "┌─ %s %s┐\n", title, strings.Repeat("─", width-runewidth.StringWidth(title)-1))
	for _, line := range lines {
		fmt.Fprintf(s.Out, "│ %s │\n", Pad(line, width))
	}
	fmt.Fprintf(s.Out, "└%s┘\n", strings.Repeat("─", width+2))
}

// spinInterval is the time between two frames of a spinner.
const spinInterval = 120 * time.Millisecond

// Spin shows that something is being waited for, until stop is called, which
// must happen. Where the cursor must not be moved it says so once.
func (s IO) Spin(text string) (stop func()) {
	if !s.Styled() {
		s.Info("%s", text)
		return func() {}
	}
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		reg := Region{io: s}
		defer func() { reg.Draw(nil, nil) }()
		ticker := time.NewTicker(spinInterval)
		defer ticker.Stop()
		frames := []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")
		for i := 0; ; i++ {
			reg.Draw(nil, []string{string(frames[i%len(frames)]) + " " + Clean(text)})
			select {
			case <-end:
				return
			case <-ticker.C:
			}
		}
	}()
	return func() {
		close(end)
		<-ended
	}
}
