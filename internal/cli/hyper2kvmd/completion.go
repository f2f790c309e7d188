package hyper2kvmd

import (
	"github.com/urfave/cli/v3"

	"github.com/hyper2kvm/hyper2kvm/internal/cli/exit"
)

// configureCompletion makes the library's completion command one of ours.
func configureCompletion(c *cli.Command) {
	exit.Completion(c, name)
	c.UsageText = name + " completion bash|zsh|fish"
}
