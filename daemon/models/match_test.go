package models

import "testing"

func TestMatches(t *testing.T) {
	vm := VM{Name: "build [old] (2)", Path: "/DC0/vm/Production/build [old] (2)"}
	for pattern, want := range map[string]bool{
		"":                    true,
		"BUILD":               true,
		"production":          true,
		"[old]":               true,
		"staging":             false,
		"build*":              true,
		"*production*":        true,
		"prod*":               false,
		"*/production/*(?)":   true,
		"????? [old] (2)":     true,
		"?build*":             false,
		"*a*b*c*d*e*f*g*h*":   false,
		"*":                   true,
		"build [old] (2)?":    false,
		"/dc0/*/build*(2)***": true,
	} {
		if got := vm.Matches(pattern); got != want {
			t.Errorf("%q: %v", pattern, got)
		}
	}
}
