//go:build !linux

package vmdk

import "os"

// nextData takes everything for data: this system is not asked for holes.
func nextData(_ *os.File, from, end int64) (start, stop int64) { return from, end }
