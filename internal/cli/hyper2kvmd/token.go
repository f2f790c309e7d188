package hyper2kvmd

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/hyper2kvm/hyper2kvm/daemon/auth"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/exit"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/term"
	"github.com/hyper2kvm/hyper2kvm/internal/config"
)

func (d *command) tokenCommand() *cli.Command {
	return &cli.Command{
		Name:  "token",
		Usage: "add, list and remove the tokens that clients show",
		Description: "The file is the one of -tokens-file, H2KVMD_TOKENS_FILE or the configuration. It holds hashes only;\n" +
			"a running daemon takes changes within a second.",
		Commands: []*cli.Command{
			{
				Name:  "add",
				Usage: "make a token and print it, this once",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "name", OnlyOnce: true, Usage: "who will use it, as the audit log calls them: `NAME`"},
					&cli.StringFlag{Name: "role", OnlyOnce: true, Usage: "`ROLE`: viewer may look, operator may do everything"},
					&cli.StringFlag{Name: "expires", OnlyOnce: true, Usage: "let it end after a `TIME` such as 12h or 90d, or at a date such as 2027-01-31 (UTC; default never)"},
				},
				Action: d.tokenAdd,
			},
			{
				Name:   "list",
				Usage:  "show the tokens, without what makes them secret",
				Flags:  []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print them as JSON"}},
				Action: d.tokenList,
			},
			{
				Name:      "remove",
				Usage:     "remove a token; who uses it is not let in any more",
				ArgsUsage: "ID|NAME",
				Action:    d.tokenRemove,
			},
		},
		Action: func(_ context.Context, cmd *cli.Command) error {
			if given := cmd.Args().First(); given != "" {
				return exit.UnknownCommand(cmd, given)
			}
			return exit.UsageError(errors.New("no command was given"), "use "+name+" token add, list or remove")
		},
	}
}

// tokensFile finds the file that the token commands work on.
func (d *command) tokensFile(cmd *cli.Command) (string, error) {
	file, err := config.TokensFile(d.flags(cmd), d.io.Getenv)
	if err == nil && file == "" {
		err = exit.UsageError(errors.New("no token file is configured"), "give -tokens-file FILE, or set tokens_file in the configuration")
	}
	return file, err
}

func (d *command) tokenAdd(ctx context.Context, cmd *cli.Command) error {
	if err := exit.NoArguments(cmd, "use -name NAME -role ROLE"); err != nil {
		return err
	}
	if cmd.String("name") == "" || cmd.String("role") == "" {
		return exit.UsageError(errors.New("-name and -role are needed"), "for instance: "+name+" token add -name ci -role operator")
	}
	role, err := auth.ParseRole(cmd.String("role"))
	if err != nil {
		return exit.UsageError(err, "use -role viewer or -role operator")
	}
	expires, err := expiry(cmd.String("expires"), time.Now())
	if err != nil {
		return exit.UsageError(fmt.Errorf("-expires: %w", err), "give a time such as 12h or 90d, or a date such as 2027-01-31")
	}
	file, err := d.tokensFile(cmd)
	if err != nil {
		return err
	}
	t, secret, err := auth.AddToken(ctx, file, cmd.String("name"), role, expires)
	if err != nil {
		return err
	}
	// The secret alone goes to standard output, so that a script can take it.
	fmt.Fprintf(d.io.Err, "Added token %s (%s, %s) to %s.\nIt is not kept and cannot be shown again:\n", t.Name, t.ID, t.Role, file)
	fmt.Fprintln(d.io.Out, secret)
	return nil
}

// expiry reads a time from now or a date; "" is the zero time.
func expiry(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	var d time.Duration
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.Atoi(days)
		if err != nil || n < 1 || n > 36500 {
			return time.Time{}, fmt.Errorf("%.40q is not 1 to 36500 days", s)
		}
		d = time.Duration(n) * 24 * time.Hour
	} else if v, err := time.ParseDuration(s); err == nil {
		d = v
	} else {
		for _, layout := range []string{time.DateOnly, time.RFC3339} {
			if at, err := time.Parse(layout, s); err == nil {
				if !at.After(now) {
					return time.Time{}, fmt.Errorf("%s is past", s)
				}
				return at, nil
			}
		}
		return time.Time{}, fmt.Errorf("%.40q is neither a time nor a date", s)
	}
	if d < time.Minute {
		return time.Time{}, fmt.Errorf("%.40q is less than a minute", s)
	}
	return now.Add(d).Truncate(time.Second), nil
}

func (d *command) tokenList(_ context.Context, cmd *cli.Command) error {
	if err := exit.NoArguments(cmd, "see "+name+" token list -help"); err != nil {
		return err
	}
	file, err := d.tokensFile(cmd)
	if err != nil {
		return err
	}
	tokens, err := auth.ListTokens(file)
	if err != nil {
		return err
	}
	if cmd.Bool("json") {
		return d.tokensJSON(tokens)
	}
	d.io.Heading("Tokens")
	rows := make([][]string, len(tokens))
	for i, t := range tokens {
		rows[i] = []string{t.ID, t.Name, string(t.Role), t.Created.Local().Format(time.DateTime), expires(t)}
	}
	d.io.Table([]string{"ID", "Name", "Role", "Created", "Expires"}, rows)
	d.io.Success("Found %d token(s) in %s", len(tokens), file)
	return nil
}

func expires(t auth.Token) string {
	switch {
	case t.Expires.IsZero():
		return "never"
	case t.Expired(time.Now()):
		return "expired"
	}
	return t.Expires.Local().Format(time.DateTime)
}

func (d *command) tokensJSON(tokens []auth.Token) error {
	rows := make([]tokenFacts, len(tokens))
	for i, t := range tokens {
		rows[i] = tokenFacts{ID: t.ID, Name: t.Name, Role: t.Role, Created: t.Created, Expired: t.Expired(time.Now())}
		if !t.Expires.IsZero() {
			rows[i].Expires = &t.Expires
		}
	}
	return d.io.JSON(tokenList{rows})
}

// tokenList is what token list -json prints.
type tokenList struct {
	Tokens []tokenFacts `json:"tokens"`
}

type tokenFacts struct {
	ID      string     `json:"id"`
	Name    string     `json:"name"`
	Role    auth.Role  `json:"role"`
	Created time.Time  `json:"created"`
	Expires *time.Time `json:"expires,omitempty"`
	Expired bool       `json:"expired"`
}

func (d *command) tokenRemove(ctx context.Context, cmd *cli.Command) error {
	if cmd.Args().Len() != 1 {
		return exit.UsageError(fmt.Errorf("%d tokens are named", cmd.Args().Len()), "give the id or name of one: "+name+" token remove NAME")
	}
	file, err := d.tokensFile(cmd)
	if err != nil {
		return err
	}
	t, err := auth.RemoveToken(ctx, file, cmd.Args().First())
	if err != nil {
		return err
	}
	d.io.Success("Removed token %s (%s, %s)", term.Clean(t.Name), t.ID, t.Role)
	return nil
}
