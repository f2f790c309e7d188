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

// edits counts the insertions, deletions and replacements of bytes, and the
// swaps of neighbours, between a and b (optimal string alignment).
func edits(a, b string) int {
	before, row := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		next := make([]int, len(b)+1)
		next[0] = i + 1
		for j := range len(b) {
			cost := row[j]
			if a[i] != b[j] {
				cost++
			}
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				cost = min(cost, before[j-1]+1)
			}
			next[j+1] = min(cost, next[j]+1, row[j+1]+1)
		}
		before, row = row, next
	}
	return row[len(b)]
}
