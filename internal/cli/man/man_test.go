package man

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/urfave/cli/v3"
)

// TestPages: every command and flag has its place in the page, and man finds
// nothing to complain of.
func TestPages(t *testing.T) {
	for _, p := range Pages() {
		t.Run(p.Command.Name, func(t *testing.T) {
			var roff bytes.Buffer
			if err := Write(&roff, p, "2026-01-02"); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("groff", "-man", "-ww", "-Tutf8", "-P-cbou", "-rLL=100n")
			cmd.Stdin = bytes.NewReader(roff.Bytes())
			var errs bytes.Buffer
			cmd.Stderr = &errs
			out, err := cmd.Output()
			if errors.Is(err, exec.ErrNotFound) {
				t.Fatal("groff is missing: install Debian's groff-base or groff")
			}
			if err != nil || errs.Len() > 0 {
				t.Fatalf("groff: %v\n%s", err, errs.String())
			}
			page := regexp.MustCompile(`\s+`).ReplaceAllString(strings.ReplaceAll(string(out), "‐\n", "‐"), " ")
			var walk func(name string, c *cli.Command)
			walk = func(name string, c *cli.Command) {
				for _, f := range c.Flags {
					if !strings.Contains(page, " -"+f.Names()[0]+" ") {
						t.Errorf("%s: -%s is missing", name, f.Names()[0])
					}
				}
				for _, sub := range visible(c) {
					if !strings.Contains(page, " "+sub.Name+" ") {
						t.Errorf("%s: the command %s is missing", name, sub.Name)
					}
					walk(name+" "+sub.Name, sub)
				}
			}
			walk(p.Command.Name, p.Command)
			for _, want := range []string{p.Command.Name + " - ", "EXIT STATUS", "SEE ALSO", "2026-01-02"} {
				if !strings.Contains(page, want) {
					t.Errorf("%q is missing", want)
				}
			}
		})
	}
}

func TestWriteAll(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "man")
	if err := WriteAll(dir, "1767312000"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"hyper2kvm.1", "h2kvmctl.1", "hyper2kvmd.8"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !strings.Contains(string(data), `"2026-01-02"`) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := WriteAll(dir, "yesterday"); err == nil {
		t.Error("a wrong time is taken")
	}
}

func TestRoff(t *testing.T) {
	for in, want := range map[string]string{"-x": `\-x`, `a\b`: `a\eb`, "it's": `it\(aqs`, "~/x": `\(ti/x`} {
		if got := escape(in); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
	if got := protect(".so /etc/passwd"); got != `\&.so /etc/passwd` {
		t.Error(got)
	}
}
