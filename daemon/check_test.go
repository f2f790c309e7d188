package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCheckFolders: what would keep the daemon from starting, or jobs from
// writing, is said without anything being made.
func TestCheckFolders(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		cfg  Config
		want string
	}{
		"good":          {Config{StateDir: dir + "/a/b", UnixSocket: dir + "/s", OutputRoots: []string{dir}}, ""},
		"no state":      {Config{StateDir: "/proc/nope"}, "the state folder /proc/nope cannot be used as things are: /proc takes no files"},
		"state in file": {Config{StateDir: file + "/x"}, "the state folder"},
		"no folder":     {Config{UnixSocket: dir + "/no/s"}, "the folder of unix_socket " + dir + "/no cannot be used"},
		"root is file":  {Config{OutputRoots: []string{file}}, file + " is no folder"},
	} {
		tc.cfg.Addr, tc.cfg.MaxRunning = "localhost:0", 1
		warnings, err := Check(t.Context(), tc.cfg)
		if err != nil || (len(warnings) > 0) != (tc.want != "") || !strings.Contains(strings.Join(warnings, "; "), tc.want) {
			t.Errorf("%s: %q, %v", name, warnings, err)
		}
	}
	if _, err := Check(t.Context(), Config{Addr: "localhost:0", MaxRunning: 1, UnixSocket: "/" + strings.Repeat("x", 120)}); err == nil {
		t.Error("a long path is good")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("something was made: %v, %v", left, err)
	}
}
