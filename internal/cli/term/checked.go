package term

import (
	"fmt"
	"io"
	"sync"
)

// Checked gives s with a standard output that remembers its first error, and
// what asks for it: an answer that a full disk cut short must not end with
// code 0. On a terminal, which must stay recognizable as one, s is unchanged.
func (s IO) Checked() (IO, func() error) {
	if s.Terminal() {
		return s, func() error { return nil }
	}
	c := &checked{w: s.Out}
	s.Out = c
	return s, c.failed
}

type checked struct {
	w   io.Writer
	mu  sync.Mutex
	err error
}

func (c *checked) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
	return n, err
}

func (c *checked) failed() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return fmt.Errorf("write standard output: %w", c.err)
	}
	return nil
}
