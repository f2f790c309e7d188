//go:build !linux

package raw

import "errors"

// zero is known for Linux only.
func (f file) zero(_, _ int64) error { return errors.ErrUnsupported }
