package exit

import (
	"fmt"
	"strings"

	"github.com/hyper2kvm/hyper2kvm/internal/spelling"
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
		if d := spelling.Distance(word, k); d < least {
			best, least = k, d
		}
	}
	return best
}
