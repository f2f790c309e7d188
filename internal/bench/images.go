package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/hyper2kvm/hyper2kvm/internal/lab"
)

// govcVersion is what exports are compared with: the newest that installs by
// its version.
const govcVersion = "github.com/vmware/govmomi/govc@v0.46.0"

// command is one side of a comparison: commands that run one after another.
type command [][]string

// versus runs both sides in turn and prints how many times faster the first
// is. Faster is the least factor wanted; slower, when it is set, the greatest
// share of the other's time allowed.
func (s *suite) versus(ctx context.Context, name, out string, ours, theirs command, faster, slower float64) error {
	var a, b []cost
	var ratios []float64
	for i := range s.runs + 1 {
		x, err := s.all(ctx, out, ours)
		if err != nil {
			return err
		}
		y, err := s.all(ctx, out, theirs)
		if err != nil {
			return err
		}
		if i == 0 {
			continue // warms up files and caches
		}
		a, b = append(a, x), append(b, y)
		ratios = append(ratios, y.wall.Seconds()/x.wall.Seconds())
	}
	slices.Sort(ratios)
	ratio := ratios[len(ratios)/2]
	target, met := fmt.Sprintf("at least %.0f times faster", faster), ratio >= faster
	if slower > 0 {
		ratio = 1 / ratio
		target, met = fmt.Sprintf("at most %.2f times the time", slower), ratio <= slower
	}
	verdict := "met"
	if !met {
		verdict = "MISSED"
	}
	fmt.Fprintf(s.out, "%-68s %8.2fs %8.2fs %8.2f %6d MiB   %s: %s\n", name,
		median(a).wall.Seconds(), median(b).wall.Seconds(), ratio, median(a).rss>>20, target, verdict)
	return nil
}

// all runs commands one after another in a fresh folder out.
func (s *suite) all(ctx context.Context, out string, commands command) (cost, error) {
	if err := os.MkdirAll(out, 0o750); err != nil {
		return cost{}, err
	}
	defer os.RemoveAll(out)
	var sum cost
	for _, c := range commands {
		cmd := exec.CommandContext(ctx, c[0], c[1:]...)
		cmd.Env = s.env
		start := time.Now()
		if text, err := cmd.CombinedOutput(); err != nil {
			return cost{}, fmt.Errorf("%v: %w\n%s", c, err, text)
		}
		usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
		if !ok {
			return cost{}, errors.New("this system does not say what a process used")
		}
		sum.wall += time.Since(start)
		sum.cpu += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
		sum.rss = max(sum.rss, usage.Maxrss<<10)
	}
	return sum, nil
}

// images measures conversions, alone and on the way.
func (s *suite) images(ctx context.Context, mib int64) error {
	govc, err := s.govc(ctx)
	if err != nil {
		return err
	}
	// A disk as the host sends it, for the conversions of local files. They are
	// made in memory, where neither side waits for a disk: hyper2kvm syncs its
	// images and qemu-img does not.
	memory := "/dev/shm"
	if _, err := os.Stat(memory); err != nil {
		memory = s.dir
	}
	local, err := os.MkdirTemp(memory, "hyper2kvm-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(local)
	cmd := exec.CommandContext(ctx, s.binary, "export", "-vm", "/DC0/vm/bench/mixed-one", "-output", filepath.Join(local, "stream"))
	cmd.Env = s.env
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("export: %w\n%s", err, text)
	}
	in, out := filepath.Join(local, "stream", "mixed-one-disk-0.vmdk"), filepath.Join(s.dir, "out")
	made := filepath.Join(local, "made")
	qcow2, raw := filepath.Join(made, "disk.qcow2"), filepath.Join(made, "disk.raw")
	ours := func(args ...string) command {
		return command{append([]string{s.binary, "convert", in}, args...)}
	}
	qemu := func(args ...string) command {
		return command{append([]string{"qemu-img", "convert", "-f", "vmdk"}, args...)}
	}

	fmt.Fprintf(s.out, "\nimages: disks of %d MiB, text, noise and zeros by turns\n\n", mib)
	fmt.Fprintf(s.out, "%-68s %9s %9s %8s %10s\n", "", "hyper2kvm", "other", "ratio", "memory")
	for _, c := range []struct {
		name         string
		ours, theirs command
		faster       float64
	}{
		{"VMDK to compressed qcow2, qemu-img -O qcow2", ours(qcow2, "-compress"), qemu("-O", "qcow2", in, qcow2), 10},
		{"VMDK to compressed qcow2, qemu-img -c -O qcow2", ours(qcow2, "-compress"), qemu("-c", "-O", "qcow2", in, qcow2), 40},
		{"the same with every grain verified, -c -O qcow2", ours(qcow2, "-compress", "-verify-grains"), qemu("-c", "-O", "qcow2", in, qcow2), 10},
		{"VMDK to plain qcow2, qemu-img -m 16 -W", ours(qcow2), qemu("-m", "16", "-W", "-O", "qcow2", in, qcow2), 2},
		{"VMDK to raw, qemu-img -m 16 -W", ours(raw), qemu("-m", "16", "-W", "-O", "raw", in, raw), 2},
	} {
		if err := s.versus(ctx, c.name, made, c.ours, c.theirs, c.faster, 0); err != nil {
			return err
		}
	}

	export := func(args ...string) command {
		return command{append([]string{s.binary, "export", "-vm", "/DC0/vm/bench/mixed-four", "-output", out}, args...)}
	}
	theirs := command{{govc, "export.ovf", "-vm", "/DC0/vm/bench/mixed-four", out}}
	for i := range 4 {
		theirs = append(theirs, []string{"qemu-img", "convert", "-f", "vmdk", "-O", "qcow2",
			filepath.Join(out, "mixed-four", fmt.Sprintf("mixed-four-disk-%d.vmdk", i)), filepath.Join(out, fmt.Sprintf("disk-%d.qcow2", i))})
	}
	const rate = 50_000_000
	for _, cap := range []struct {
		name  string
		bytes int64
	}{{"nothing caps the streams", 0}, {"50 MB/s per stream", rate}} {
		s.lab.SetFaults("/DC0/vm/bench/mixed-four", lab.Faults{BytesPerSecond: cap.bytes})
		if err := s.versus(ctx, "four disks, qcow2 -compress against ovf, "+cap.name, out, export("-format", "qcow2", "-compress"), export(), 0, 1.1); err != nil {
			return err
		}
		if err := s.versus(ctx, "four disks, qcow2 against govc + qemu-img", out, export("-format", "qcow2", "-compress"), theirs, 4, 0); err != nil {
			return err
		}
	}
	s.lab.SetFaults("/DC0/vm/bench/mixed-four", lab.Faults{})
	return s.memory(ctx)
}

// memory shows what exports into each format hold, whatever the disks' size.
func (s *suite) memory(ctx context.Context) error {
	fmt.Fprintf(s.out, "\nresident memory, four disks at once, target 96 MiB\n\n%-24s %12s %12s\n", "", "full size", "an eighth")
	for _, format := range [][]string{{"-format", "qcow2", "-compress"}, {"-format", "qcow2", "-compress", "-verify-grains"}, {"-format", "qcow2"}, {"-format", "raw"}, {"-format", "ova"}} {
		var most [2]int64
		for i, vm := range []string{"mixed-four", "mixed-tiny"} {
			for range s.runs {
				c, err := s.all(ctx, filepath.Join(s.dir, "out"), command{append([]string{s.binary, "export", "-vm", "/DC0/vm/bench/" + vm, "-output", filepath.Join(s.dir, "out")}, format...)})
				if err != nil {
					return err
				}
				most[i] = max(most[i], c.rss)
			}
		}
		verdict := "met"
		if max(most[0], most[1]) > 96<<20 {
			verdict = "MISSED"
		}
		name := ""
		for _, f := range format[1:] {
			name += f + " "
		}
		fmt.Fprintf(s.out, "%-30s %4d MiB %8d MiB   %s\n", name, most[0]>>20, most[1]>>20, verdict)
	}
	return nil
}

// govc builds govc, the tool that exports are compared with.
func (s *suite) govc(ctx context.Context) (string, error) {
	bin := filepath.Join(s.dir, "bin")
	cmd := exec.CommandContext(ctx, "go", "install", govcVersion)
	cmd.Env = append(os.Environ(), "GOBIN="+bin, "GOFLAGS=")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("install %s: %w\n%s", govcVersion, err, text)
	}
	return filepath.Join(bin, "govc"), nil
}
