package exit

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/hyper2kvm/hyper2kvm/internal/cli/term"
)

// shells are those there is a completion script for.
var shells = []string{"bash", "zsh", "fish"}

// scripts take the place of the library's: its script for bash evaluates the
// line (a press of the tab key behind "> FILE" empties the file), and none of
// them knows flags with one hyphen, lists, or files where there is no proposal.
//
//go:embed completion.bash completion.zsh completion.fish
var scripts embed.FS

func script(shell, name string) string {
	data, err := scripts.ReadFile("completion." + shell)
	if err != nil {
		panic(err) // it is embedded
	}
	return strings.ReplaceAll(string(data), "NAME", name)
}

// Completion makes the library's completion command of the binary name one
// like the others: shown, and with usage errors of its own.
func Completion(c *cli.Command, name string) {
	c.Hidden = false
	c.Usage = "print the completion script for bash, zsh or fish"
	c.Description = "For the running shell: source <(" + name + " completion bash). For fish:\n" +
		name + " completion fish > ~/.config/fish/completions/" + name + ".fish"
	c.Commands = slices.DeleteFunc(c.Commands, func(c *cli.Command) bool { return !slices.Contains(shells, c.Name) })
	for _, shell := range c.Commands {
		shell.Action = func(_ context.Context, cmd *cli.Command) error {
			_, err := io.WriteString(cmd.Root().Writer, script(cmd.Name, name))
			return err
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

// Propose prints values for a completion script, one on each line.
func Propose(w io.Writer, values []string) {
	for _, v := range values {
		// A colon would begin the description, and what a terminal obeys has no
		// place on a prompt.
		if !strings.Contains(v, ":") && term.Clean(v) == v {
			fmt.Fprintln(w, v)
		}
	}
}

// VMs gives what may be typed for VMs with these inventory paths: the paths, and
// the names that only one of them has.
func VMs(paths []string) []string {
	names := map[string]int{}
	for _, p := range paths {
		names[path.Base(p)]++
	}
	values := slices.Clone(paths)
	for _, p := range paths {
		if name := path.Base(p); names[name] == 1 {
			values = append(values, name)
		}
	}
	return values
}
