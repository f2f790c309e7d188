package config

import (
	"os"
	"regexp"
	"slices"
	"testing"
)

// TestPackaged: the configuration that the packages bring is good, as it is and
// with all its examples.
func TestPackaged(t *testing.T) {
	const packaged = "../../packaging/hyper2kvmd.yaml"
	c, err := Load(Flags{ConfigFile: packaged}, env())
	if err != nil || c.UnixSocket != "/run/hyper2kvm/hyper2kvmd.sock" || !slices.Equal(c.OutputRoots, []string{"/var/lib/hyper2kvm/exports"}) ||
		c.MaxRunning != DefaultMaxRunning || c.StreamsPerHost != DefaultStreamsPerHost {
		t.Errorf("%+v, %v", c, err)
	}
	data, err := os.ReadFile(packaged)
	if err != nil {
		t.Fatal(err)
	}
	all := regexp.MustCompile(`(?m)^#([a-z_]+:|  )`).ReplaceAllString(string(data), "$1")
	c, err = Load(Flags{ConfigFile: file(t, "all.yaml", all), NoCredentials: true}, env())
	if err != nil || c.TokensFile == "" || c.TLS.Cert == "" || len(c.Hosts) != 1 || len(c.VCenters) != 1 || c.Defaults.Format == nil {
		t.Errorf("%+v, %v", c, err)
	}
	for _, key := range keys {
		switch key {
		case "state_dir", "log_format": // the unit's
		default:
			if !regexp.MustCompile(`(?m)^` + key + `:`).MatchString(all) {
				t.Errorf("%s is not mentioned", key)
			}
		}
	}
}
