// Package problem gives errors the three parts a person needs: what failed,
// why, and what to do next. It also names the few kinds of failure that the
// command lines turn into exit codes and the REST API into status codes. It
// is a leaf: it knows nothing of vSphere, HTTP or terminals.
package problem

import (
	"context"
	"errors"
	"strings"
)

// Kind says which sort of failure an error is, as far as a caller must act
// on the difference.
type Kind int

// The kinds. Failed is the zero value: an operation was tried and did not
// succeed.
const (
	Failed       Kind = iota
	Invalid           // the request itself is wrong: usage, job file, path
	NotFound          // the named thing does not exist
	Conflict          // the thing exists but is in a state that forbids it: folder in use, VM powered on
	Unreachable       // the daemon, vCenter or host did not answer
	Unauthorized      // wrong or missing credentials, or no permission
	Cancelled         // somebody asked for it to stop
)

// Error is a failure with its kind and advice. What names the operation with
// its object ("export VM /dc/vm/web"), Err is the cause, Advice one sentence
// on what to do next; What and Advice may be empty.
type Error struct {
	Kind   Kind
	What   string
	Err    error
	Advice string
}

// New returns an *Error. A nil err is allowed when what says it all.
func New(kind Kind, what string, err error, advice string) *Error {
	return &Error{Kind: kind, What: what, Err: err, Advice: advice}
}

// Error joins the parts on one line: "what: why (advice)".
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.What)
	if e.Err != nil {
		if e.What != "" {
			b.WriteString(": ")
		}
		b.WriteString(e.Err.Error())
	}
	if e.Advice != "" {
		b.WriteString(" (")
		b.WriteString(e.Advice)
		b.WriteString(")")
	}
	return b.String()
}

// Unwrap gives the cause to errors.Is and errors.As.
func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the kind of the outermost *Error in err's chain. An error
// without one is Cancelled when it is context.Canceled, else Failed.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	if errors.Is(err, context.Canceled) {
		return Cancelled
	}
	return Failed
}
