// Command bench measures what an export costs against a plain parallel
// download of the same URLs to the same folder. Both sides are whole
// processes, run in turn against one simulated host, so that a machine whose
// speed drifts drifts for both; what is printed are medians and the median of
// the ratios of the pairs.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hyper2kvm/hyper2kvm/internal/lab"
	"github.com/hyper2kvm/hyper2kvm/vsphere"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if len(os.Args) == 4 && os.Args[1] == "fetch" {
		err = fetch(ctx, os.Args[2], os.Args[3])
	} else {
		err = bench(ctx, os.Args[1:], os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// fetch is the other side: the same lease, the same URLs, each copied to a
// file by net/http and io.Copy as they come, synced as any tool that means it
// must; nothing is hashed, nothing is checked and no certificate is looked at.
func fetch(ctx context.Context, vmPath, dir string) error {
	cfg, err := vsphere.ConfigFromEnv(os.Getenv)
	if err != nil {
		return err
	}
	client, err := vsphere.Connect(ctx, cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer client.Close(ctx)
	vm, err := client.FindVM(ctx, vmPath)
	if err != nil {
		return err
	}
	lease, err := client.ExportVM(ctx, vm.MoRef)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	plain := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	group, gctx := errgroup.WithContext(ctx)
	for i, item := range lease.Items() {
		group.Go(func() error {
			req, err := http.NewRequestWithContext(gctx, http.MethodGet, item.URL.String(), nil)
			if err != nil {
				return err
			}
			resp, err := plain.Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			file, err := os.Create(filepath.Join(dir, fmt.Sprintf("disk-%d.vmdk", i)))
			if err != nil {
				return err
			}
			defer file.Close()
			if _, err := io.Copy(file, resp.Body); err != nil {
				return err
			}
			return file.Sync()
		})
	}
	err = group.Wait()
	return errors.Join(err, lease.Close(ctx, err))
}

// cost is what one process took.
type cost struct {
	wall, cpu time.Duration
	rss       int64 // bytes
}

type suite struct {
	out    io.Writer
	dir    string
	self   string
	binary string
	env    []string
	lab    *lab.Lab
	runs   int
}

func bench(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	size := flags.Int64("size", 256, "MiB per disk")
	runs := flags.Int("runs", 5, "pairs per comparison")
	only := flags.String("only", "", "downloads or images: measure no more than that")
	dir := flags.String("dir", "", "folder to export into (default: the system's for temporary files)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp(*dir, "hyper2kvm-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)

	mib := *size << 20
	disk := func(n int64, seed uint64) lab.DiskSpec {
		return lab.DiskSpec{Capacity: n, Pattern: lab.PatternRandom, Seed: seed}
	}
	mixed := func(n int64, seed uint64) lab.DiskSpec {
		return lab.DiskSpec{Capacity: n, Pattern: lab.PatternMixed, Seed: seed}
	}
	l, err := lab.Start(lab.Options{Inventory: lab.Small, ExtraVMs: []lab.VMSpec{
		{Path: "/DC0/vm/bench/four", Disks: []lab.DiskSpec{disk(mib, 1), disk(mib, 2), disk(mib, 3), disk(mib, 4)}},
		{Path: "/DC0/vm/bench/one", Disks: []lab.DiskSpec{disk(mib, 5)}},
		{Path: "/DC0/vm/bench/mixed-four", Disks: []lab.DiskSpec{mixed(mib, 1), mixed(mib, 2), mixed(mib, 3), mixed(mib, 4)}},
		{Path: "/DC0/vm/bench/mixed-tiny", Disks: []lab.DiskSpec{mixed(mib/8, 1), mixed(mib/8, 2), mixed(mib/8, 3), mixed(mib/8, 4)}},
		{Path: "/DC0/vm/bench/mixed-one", Disks: []lab.DiskSpec{mixed(2*mib, 5)}},
		{Path: "/DC0/vm/bench/tiny", Disks: []lab.DiskSpec{disk(mib/8, 6), disk(mib/8, 7), disk(mib/8, 8), disk(mib/8, 9)}},
	}})
	if err != nil {
		return err
	}
	defer l.Close()
	s := &suite{out: out, dir: work, self: self, binary: "build/hyper2kvm", lab: l, runs: *runs, env: os.Environ()}
	for k, v := range l.Env() {
		s.env = append(s.env, k+"="+v)
	}
	if *only != "images" {
		if err := s.downloads(ctx, *size); err != nil {
			return err
		}
	}
	if *only != "downloads" {
		return s.images(ctx, *size)
	}
	return nil
}

// downloads measures plain exports against plain downloads.
func (s *suite) downloads(ctx context.Context, size int64) error {
	out, l := s.out, s.lab
	fmt.Fprintf(out, "four disks of %d MiB that do not compress, %d pairs, medians\n\n", size, s.runs)
	fmt.Fprintf(out, "%-34s %9s %9s %8s %9s %9s\n", "", "export", "fetch", "ratio", "CPU", "memory")
	if err := s.compare(ctx, "nothing caps the streams", "bench/four", 1.25); err != nil {
		return err
	}
	const rate = 50_000_000
	for _, vm := range []string{"four", "one"} {
		l.SetFaults("/DC0/vm/bench/"+vm, lab.Faults{BytesPerSecond: rate})
	}
	if err := s.compare(ctx, "50 MB/s per stream", "bench/four", 1.05); err != nil {
		return err
	}
	return s.scaling(ctx)
}

// compare runs export and fetch in turn.
func (s *suite) compare(ctx context.Context, name, vm string, target float64) error {
	var a, b []cost
	var ratios []float64
	for i := range s.runs + 1 {
		x, err := s.export(ctx, vm)
		if err != nil {
			return err
		}
		y, err := s.run(ctx, s.self, "fetch", "/DC0/vm/"+vm, filepath.Join(s.dir, "out"))
		if err != nil {
			return err
		}
		if i == 0 {
			continue // warms up the host's files
		}
		a, b = append(a, x), append(b, y)
		ratios = append(ratios, x.wall.Seconds()/y.wall.Seconds())
	}
	slices.Sort(ratios)
	ratio := ratios[len(ratios)/2]
	verdict := "met"
	if ratio > target {
		verdict = "MISSED"
	}
	fmt.Fprintf(s.out, "%-34s %8.2fs %8.2fs %8.3f %8.2fs %6d MiB   target %.2f: %s\n", name,
		median(a).wall.Seconds(), median(b).wall.Seconds(), ratio, median(a).cpu.Seconds(), median(a).rss>>20, target, verdict)
	return nil
}

// scaling shows that four disks take the time of one at a fixed rate per
// stream, and that memory does not grow with the size of the disks.
func (s *suite) scaling(ctx context.Context) error {
	var four, one, tiny []cost
	for range s.runs {
		for _, c := range []struct {
			vm  string
			out *[]cost
		}{{"bench/four", &four}, {"bench/one", &one}, {"bench/tiny", &tiny}} {
			x, err := s.export(ctx, c.vm)
			if err != nil {
				return err
			}
			*c.out = append(*c.out, x)
		}
	}
	fmt.Fprintf(s.out, "\nfour disks at 50 MB/s per stream take %.2fs, one takes %.2fs: %.2f times\n",
		median(four).wall.Seconds(), median(one).wall.Seconds(), median(four).wall.Seconds()/median(one).wall.Seconds())
	fmt.Fprintf(s.out, "resident memory with four disks: %d MiB, with four of an eighth of the size: %d MiB\n",
		median(four).rss>>20, median(tiny).rss>>20)
	return nil
}

func (s *suite) export(ctx context.Context, vm string) (cost, error) {
	return s.run(ctx, s.binary, "export", "-vm", "/DC0/vm/"+vm, "-output", filepath.Join(s.dir, "out"))
}

func (s *suite) run(ctx context.Context, name string, args ...string) (cost, error) {
	defer os.RemoveAll(filepath.Join(s.dir, "out"))
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = s.env
	start := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		return cost{}, fmt.Errorf("%s %v: %w\n%s", filepath.Base(name), args, err, out)
	}
	wall := time.Since(start)
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return cost{}, errors.New("this system does not say what a process used")
	}
	return cost{wall: wall, cpu: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), rss: usage.Maxrss << 10}, nil
}

// median gives the median of each figure by itself.
func median(costs []cost) cost {
	pick := func(of func(cost) int64) int64 {
		v := make([]int64, len(costs))
		for i, c := range costs {
			v[i] = of(c)
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	return cost{
		wall: time.Duration(pick(func(c cost) int64 { return int64(c.wall) })),
		cpu:  time.Duration(pick(func(c cost) int64 { return int64(c.cpu) })),
		rss:  pick(func(c cost) int64 { return c.rss }),
	}
}
