// Package exit turns failures into what a shell and a person get: one table of
// exit codes for all three binaries, and errors on standard error in three
// parts.
package exit

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/term"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

// The exit codes of all three binaries.
const (
	OK           = 0
	Failed       = 1
	Usage        = 2
	Unreachable  = 3
	JobFailed    = 4
	JobCancelled = 5
	Unauthorized = 6
	Interrupted  = 130
)

// Meaning is one line of the table of exit codes.
type Meaning struct {
	Code    int
	Meaning string
}

// Table is what the exit codes mean, for documentation.
func Table() []Meaning {
	return []Meaning{
		{OK, "done"},
		{Failed, "the operation failed, or the thing does not exist"},
		{Usage, "wrong usage: flags, arguments, a job file, a missing setting"},
		{Unreachable, "the daemon, vCenter or host cannot be reached"},
		{JobFailed, "the job that was waited for failed"},
		{JobCancelled, "the job that was waited for was cancelled"},
		{Unauthorized, "not authorised: wrong credentials, or a missing privilege"},
		{Interrupted, "interrupted"},
	}
}

// Error carries an exit code of its own. Err may be nil when everything has
// been said already.
type Error struct {
	Code int
	Err  error
}

func (e *Error) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit code %d", e.Code)
	}
	return e.Err.Error()
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// UsageError is wrong usage: what is wrong and what to do.
func UsageError(err error, advice string) error {
	return &Error{Code: Usage, Err: problem.New(problem.Invalid, "", err, advice)}
}

// Status is the end of a job that was waited for.
func Status(s models.Status) error {
	switch s {
	case models.Failed:
		return &Error{Code: JobFailed}
	case models.Cancelled:
		return &Error{Code: JobCancelled}
	}
	return nil
}

// Code is the exit code for err.
func Code(err error) int {
	if err == nil {
		return OK
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	switch problem.KindOf(err) {
	case problem.Invalid:
		return Usage
	case problem.Unreachable:
		return Unreachable
	case problem.Unauthorized:
		return Unauthorized
	case problem.Cancelled:
		return Interrupted
	}
	return Failed
}

// Report says err on w, unless all has been said, and gives its exit code.
// Interrupted is set when the command's own context has ended.
func Report(ctx context.Context, w io.Writer, err error) int {
	code := Code(err)
	if err != nil && ctx.Err() != nil && code == Failed {
		code = Interrupted
	}
	if e, ok := errors.AsType[*Error](err); ok && e.Err == nil {
		return code
	}
	if err == nil {
		return code
	}
	what, advice := err.Error(), ""
	if p, ok := errors.AsType[*problem.Error](err); ok {
		why := problem.Error{What: p.What, Err: p.Err}
		if ctx.Err() != nil && code == Interrupted && (errors.Is(err, context.Canceled) || errors.Is(err, context.Cause(ctx))) {
			why.Err = errInterrupted // and not what a program calls it
		}
		if p.Advice != "" || why.Err == errInterrupted {
			what, advice = why.Error(), p.Advice
		}
	}
	label := "ERROR: "
	indent := len(label)
	lines := term.Wrap(w, term.Clean(what), indent)
	if advice != "" {
		lines = append(lines, term.Wrap(w, term.Clean(advice), indent)...)
	}
	for _, line := range lines {
		fmt.Fprintf(w, "%-*s%s\n", indent, label, line)
		label = ""
	}
	return code
}

var errInterrupted = errors.New("interrupted")
