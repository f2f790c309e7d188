package term

import (
	"strings"

	"github.com/mattn/go-runewidth"
)

// Pad fills s with spaces to width columns; a wider s stays as it is.
func Pad(s string, width int) string {
	return s + strings.Repeat(" ", max(0, width-runewidth.StringWidth(s)))
}
