package exit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

func TestReport(t *testing.T) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	for name, tc := range map[string]struct {
		ctx  context.Context
		err  error
		code int
		says string
	}{
		"nothing":        {err: nil, code: OK},
		"plain":          {err: errors.New("no luck"), code: Failed, says: "ERROR: no luck\n"},
		"three parts":    {err: problem.New(problem.Conflict, "export x", errors.New("busy"), "wait"), code: Failed, says: "ERROR: export x: busy\n       wait\n"},
		"usage":          {err: UsageError(errors.New("no -vm"), "give one"), code: Usage, says: "ERROR: no -vm\n       give one\n"},
		"unreachable":    {err: problem.New(problem.Unreachable, "dial", nil, ""), code: Unreachable, says: "ERROR: dial\n"},
		"unauthorised":   {err: problem.New(problem.Unauthorized, "log in", nil, ""), code: Unauthorized, says: "ERROR: log in\n"},
		"interrupted":    {ctx: ended, err: errors.New("x"), code: Interrupted, says: "ERROR: x\n"},
		"cancelled":      {err: fmt.Errorf("x: %w", context.Canceled), code: Interrupted, says: "ERROR: x: context canceled\n"},
		"said already":   {err: Status(models.Failed), code: JobFailed},
		"job cancelled":  {err: Status(models.Cancelled), code: JobCancelled},
		"job completed":  {err: Status(models.Completed), code: OK},
		"hostile escape": {err: errors.New("vm \x1b[2J"), code: Failed, says: "ERROR: vm \ufffd[2J\n"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := tc.ctx
			if ctx == nil {
				ctx = t.Context()
			}
			var b bytes.Buffer
			if code := Report(ctx, &b, tc.err); code != tc.code || b.String() != tc.says {
				t.Errorf("code %d, want %d; says %q, want %q", code, tc.code, b.String(), tc.says)
			}
		})
	}
}
