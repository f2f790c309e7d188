package exit

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/urfave/cli/v3"
)

// Commands gives cmd and the commands under it the ways of failing that all
// binaries share: what the flag parser does not like is a UsageError like any
// other, with a proposal for a misspelt flag, and the library itself neither
// prints errors nor exits.
func Commands(cmd *cli.Command) {
	cmd.HideHelpCommand = true
	cmd.DisableSliceFlagSeparator = true
	cmd.OnUsageError = usage
	cmd.ExitErrHandler = func(context.Context, *cli.Command, error) {}
	cmd.CommandNotFound = func(_ context.Context, cmd *cli.Command, _ string) {
		// What stands behind -help is ignored. Whoever checks the writer
		// hears of its error.
		_ = cli.ShowSubcommandHelp(cmd)
	}
	for _, c := range cmd.Commands {
		Commands(c)
	}
}

// usage turns what the flag parser says into a usage error. The value of an
// unknown flag, which may be a secret, is never repeated.
func usage(_ context.Context, cmd *cli.Command, err error, _ bool) error {
	if flag, ok := strings.CutPrefix(err.Error(), "flag provided but not defined: -"); ok {
		flag, _, _ = strings.Cut(flag, "=")
		if word := cmd.Args().First(); cmd == cmd.Root() && word != "" && cmd.Command(word) == nil {
			return UnknownCommand(cmd, word) // the flag is for the command that was meant
		}
		var known []string
		for _, f := range append(cmd.VisibleFlags(), cmd.Root().VisibleFlags()...) {
			if name := "-" + f.Names()[0]; !slices.Contains(known, name) {
				known = append(known, name)
			}
		}
		return Unknown("flag", "-"+flag, known)
	}
	return UsageError(errors.New(plain(err.Error())), "see "+cmd.FullName()+" -help")
}

// parsed is how the library tells of a value that its flag does not take.
var parsed = regexp.MustCompile(`^invalid value "((?s:.*))" for flag (-\S+): (?:strconv\.\w+: parsing .*: (.*)|(parse error))$`)

// plain says it without the names of Go's functions.
func plain(text string) string {
	if m := parsed.FindStringSubmatch(text); m != nil {
		why := "is no number"
		switch {
		case m[4] != "":
			why = "is neither true nor false"
		case m[3] == "value out of range":
			why = "is too large"
		}
		return fmt.Sprintf("%s: %.80q %s", m[2], m[1], why)
	}
	return strings.Replace(text, "can't duplicate this flag", "it is given more than once", 1)
}

// UnknownCommand is the usage error for a command that root does not have.
func UnknownCommand(root *cli.Command, given string) error {
	var known []string
	for _, c := range root.VisibleCommands() {
		known = append(known, c.Name)
	}
	return Unknown("command", given, known)
}

// NoArguments refuses arguments that are no flags. Advice says what was meant,
// most likely.
func NoArguments(cmd *cli.Command, advice string) error {
	if cmd.Args().Present() {
		return UsageError(fmt.Errorf("unexpected argument %.80q", cmd.Args().First()), advice)
	}
	return nil
}
