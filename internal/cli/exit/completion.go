package exit

import (
	"context"
	_ "embed" // for the script
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v3"
)

// shells are those there is a completion script for.
var shells = []string{"bash", "zsh", "fish"}

// bashScript takes the place of the library's, which evaluates the line: a press
// of the tab key behind "> FILE" emptied the file.
//
//go:embed completion.bash
var bashScript string

// Completion makes the library's completion command of the binary name one
// like the others: shown, and with usage errors of its own.
func Completion(c *cli.Command, name string) {
	c.Hidden = false
	c.Usage = "print the completion script for bash, zsh or fish"
	c.Description = "For the running shell: source <(" + name + " completion bash). For fish:\n" +
		name + " completion fish > ~/.config/fish/completions/" + name + ".fish"
	c.Commands = slices.DeleteFunc(c.Commands, func(c *cli.Command) bool { return !slices.Contains(shells, c.Name) })
	for _, shell := range c.Commands {
		if shell.Name == "bash" {
			shell.Action = func(_ context.Context, cmd *cli.Command) error {
				_, err := io.WriteString(cmd.Root().Writer, strings.ReplaceAll(bashScript, "NAME", name))
				return err
			}
		}
	}
	c.Action = func(_ context.Context, cmd *cli.Command) error {
		if given := cmd.Args().First(); given != "" {
			return Unknown("shell", given, shells)
		}
		return UsageError(errors.New("no shell was given"), "give one of "+strings.Join(shells, ", "))
	}
	Commands(c)
}
