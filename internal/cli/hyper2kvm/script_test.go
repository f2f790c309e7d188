package hyper2kvm

import (
	"context"
	"os"
	"os/signal"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/hyper2kvm/hyper2kvm/internal/cli/term"
	"github.com/hyper2kvm/hyper2kvm/internal/jsondoc"
	"github.com/hyper2kvm/hyper2kvm/internal/lab"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"hyper2kvm": func() {
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
			code := Run(ctx, os.Args[1:], term.System())
			stop()
			os.Exit(code)
		},
	})
}

// TestScripts runs the scripts of testdata/script, each with its vCenter in
// the environment. A script's commands:
//
//	code N CMD...   CMD must end with exit code N
//	noescapes       neither stream of the last command holds an escape
//	released        no lease is open
//	slow VM         caps the streams of a VM
//	leased          waits until a lease is open
//	described S [F] the last command's output, or the file F, is as section S of
//	                docs/json.md says
func TestScripts(t *testing.T) {
	doc, err := jsondoc.Read("../../../docs/json.md")
	if err != nil {
		t.Fatal(err)
	}
	var starting sync.Mutex // the simulator's start touches variables of its package
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", RequireUniqueNames: true,
		Setup: func(e *testscript.Env) error {
			starting.Lock()
			l, err := lab.Start(lab.Options{Inventory: lab.Small})
			starting.Unlock()
			if err != nil {
				return err
			}
			e.Defer(func() {
				if err := l.Close(); err != nil {
					t.Error(err)
				}
			})
			for k, v := range l.Env() {
				e.Setenv(k, v)
			}
			e.Setenv("TERM", "xterm")
			e.Values["lab"] = l
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code": func(ts *testscript.TestScript, _ bool, args []string) {
				err := ts.Exec(args[1], args[2:]...)
				got := "0"
				if err != nil {
					got = strings.TrimPrefix(err.Error(), "exit status ")
				}
				if got != args[0] {
					ts.Fatalf("exit code %s, want %s", got, args[0])
				}
			},
			"noescapes": func(ts *testscript.TestScript, _ bool, _ []string) {
				for _, name := range []string{"stdout", "stderr"} {
					if text := ts.ReadFile(name); strings.Contains(text, "\x1b") || strings.Contains(text, lab.DefaultPassword) {
						ts.Fatalf("%s holds an escape or the password: %q", name, text)
					}
				}
			},
			"described": func(ts *testscript.TestScript, _ bool, args []string) {
				file := "stdout"
				if len(args) > 1 {
					file = args[1]
				}
				for _, diff := range doc.Check(args[0], []byte(ts.ReadFile(file))) {
					ts.Fatalf("%s", diff)
				}
			},
			"released": func(ts *testscript.TestScript, _ bool, _ []string) {
				if n := ts.Value("lab").(*lab.Lab).OpenLeases(); n != 0 {
					ts.Fatalf("%d leases are open", n)
				}
			},
			"slow": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Value("lab").(*lab.Lab).SetFaults(args[0], lab.Faults{BytesPerSecond: 64 << 10})
			},
			"leased": func(ts *testscript.TestScript, _ bool, _ []string) {
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				defer cancel()
				tick := time.NewTicker(20 * time.Millisecond)
				defer tick.Stop()
				for ts.Value("lab").(*lab.Lab).OpenLeases() == 0 {
					select {
					case <-ctx.Done():
						ts.Fatalf("no lease was opened")
					case <-tick.C:
					}
				}
			},
		},
	})
}
