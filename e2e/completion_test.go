//go:build e2e

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/hyper2kvm/hyper2kvm/internal/lab"
)

// TestTabKey: in each shell the tab key completes commands, flags, VMs and jobs,
// also in lists, and files where there is nothing else.
func TestTabKey(t *testing.T) {
	l := startLab(t, lab.Options{ExtraVMs: []lab.VMSpec{{Path: "/DC0/vm/e2e/mail server", Disks: []lab.DiskSpec{{Capacity: mib, Pattern: lab.PatternRandom, Seed: 9}}}}})
	d := startDaemon(t, l)
	if code, out, errs := d.ctl(t, "submit", "-vm", two, "-output", filepath.Join(t.TempDir(), "out")); code != 0 {
		t.Fatalf("submit: exit %d\n%s%s", code, out, errs)
	}
	id := d.jobs(t)[0].ID
	for shell, begin := range map[string][]string{
		"bash": {`source <(h2kvmctl completion bash); source <(hyper2kvm completion bash)`},
		"zsh":  {`exec zsh -f`, `PS1='$ '; autoload -U compinit; compinit -u; source <(h2kvmctl completion zsh); source <(hyper2kvm completion zsh)`},
		"fish": {`exec fish --private --no-config`, `function fish_prompt; echo '$ '; end; set fish_greeting; set fish_autosuggestion_enabled 0; h2kvmctl completion fish | source; hyper2kvm completion fish | source`},
	} {
		t.Run(shell, func(t *testing.T) {
			if _, err := exec.LookPath(shell); err != nil {
				t.Fatalf("%v: .ci/run installs it", err)
			}
			home := t.TempDir()
			if err := os.WriteFile(filepath.Join(home, "wave-one.yaml"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			s := onScreen(t, 160, 30, environment(l, "H2KVMD_URL="+d.url, "HOME="+home,
				"PATH="+filepath.Dir(binary(t, "h2kvmctl"))+":"+os.Getenv("PATH")))
			s.enter(t, "cd ~")
			for _, line := range begin {
				s.enter(t, line)
			}
			for _, c := range []struct{ typed, want string }{
				{"h2kvmctl sub", "h2kvmctl submit"},
				{"h2kvmctl submit -rem", "h2kvmctl submit -remove-cdrom"},
				{"h2kvmctl submit --rem", "h2kvmctl submit --remove-cdrom"},
				{"h2kvmctl submit -vm mai", `h2kvmctl submit -vm mail\ server`},
				{"h2kvmctl submit -vm /DC0/vm/e2e/t", "h2kvmctl submit -vm " + two},
				{"h2kvmctl submit -format q", "h2kvmctl submit -format qcow2"},
				{"h2kvmctl submit -format=q", "h2kvmctl submit -format=qcow2"},
				{"h2kvmctl submit -file wav", "h2kvmctl submit -file wave-one.yaml"},
				{"h2kvmctl query -id " + id[:6], "h2kvmctl query -id " + id},
				{"h2kvmctl query -id 12345678," + id[:6], "h2kvmctl query -id 12345678," + id},
				{"hyper2kvm export -vm mai", `hyper2kvm export -vm mail\ server`},
			} {
				s.enter(t, "clear")
				s.until(t, `\A\$ *$`)
				s.tmux(t, "send-keys", "-l", c.typed)
				s.keys(t, "Tab")
				s.until(t, regexp.QuoteMeta(c.want)+` *$`)
				s.keys(t, "C-u") // not C-c, which may overtake what is typed next
			}
		})
	}
}
