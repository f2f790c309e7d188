package problem

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

func TestErrorHasThreeParts(t *testing.T) {
	cause := errors.New("it is in use")
	for want, e := range map[string]*Error{
		"use folder /x: it is in use (wait)": New(Conflict, "use folder /x", cause, "wait"),
		"use folder /x: it is in use":        New(Conflict, "use folder /x", cause, ""),
		"it is in use (wait)":                New(Conflict, "", cause, "wait"),
		"use folder /x":                      New(Conflict, "use folder /x", nil, ""),
	} {
		if got := e.Error(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if !errors.Is(New(Failed, "x", cause, ""), cause) {
		t.Error("the cause is lost")
	}
}

func TestKindOf(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want Kind
	}{
		{errors.New("x"), Failed},
		{fmt.Errorf("x: %w", context.Canceled), Cancelled},
		{context.DeadlineExceeded, Failed},
		{fmt.Errorf("x: %w", New(Unreachable, "dial", nil, "")), Unreachable},
		{New(Conflict, "outer", New(Unreachable, "inner", nil, ""), ""), Conflict},
	} {
		if got := KindOf(tc.err); got != tc.want {
			t.Errorf("%v: %v, want %v", tc.err, got, tc.want)
		}
	}
}
