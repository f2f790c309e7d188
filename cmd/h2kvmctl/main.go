// Command h2kvmctl controls a hyper2kvmd from the command line.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/hyper2kvm/hyper2kvm/internal/cli/h2kvmctl"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/term"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	// From the first signal on a second one kills.
	context.AfterFunc(ctx, stop)
	os.Exit(h2kvmctl.Run(ctx, os.Args[1:], term.System()))
}
