// Command h2kvm-lab serves a vCenter and an ESXi host to try hyper2kvm on.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/hyper2kvm/hyper2kvm/internal/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := lab.Command(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
