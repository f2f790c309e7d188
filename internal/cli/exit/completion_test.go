package exit

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// TestBashCompletion presses the tab key behind lines. The program is a
// function that says what it was asked, and proposes the same each time.
func TestBashCompletion(t *testing.T) {
	for line, want := range map[string]string{
		"prog su":                           "prog: submit",
		"prog submit -vm ":                  `prog submit -vm: /DC0/file\ server\ 01	/DC0/web01	/DC0/日本`,
		"prog submit -vm we":                "prog submit -vm: web01",
		"prog submit -vm /DC0/f":            `prog submit -vm: /DC0/file\ server\ 01`,
		"prog submit -vm '/DC0/f":           "prog submit -vm: /DC0/file server 01",
		`prog submit -vm /DC0/file\ s`:      `prog submit -vm: /DC0/file\ server\ 01`,
		"prog submit -vm /DC0/日":            "prog submit -vm: /DC0/日本",
		"prog submit -vm=/DC0/w":            "prog submit -vm: /DC0/web01",
		"prog submit --o":                   "prog submit --o: --output",
		"prog submit -o":                    "prog submit -o: -output",
		"prog query -id abcd,12":            "prog query -id: abcd,1234",
		"prog -daemon http://h:1 query -st": "prog -daemon http://h:1 query -st: -status",
		"prog query -all > precious -st":    "prog query -all -st: -status",
		"prog query -all >precious -st":     "prog query -all -st: -status",
		"prog query -all > prec":            "",
		"prog submit -vm $(touch pwned) ":   "",
		"prog submit -vm `touch pwned` su":  "prog submit -vm `touch pwned`: submit",
		"true; prog su":                     "prog: submit",
		"prog submit 'a b' su":              "prog submit a b: submit",
	} {
		dir := t.TempDir()
		precious := filepath.Join(dir, "precious")
		if err := os.WriteFile(precious, []byte("kept"), 0o600); err != nil {
			t.Fatal(err)
		}
		script := script("bash", "prog") + `
prog() {
  printf 'prog %s' "$*" | sed 's/ --generate-shell-completion$//' > asked
  printf '%s\n' submit:'give jobs' '/DC0/file server 01' /DC0/web01 /DC0/日本 web01 1234 --output:folder --status:x
}
COMP_LINE=$LINE COMP_POINT=${#LINE}
__prog_complete
IFS=$'\t'
[[ -e asked ]] && printf '%s: %s' "$(< asked)" "${COMPREPLY[*]}"
true
`
		cmd := exec.CommandContext(t.Context(), "bash", "--norc", "-c", script)
		cmd.Dir, cmd.Env = dir, []string{"LINE=" + line, "LC_ALL=C.UTF-8", "PATH=" + os.Getenv("PATH")}
		out, err := cmd.CombinedOutput()
		if err != nil || string(out) != want {
			t.Errorf("%q gives %q, want %q (%v)", line, out, want, err)
		}
		if data, err := os.ReadFile(precious); err != nil || string(data) != "kept" {
			t.Errorf("%q: the file was changed: %q, %v", line, data, err)
		}
		if _, err := os.Stat(filepath.Join(dir, "pwned")); err == nil {
			t.Errorf("%q was evaluated", line)
		}
	}
}

func TestVMs(t *testing.T) {
	got := VMs([]string{"/DC0/vm/a/app01", "/DC0/vm/b/app01", "/DC0/vm/web01", "/DC1/vm/web%2fproxy"})
	want := []string{"/DC0/vm/a/app01", "/DC0/vm/b/app01", "/DC0/vm/web01", "/DC1/vm/web%2fproxy", "web01", "web%2fproxy"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
