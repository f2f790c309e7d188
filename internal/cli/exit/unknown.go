package exit

import (
	"fmt"
	"strings"
)

// Unknown is the usage error for a word that is none of the known ones: it
// proposes the nearest, or lists all when none is near. What says what the
// word is ("command", "flag").
func Unknown(what, given string, known []string) error {
	advice := "known: " + strings.Join(known, ", ")
	if near := nearest(given, known); near != "" {
		advice = fmt.Sprintf("did you mean %q?", near)
	}
	return UsageError(fmt.Errorf("unknown %s %.80q", what, given), advice)
}

// nearest gives the known word that the fewest edits turn word into, if they
// are few for its length.
func nearest(word string, known []string) string {
	word = strings.ToLower(word)
	if len(word) > 80 {
		return ""
	}
	best, least := "", 1+max(1, len(strings.TrimLeft(word, "-"))/3)
	for _, k := range known {
		if d := edits(word, k); d < least {
			best, least = k, d
		}
	}
	return best
}

// edits counts the insertions, deletions and replacements of bytes between a
// and b (Levenshtein).
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
