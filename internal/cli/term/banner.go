package term

import (
	"fmt"
	"strings"

	"github.com/mattn/go-runewidth"
	"github.com/pterm/pterm"
	"github.com/pterm/pterm/putils"
)

// Banner shows title in big letters with a line below. Where that cannot be,
// because there is no terminal or it is too narrow, it is one plain line.
func (s IO) Banner(title, line string) {
	if !s.Styled() {
		s.Heading(title + ": " + line)
		return
	}
	big, err := pterm.DefaultBigText.WithLetters(putils.LettersFromStringWithStyle(title, pterm.NewStyle(pterm.FgCyan))).Srender()
	width := 0
	for l := range strings.Lines(pterm.RemoveColorFromString(big)) {
		width = max(width, runewidth.StringWidth(strings.TrimSpace(l)))
	}
	if err != nil || width >= s.Width() {
		s.Heading(title + ": " + line)
		return
	}
	fmt.Fprintf(s.Out, "\n%s%s%s%s\n\n", big, bold, Clean(line), reset)
}
