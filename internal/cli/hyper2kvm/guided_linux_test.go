package hyper2kvm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hyper2kvm/hyper2kvm/internal/cli/term"
	"github.com/hyper2kvm/hyper2kvm/internal/lab"
)

// person sits at a pseudo terminal.
type person struct {
	t      *testing.T
	master *os.File
	code   chan int
	got    chan struct{} // something new is on the screen

	mu     sync.Mutex
	screen []byte
	seen   int
}

// sit runs hyper2kvm without arguments at a terminal of 80 by 24.
func sit(ctx context.Context, t *testing.T, env map[string]string) *person {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no pseudo terminals: %v", err)
	}
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}); err != nil {
		t.Fatal(err)
	}
	before, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	p := &person{t: t, master: master, code: make(chan int, 1), got: make(chan struct{}, 1)}
	read := make(chan struct{})
	go func() {
		defer close(read)
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			p.mu.Lock()
			p.screen = append(p.screen, buf[:n]...)
			p.mu.Unlock()
			select {
			case p.got <- struct{}{}:
			default:
			}
			if err != nil {
				return // the terminal is closed
			}
		}
	}()
	ctx, cancel := context.WithCancel(ctx)
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		p.code <- Run(ctx, nil, term.IO{In: tty, Out: tty, Err: tty, Getenv: func(k string) string { return env[k] }})
	}()
	t.Cleanup(func() {
		cancel()
		<-ran
		after, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
		if err != nil || *after != *before {
			t.Errorf("the terminal is not as it was (%v)", err)
		}
		tty.Close()
		<-read
		master.Close()
	})
	return p
}

// sees waits for text behind what was seen before. Lines may be broken at its
// spaces.
func (p *person) sees(texts ...string) {
	p.t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	for _, text := range texts {
		broken := regexp.MustCompile(strings.ReplaceAll(regexp.QuoteMeta(text), " ", `[ \r\n]+`))
		for {
			p.mu.Lock()
			at := broken.FindIndex(p.screen[p.seen:])
			if at != nil {
				p.seen += at[1]
			}
			rest := string(p.screen[p.seen:])
			p.mu.Unlock()
			if at != nil {
				break
			}
			select {
			case <-p.got:
			case <-deadline.C:
				p.t.Fatalf("%q is not on the screen:\n%s", text, rest)
			}
		}
	}
}

func (p *person) types(keys string) {
	p.t.Helper()
	if _, err := p.master.WriteString(keys); err != nil {
		p.t.Fatal(err)
	}
}

func (p *person) ends(want int) {
	p.t.Helper()
	select {
	case code := <-p.code:
		if code != want {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.t.Errorf("exit code %d, want %d\n%s", code, want, p.screen)
		}
	case <-time.After(20 * time.Second):
		p.t.Fatal("it does not end")
	}
}

func guidedLab(t *testing.T) (*lab.Lab, map[string]string) {
	t.Helper()
	l, err := lab.Start(lab.Options{Inventory: lab.Small})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if n := l.OpenLeases(); n != 0 {
			t.Errorf("%d leases are open", n)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	env := l.Env()
	env["TERM"] = "xterm"
	return l, env
}

func TestGuided(t *testing.T) {
	_, env := guidedLab(t)
	dir := t.TempDir()
	host := env["GOVC_URL"]
	for _, asked := range []string{"GOVC_URL", "GOVC_USERNAME", "GOVC_PASSWORD"} {
		delete(env, asked)
	}
	p := sit(t.Context(), t, env)
	p.sees("Hypervisor to KVM Migration Tool", "1.0.0", "vCenter or ESXi host: ")
	p.types("http://a b\r")
	p.sees("ERROR: read the vCenter URL", "vCenter or ESXi host: ")
	p.types(host + "\r")
	p.sees("User [administrator@vsphere.local]: ")
	p.types("\r")
	p.sees("Connection Info", "vCenter: 127.0.0.1", "administrator@vsphere.local", "Password (not shown): ")
	p.types("wrong\r")
	p.sees("ERROR: ", "User [administrator@vsphere.local]: ")
	p.types("\r")
	p.sees("Password (not shown): ")
	p.types(lab.DefaultPassword + "\r")
	p.sees("Connected to vSphere successfully!", "Found 24 virtual machine(s)", "VMs to export: ")
	// web01 and running01 by the filter, and one that cannot be exported.
	p.types("web01\t\x15running01\t")
	p.sees("VMs to export: running01", "2 marked: ")
	// What there is to say of one, and back.
	p.types("\x15uefi01\x1b[C")
	p.sees("/DC0/vm/Production/uefi01", "Firmware", "UEFI", "Nothing stands in the way", "Left goes back")
	p.types("\x1b[D")
	p.sees("VMs to export: uefi01", "1 of 24")
	p.types("\x15:template >0k golden\t\r")
	p.sees("Chosen VMs", "running01", "golden is left out", "1 VM(s) run", "> ")
	p.types("x\r")
	p.sees("Answer with one of", "> ")
	p.types("s\r")
	p.sees("Output folder [")
	p.types(dir + "\r")
	p.sees("Format: ")
	p.types("compressed\r")
	p.sees("Devices: ", "> ")
	p.types("\r")
	p.sees("Change options", "> ")
	p.types("y\r")
	p.sees("Disks at a time, 1 to 16 [4]: ")
	p.types("99\r")
	p.sees("is no number from 1 to 16", "Disks at a time")
	p.types("2\r")
	p.sees("Bandwidth", "[0]: ")
	p.types("50Mb/s\r")
	p.sees("bits", "Bandwidth")
	p.types("50MB/s\r")
	for _, answer := range []string{"y", "n", "n"} {
		p.sees("[y/N]")
		p.types(answer + "\r")
	}
	p.sees("A last look", "qcow2, compressed", dir[:20], "2 disks at a time", "47.7 MiB/s", "every grain is checked", "snapshot of running VMs")
	p.sees("Export 2 VM(s) now? [Y/n]: ")
	p.types("\r")
	p.sees("virsh define", "virsh define", "Exported 2 of 2 VM(s)")
	p.ends(0)
	for _, vm := range []string{"web01", "running01"} {
		for _, file := range []string{"hyper2kvm.json", vm + "-disk-0.qcow2", vm + ".xml"} {
			if _, err := os.Stat(filepath.Join(dir, vm, file)); err != nil {
				t.Error(err)
			}
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if strings.Contains(string(p.screen), lab.DefaultPassword) {
		t.Error("the password is on the screen")
	}
	for _, vm := range []string{"web01", "running01"} {
		if command := "virsh define " + filepath.Join(dir, vm, vm+".xml"); !strings.Contains(string(p.screen), command+"\r\n") {
			t.Errorf("%q cannot be copied from the screen:\n%s", command, p.screen)
		}
	}
}

// TestGuidedInterrupted presses Ctrl-C at each step.
func TestGuidedInterrupted(t *testing.T) {
	l, env := guidedLab(t)
	l.SetFaults("/DC0/vm/Production/web01", lab.Faults{BytesPerSecond: 64 << 10})
	steps := []struct{ prompt, answer string }{
		{"VMs to export: ", "web01\r"},
		{"Output folder [", filepath.Join(t.TempDir(), "out") + "\r"},
		{"Format: ", "ovf\r"},
		{"Change options", "\r"},
		{"Export 1 VM(s) now? [Y/n]: ", "\r"},
	}
	for last, step := range steps {
		t.Run(step.prompt, func(t *testing.T) {
			p := sit(t.Context(), t, env)
			for _, s := range steps[:last] {
				p.sees(s.prompt)
				p.types(s.answer)
			}
			p.sees(step.prompt)
			p.types("\x03")
			p.sees("Nothing was left running")
			p.ends(130)
		})
	}
	t.Run("no", func(t *testing.T) {
		p := sit(t.Context(), t, env)
		for _, s := range steps[:len(steps)-1] {
			p.sees(s.prompt)
			p.types(s.answer)
		}
		p.sees(steps[len(steps)-1].prompt)
		p.types("n\r")
		p.sees("Nothing was exported")
		p.ends(0)
	})
	t.Run("during the export", func(t *testing.T) {
		// The signal is the main's business: here the context ends.
		ctx, interrupt := context.WithCancel(t.Context())
		defer interrupt()
		p := sit(ctx, t, env)
		for _, s := range steps {
			p.sees(s.prompt)
			p.types(s.answer)
		}
		p.sees("web01-disk-0.vmdk", "left")
		interrupt()
		p.sees("stopping: ", "ERROR: export VM", "the same export")
		p.ends(130)
	})
	t.Run("terminated at a prompt", func(t *testing.T) {
		ctx, terminate := context.WithCancel(t.Context())
		defer terminate()
		p := sit(ctx, t, env)
		p.sees("VMs to export: ")
		terminate()
		p.ends(130)
	})
}

// TestGuidedSecondThoughts: what was typed wrong, or cannot be, is asked for
// again.
func TestGuidedSecondThoughts(t *testing.T) {
	l, env := guidedLab(t)
	dir := filepath.Join(t.TempDir(), "out")
	server, user := env["GOVC_URL"], env["GOVC_USERNAME"]
	delete(env, "GOVC_URL")
	delete(env, "GOVC_USERNAME")
	delete(env, "GOVC_PASSWORD")
	p := sit(t.Context(), t, env)
	p.sees("vCenter or ESXi host: ")
	p.types("127.0.0.1:1\r")
	p.sees("User [administrator@vsphere.local]: ")
	p.types("nobody\r")
	p.sees("Password (not shown): ")
	p.types("x\r")
	p.sees("connection refused", "vCenter or ESXi host [127.0.0.1:1]: ")
	p.types(server + "\r")
	p.sees("Password (not shown): ")
	p.types("x\r")
	p.sees("Login failure", "User [nobody]: ")
	p.types(user + "\r")
	p.sees("Password (not shown): ")
	p.types(lab.DefaultPassword + "\r")
	p.sees("Connected to vSphere successfully!", "VMs to export: ")
	p.types("encrypted01\r")
	p.sees("none of them can be exported", "choose others", "VMs to export: ")
	p.types("web01\r")
	for range 2 {
		p.sees("Output folder [")
		p.types(dir + "\r")
		p.sees("Format: ")
		p.types("ovf\r")
		p.sees("Change options", "> ")
		p.types("\r")
		if _, err := os.Stat(dir); err == nil {
			break
		}
		p.sees("Export 1 VM(s) now? [Y/n]: ")
		p.types("\r")
		p.sees("Exported web01")
		p.ends(0)
		for k, v := range l.Env() {
			env[k] = v
		}
		p = sit(t.Context(), t, env)
		p.sees("VMs to export: ")
		p.types("web01\r")
	}
	p.sees("holds an export", "[y/N]")
	p.types("n\r")
	p.sees("web01 is left out: that export stays", "Nothing was exported")
	p.ends(0)
}

// TestGuidedTrust: a certificate that nobody vouches for is shown, and asked
// about once.
func TestGuidedTrust(t *testing.T) {
	l, env := guidedLab(t)
	delete(env, "GOVC_TLS_CA_CERTS")
	p := sit(t.Context(), t, env)
	p.sees("Nobody vouches for the certificate of 127.0.0.1", "Subject", "Valid until", "SHA-256 ", "SHA-1", l.Thumbprint(), "Trust this certificate", "[y/N]: ")
	p.types("y\r")
	p.sees("GOVC_TLS_KNOWN_HOSTS", " "+l.Thumbprint(), "Connected to vSphere successfully!", "VMs to export: ")
	p.types("\x03")
	p.sees("Nothing was left running")
	p.ends(130)

	p = sit(t.Context(), t, env)
	p.sees("Trust this certificate", "[y/N]: ")
	p.types("\r")
	p.sees("ERROR: connect to", "is not trusted")
	p.ends(3)
}

// TestGuidedDumb: a terminal that cannot move its cursor is asked line by line,
// and gets no escape.
func TestGuidedDumb(t *testing.T) {
	_, env := guidedLab(t)
	dir := t.TempDir()
	env["TERM"] = "dumb"
	delete(env, "GOVC_PASSWORD")
	p := sit(t.Context(), t, env)
	p.sees("Password (not shown): ")
	p.types(lab.DefaultPassword + "\n")
	p.sees("Found 24 virtual machine(s)", "numbers such as 1 3-5")
	p.types("production :off\n")
	p.sees("   1  ", "numbers such as 1 3-5")
	p.types("web01\n")
	p.sees("   1  web01", "1 of 24", "numbers such as 1 3-5")
	p.types("1\n")
	p.sees("Output folder")
	p.types(dir + "/out\n")
	for _, answer := range []struct{ prompt, text string }{{"Format", "qcow2"}, {"Devices", ""}, {"Change options", ""}, {"Export 1 VM(s) now", ""}} {
		p.sees(answer.prompt, ": ")
		p.types(answer.text + "\n")
	}
	p.sees("Exported web01", "virsh define")
	p.ends(0)
	p.mu.Lock()
	defer p.mu.Unlock()
	if strings.Contains(string(p.screen), "\x1b") || strings.Contains(string(p.screen), lab.DefaultPassword) {
		t.Errorf("an escape or the password is on the screen:\n%q", p.screen)
	}
}

// TestGuidedResize: the list is drawn anew when the terminal changes its size.
func TestGuidedResize(t *testing.T) {
	_, env := guidedLab(t)
	p := sit(t.Context(), t, env)
	p.sees("VMs to export: ", "24 of 24 shown")
	for _, size := range []unix.Winsize{{Row: 12, Col: 50}, {Row: 50, Col: 200}, {Row: 24, Col: 80}} {
		if err := unix.IoctlSetWinsize(int(p.master.Fd()), unix.TIOCSWINSZ, &size); err != nil {
			t.Fatal(err)
		}
		p.sees("VMs to export: ", "24 of 24 shown")
	}
	p.types("\x03")
	p.ends(130)
}

func TestSizeCondition(t *testing.T) {
	for word, want := range map[string][3]bool{ // of 5 GiB, 10 GiB, 2 TiB
		">10g": {false, true, true}, "<10g": {true, true, false}, ">=1.5t": {false, false, true}, "<9gib": {true, false, false}, ">": {true, true, true}, ">1": {true, true, true},
	} {
		holds, ok := sizeCondition(word)
		if !ok {
			t.Errorf("%s is no condition", word)
			continue
		}
		if got := [3]bool{holds(5 << 30), holds(10 << 30), holds(2 << 40)}; got != want {
			t.Errorf("%s: %v", word, got)
		}
	}
	for _, word := range []string{"10g", "web", ">g10", ">1x", ">-"} {
		if _, ok := sizeCondition(word); ok {
			t.Errorf("%s is a condition", word)
		}
	}
}
