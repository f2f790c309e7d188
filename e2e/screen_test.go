//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/mattn/go-runewidth"

	"github.com/hyper2kvm/hyper2kvm/internal/lab"
)

// screen is a terminal with a program in it: a tmux server of its own.
type screen struct {
	socket     string
	cols, rows int
}

// onScreen starts a shell in a terminal of a size, with an environment.
func onScreen(t *testing.T, cols, rows int, env []string) *screen {
	t.Helper()
	s := &screen{filepath.Join(t.TempDir(), "tmux"), cols, rows}
	config := filepath.Join(t.TempDir(), "tmux.conf")
	if err := os.WriteFile(config, []byte("set -g default-terminal tmux-256color\nset -g status off\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"-u", "-S", s.socket, "-f", config, "new-session", "-d", "-x", strconv.Itoa(cols), "-y", strconv.Itoa(rows), "env", "-i"}
	args = append(args, env...)
	args = append(args, "TERM=tmux-256color", "LC_ALL=C.UTF-8", "PS1=$ ", "bash", "--norc", "--noprofile")
	if out, err := exec.Command("tmux", args...).CombinedOutput(); err != nil {
		t.Fatalf("tmux: %v\n%s", err, out)
	}
	t.Cleanup(func() { s.tmux(t, "kill-server") })
	s.until(t, `^\$`)
	return s
}

func (s *screen) tmux(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("tmux", append([]string{"-u", "-S", s.socket}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("tmux %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// keys types keys, as tmux names them.
func (s *screen) keys(t *testing.T, keys ...string) {
	t.Helper()
	s.tmux(t, append([]string{"send-keys"}, keys...)...)
}

// enter types a line.
func (s *screen) enter(t *testing.T, line string) {
	t.Helper()
	s.tmux(t, "send-keys", "-l", line)
	s.keys(t, "Enter")
}

// lines is what the screen shows, without what has scrolled away.
func (s *screen) lines(t *testing.T) []string {
	t.Helper()
	return strings.Split(strings.TrimRight(s.tmux(t, "capture-pane", "-p"), "\n"), "\n")
}

// until waits until the screen shows a text, and gives it.
func (s *screen) until(t *testing.T, want string) []string {
	t.Helper()
	re := regexp.MustCompile("(?m)" + want)
	var lines []string
	done := false
	defer func() {
		if !done {
			t.Logf("the screen, which should show %q:\n%s", want, strings.Join(lines, "\n"))
		}
	}()
	waitFor(t, func() bool {
		lines = s.lines(t)
		return re.MatchString(strings.Join(lines, "\n"))
	})
	done = true
	return lines
}

// aligned checks that the boxes on the screen have straight sides: all lines
// of a box are equally wide, and none is wider than the screen.
func (s *screen) aligned(t *testing.T, lines []string) {
	t.Helper()
	var bars []int // columns of the sides in the line above
	for i, line := range lines {
		var here []int
		col := 0
		for _, r := range line {
			if strings.ContainsRune("┌┬┐├┼┤└┴┘│", r) {
				here = append(here, col)
			}
			col += runewidth.RuneWidth(r)
		}
		if col > s.cols {
			t.Errorf("line %d takes %d columns of %d: %q", i, col, s.cols, line)
		}
		if bars != nil && here != nil && !strings.Contains(line, "┌") && fmt.Sprint(bars) != fmt.Sprint(here) {
			t.Errorf("line %d is not aligned:\n%s", i, strings.Join(lines, "\n"))
			return
		}
		bars = here
	}
}

// TestScreens: what follows jobs on a terminal keeps its place and its lines,
// at any size and with wide characters, and Ctrl-C leaves the terminal as it
// was.
func TestScreens(t *testing.T) {
	const wide = "/DC0/vm/e2e/数据库-データベース"
	l := startLab(t, lab.Options{ExtraVMs: []lab.VMSpec{{Path: wide, Disks: []lab.DiskSpec{{Capacity: 6 * mib, Pattern: lab.PatternRandom, Seed: 9}}}}})
	for _, size := range []struct{ cols, rows int }{{80, 24}, {200, 50}, {48, 12}} {
		t.Run(fmt.Sprintf("%dx%d", size.cols, size.rows), func(t *testing.T) {
			d := startDaemon(t, l)
			top := t.TempDir()
			l.SetFaults(wide, lab.Faults{BytesPerSecond: 512 << 10, Ranged: true})
			l.SetFaults(two, lab.Faults{BytesPerSecond: 512 << 10, Ranged: true})
			for i, vm := range []string{wide, two} {
				if code, out, errs := d.ctl(t, "submit", "-vm", vm, "-output", filepath.Join(top, strconv.Itoa(i))); code != 0 {
					t.Fatalf("submit: exit %d\n%s%s", code, out, errs)
				}
			}
			ids := []string{d.jobs(t)[0].ID, d.jobs(t)[1].ID}
			s := onScreen(t, size.cols, size.rows, environment(nil, "H2KVMD_URL="+d.url, "PATH="+filepath.Dir(binary(t, "h2kvmctl"))+":"+os.Getenv("PATH")))

			s.enter(t, "clear; h2kvmctl query -all -watch")
			s.until(t, `running.* (exporting|exporti…)`)
			before := s.until(t, "Found 2 job")
			s.aligned(t, before)
			s.keys(t, "C-c")
			s.until(t, `^\$ *$`)
			s.enter(t, "code=$?; clear; echo code $code")
			s.until(t, "^code 130")

			s.enter(t, "clear; h2kvmctl watch -id "+ids[0])
			bars := s.until(t, `[1-9][0-9]*(\.[0-9])?%`)
			s.aligned(t, bars)
			if n := strings.Count(strings.Join(bars, "\n"), "%"); n > 4 {
				t.Errorf("the view is there more than once:\n%s", strings.Join(bars, "\n"))
			}
			// A smaller and a larger window: nothing is left of what was there.
			s.tmux(t, "resize-window", "-x", strconv.Itoa(size.cols-10), "-y", strconv.Itoa(size.rows))
			s.tmux(t, "resize-window", "-x", strconv.Itoa(size.cols), "-y", strconv.Itoa(size.rows))
			l.SetFaults(wide, lab.Faults{Ranged: true})
			l.SetFaults(two, lab.Faults{Ranged: true})
			s.until(t, `^\$ *$`)
			s.enter(t, "code=$?; clear; echo code $code")
			s.until(t, "^code 0")

			s.enter(t, "clear; h2kvmctl query -all -watch")
			s.until(t, `^\$ *$`)
			s.aligned(t, s.lines(t))
			s.enter(t, "clear; h2kvmctl query -all")
			s.aligned(t, s.until(t, "Found 2 job"))
			// The terminal echoes and shows its cursor.
			if got := strings.TrimSpace(s.tmux(t, "display-message", "-p", "#{cursor_flag}")); got != "1" {
				t.Errorf("the cursor flag is %s", got)
			}
			if code := stop(t, d); code != 0 {
				t.Errorf("the daemon ends with %d", code)
			}
		})
	}
}

func stop(t *testing.T, d *daemon) int {
	t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	return d.wait(t)
}

// TestWatchOverRestart: who watches a job does not care that the daemon is
// killed and comes back.
func TestWatchOverRestart(t *testing.T) {
	l := startLab(t, lab.Options{})
	l.SetFaults(two, lab.Faults{BytesPerSecond: mib, Ranged: true})
	state := t.TempDir()
	d := startDaemonIn(t, l, state)
	where := strings.TrimPrefix(d.url, "http://")
	dir := filepath.Join(t.TempDir(), "out")
	if code, out, errs := d.ctl(t, "submit", "-vm", two, "-output", dir); code != 0 {
		t.Fatalf("submit: exit %d\n%s%s", code, out, errs)
	}
	id := d.jobs(t)[0].ID
	env := environment(nil, "H2KVMD_URL="+d.url)
	watch := start(t, env, "h2kvmctl", "watch", "-id", id)
	table := start(t, env, "h2kvmctl", "query", "-all", "-watch")
	waitFor(t, func() bool {
		return strings.Contains(watch.stdout.String(), "exporting") && strings.Contains(table.stdout.String(), "exporting")
	})
	if err := d.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-d.done
	waitFor(t, func() bool { return strings.Contains(watch.stdout.String()+watch.stderr.String(), "daemon") })
	l.SetFaults(two, lab.Faults{Ranged: true})
	again := start(t, environment(l), "hyper2kvmd", "-addr", where, "-state", state)
	if code := watch.wait(t); code != 0 || !strings.Contains(watch.stdout.String(), "completed") {
		t.Errorf("watch: exit %d\n%s%s", code, watch.stdout.String(), watch.stderr.String())
	}
	if code := table.wait(t); code != 0 || !strings.Contains(table.stdout.String(), "completed") {
		t.Errorf("query -watch: exit %d\n%s%s", code, table.stdout.String(), table.stderr.String())
	}
	checkWhole(t, l, two, dir, 2)
	if err := again.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := again.wait(t); code != 0 {
		t.Errorf("the daemon ends with %d\n%s", code, again.stderr.String())
	}
}
