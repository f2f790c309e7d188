package models

import "strings"

// Matches reports whether a VM's name or path answers to a pattern, in any
// case. A pattern with * (any text, slashes too) or ? (one character) stands
// for the whole name or path; any other is looked for anywhere in them.
// Brackets have no meaning: VMs have them in their names.
func (v VM) Matches(pattern string) bool {
	pattern = strings.ToLower(pattern)
	for _, s := range []string{strings.ToLower(v.Name), strings.ToLower(v.Path)} {
		if !strings.ContainsAny(pattern, "*?") {
			if strings.Contains(s, pattern) {
				return true
			}
		} else if wildcard([]rune(pattern), []rune(s)) {
			return true
		}
	}
	return false
}

// wildcard matches by going back to the last star only, so that no pattern
// takes more than the product of both lengths.
func wildcard(pattern, s []rune) bool {
	p, i, star, mark := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}
