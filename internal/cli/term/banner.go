package term

import (
	"fmt"

	"github.com/pterm/pterm"
	"github.com/pterm/pterm/putils"
)

// Banner shows title in big letters with a line below. Where that cannot be,
// because there is no terminal or it is too narrow, it is one plain line.
func (s IO) Banner(title, line string) {
	const letterWidth = 9 // columns of the widest big letter, its gap included
	if !s.Styled() || s.Width() < letterWidth*len(title) {
		s.Heading(title + ": " + line)
		return
	}
	big, err := pterm.DefaultBigText.WithLetters(putils.LettersFromStringWithStyle(title, pterm.NewStyle(pterm.FgCyan))).Srender()
	if err != nil {
		s.Heading(title + ": " + line)
		return
	}
	fmt.Fprintf(s.Out, "\n%s%s%s%s\n\n", big, bold, Clean(line), reset)
}
