// Command hyper2kvmd is the daemon: a queue of exports behind a REST API.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/hyper2kvm/hyper2kvm/internal/cli/hyper2kvmd"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/term"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	// From the first signal on a second one kills.
	context.AfterFunc(ctx, stop)
	os.Exit(hyper2kvmd.Run(ctx, os.Args[1:], term.System()))
}
