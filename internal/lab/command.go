package lab

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// Command is h2kvm-lab: it serves a lab until ctx ends. It prints the
// environment as shell commands, and the VMs worth trying; the ready file, if
// asked for, appears with the environment once the lab answers. It returns the
// exit code: 0 done, 1 failed, 2 wrong usage.
func Command(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("h2kvm-lab", flag.ContinueOnError)
	flags.SetOutput(stderr)
	var opts Options
	flags.StringVar(&opts.Addr, "addr", "", "where vCenter listens (default a free loopback port)")
	flags.StringVar(&opts.HostAddr, "host-addr", "", "where the ESXi host listens (default a free loopback port)")
	flags.Int64Var(&opts.BytesPerSecond, "rate", 0, "bytes per second of each stream, 0 for no cap")
	flags.DurationVar(&opts.LeaseTimeout, "lease", 0, "how long a lease lives unless renewed (default 300s)")
	small := flags.Bool("small", false, "only the special VMs, not 201")
	ready := flags.String("ready-file", "", "file to write the environment to once the lab serves")
	faults := map[string]Faults{}
	flags.Func("fault", "make a VM misbehave: Name=value,Name=value@VM, names as in lab.Faults (repeatable)", func(s string) error {
		vm, f, err := parseFaults(s)
		faults[vm] = f
		return err
	})
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(stderr, "h2kvm-lab: unexpected argument %q\n", flags.Arg(0))
		return 2
	}
	if !*small {
		opts.Inventory = Full
	}
	log.SetOutput(io.Discard) // the simulator's remarks
	if err := serveUntil(ctx, opts, faults, *ready, stdout); err != nil {
		fmt.Fprintln(stderr, "h2kvm-lab:", err)
		return 1
	}
	return 0
}

func serveUntil(ctx context.Context, opts Options, faults map[string]Faults, ready string, stdout io.Writer) (err error) {
	l, err := Start(opts) //nolint:contextcheck // a lab lives until Close, which is deferred
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	for vm, f := range faults {
		if len(l.called(vm)) != 1 {
			return fmt.Errorf("there is not exactly one VM %q to misbehave", vm)
		}
		l.SetFaults(vm, f)
	}
	env := l.Env()
	var text strings.Builder
	for _, k := range []string{"GOVC_URL", "GOVC_USERNAME", "GOVC_PASSWORD", "GOVC_TLS_CA_CERTS"} {
		fmt.Fprintf(&text, "export %s=%s\n", k, quote(env[k]))
	}
	fmt.Fprint(stdout, text.String())
	fmt.Fprintln(stdout, "\n# VMs worth trying:")
	for _, s := range SpecialVMs() {
		if s.Note != "" {
			fmt.Fprintf(stdout, "#   %-38s %s\n", s.Path, s.Note)
		}
	}
	if ready != "" {
		if err := writeWhole(ready, text.String()); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.Remove(ready)) }()
	}
	<-ctx.Done()
	return nil
}

// writeWhole makes a file appear with all of its text, readable by its owner:
// there is a password in it.
func writeWhole(name, text string) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".ready-*")
	if err != nil {
		return fmt.Errorf("write ready file: %w", err)
	}
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return fmt.Errorf("write ready file: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}

// quote makes a word of s for a shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// parseFaults reads "CutAfter=1000,CutTimes=2@web01".
func parseFaults(s string) (vm string, f Faults, err error) {
	list, vm, ok := strings.Cut(s, "@")
	if !ok || vm == "" {
		return "", f, errors.New("want Name=value,…@VM")
	}
	v := reflect.ValueOf(&f).Elem()
	for pair := range strings.SplitSeq(list, ",") {
		name, value, _ := strings.Cut(pair, "=")
		field := v.FieldByName(name)
		if !field.IsValid() {
			return "", f, fmt.Errorf("there is no fault %q", name)
		}
		if err := setField(field, value); err != nil {
			return "", f, fmt.Errorf("fault %s: %w", name, err)
		}
	}
	return vm, f, nil
}

func setField(field reflect.Value, value string) error {
	switch p := field.Addr().Interface().(type) {
	case *time.Duration:
		d, err := time.ParseDuration(value)
		*p = d
		return err
	case *bool:
		if value == "" {
			*p = true
			return nil
		}
		b, err := strconv.ParseBool(value)
		*p = b
		return err
	case *int:
		n, err := strconv.Atoi(value)
		*p = n
		return err
	case *int64:
		n, err := strconv.ParseInt(value, 10, 64)
		*p = n
		return err
	case *string:
		*p = value
		return nil
	case *[]int:
		for part := range strings.SplitSeq(value, "+") {
			n, err := strconv.Atoi(part)
			if err != nil {
				return err
			}
			*p = append(*p, n)
		}
		return nil
	}
	return errors.New("it cannot be given as text")
}
