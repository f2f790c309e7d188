package config

import (
	"strings"
	"testing"
)

// TestSaysWhere: a bad value is looked for where it was given.
func TestSaysWhere(t *testing.T) {
	none := func(string) string { return "" }
	for text, want := range map[string]string{
		"log_level: info\naddr: nonsense\n":             "c.yaml, line 2): addr",
		"log_format: xml\n":                             "c.yaml, line 1): log_format",
		"\n\ntls: {viewers: [x]}\n":                     "c.yaml, line 3): tls: viewers",
		"streams_per_host: 4\nmax_running_jobs: 1000\n": "line 2",
	} {
		_, err := Load(Flags{ConfigFile: file(t, "c.yaml", text)}, none)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	env := func(k string) string {
		return map[string]string{"H2KVMD_STREAMS_PER_HOST": "many", "H2KVMD_MAX_STREAMS": "-3"}[k]
	}
	for want, flags := range map[string]Flags{
		`read -streams-per-host: "abc" is not`:       {StreamsPerHost: "abc"},
		`read H2KVMD_STREAMS_PER_HOST: "many" is`:    {},
		"check configuration (H2KVMD_MAX_STREAMS): ": {StreamsPerHost: "1"},
		"check configuration (-max-streams): ":       {StreamsPerHost: "1", MaxStreams: "-4"},
		`read -bandwidth: "abc"`:                     {StreamsPerHost: "1", MaxStreams: "1", Bandwidth: "abc"},
	} {
		if _, err := Load(flags, env); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q: %v", want, err)
		}
	}
}
