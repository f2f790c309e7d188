package hyper2kvm

import (
	"context"
	"errors"

	"github.com/hyper2kvm/hyper2kvm/internal/cli/exit"
)

// guided asks for everything at a terminal.
func (a *app) guided(context.Context) error {
	if !a.io.Interactive() {
		return exit.UsageError(errors.New("no command was given, and there is no terminal to ask at"),
			"use list, inspect, export or verify; see "+name+" -help")
	}
	return nil
}
